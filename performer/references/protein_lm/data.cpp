// SPDX-License-Identifier: Apache-2.0
#include "performer/references/protein_lm/data.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "performer/base/error.h"
#include "performer/data/vocabulary.h"

namespace performer::references::protein_lm {
namespace {

constexpr std::string_view kResidues = "ACDEFGHIKLMNPQRSTVWYBOUXZ", kMarkers = "<>_*";
constexpr size_t kStandardResidues = 20;  // the first of them

at::Tensor row_of(std::span<const int64_t> tokens) {
  return at::tensor(at::IntArrayRef(tokens.data(), tokens.size()), at::kLong);
}

template <class T>
std::vector<T> values_of(const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(c10::CppTypeToScalarType<T>::value).contiguous();
  return {values.const_data_ptr<T>(), values.const_data_ptr<T>() + values.numel()};
}

}  // namespace

Vocabulary::Vocabulary(const VocabularyOptions& options) {
  letters_ = kResidues.substr(0, options.anomalous ? kResidues.size() : kStandardResidues);
  if (options.align) letters_ += ".-";
  const bool present[] = {options.bos, options.eos, options.pad, options.mask};
  for (size_t i = 0; i < kMarkers.size(); ++i) {
    if (present[i]) letters_ += kMarkers[i];
  }
}

std::optional<int64_t> Vocabulary::marker(char letter) const {
  const size_t place = letters_.find(letter);
  if (place == std::string::npos) return std::nullopt;
  return static_cast<int64_t>(place);
}

Tokens Vocabulary::normal_tokens() const {
  Tokens normal;
  for (int64_t id = 0; id < size(); ++id) {
    if (kMarkers.find(letters_[id]) == std::string_view::npos) normal.push_back(id);
  }
  return normal;
}

Tokens Vocabulary::encode(std::string_view text) const {
  Tokens tokens;
  for (size_t i = 0; i < text.size(); ++i) {
    const size_t id = letters_.find(text[i]);
    check<InputError>(id != std::string::npos, "letter {} at position {} is none of {}",
                      data::quoted(text[i]), i + 1, letters_);
    tokens.push_back(static_cast<int64_t>(id));
  }
  return tokens;
}

std::string Vocabulary::decode(std::span<const int64_t> tokens, bool stop_at_eos) const {
  check<UsageError>(!stop_at_eos || eos(), "a vocabulary without EOS cannot decode up to it");
  std::string text;
  for (const int64_t token : tokens) {
    if (stop_at_eos && token == *eos()) break;
    check<InputError>(token >= 0 && token < size(), "token {} is not in a vocabulary of {}", token, size());
    text += letters_[token];
  }
  return text;
}

at::Tensor pad_sequences(const std::vector<Tokens>& sequences, int64_t length, int64_t value) {
  at::Tensor rows = at::full({static_cast<int64_t>(sequences.size()), length}, value, at::kLong);
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto kept = std::min(length, static_cast<int64_t>(sequences[i].size()));
    rows[static_cast<int64_t>(i)].narrow(0, 0, kept).copy_(row_of(std::span(sequences[i]).last(kept)));
  }
  return rows;
}

bool is_valid(std::span<const int64_t> row, const Vocabulary& vocabulary, int64_t length,
              int64_t min_length) {
  check<UsageError>(vocabulary.eos().has_value(), "a variable-length domain needs a vocabulary with EOS");
  const auto is_end = [&](int64_t token) { return token == *vocabulary.eos(); };
  const auto end = std::ranges::find_if(row, is_end);
  const auto tokens = static_cast<int64_t>(std::ranges::count_if(row, std::not_fn(is_end)));
  const bool known =
      std::ranges::all_of(row, [&](int64_t token) { return token >= 0 && token < vocabulary.size(); });
  return known && tokens >= min_length && tokens <= length && std::all_of(end, row.end(), is_end);
}

std::vector<at::Tensor> batches(const std::vector<Tokens>& sequences, const BatchOptions& options) {
  check<UsageError>(
      options.length >= 0 && options.batch_size >= 1 && options.pack_length >= 0,
      "batches need a length of at least 0, a size of at least 1 and a pack length of at least 0, not {}, "
      "{} and {}",
      options.length, options.batch_size, options.pack_length);
  const Vocabulary standard;
  std::vector<Tokens> rows;
  Tokens packed;
  for (const Tokens& sequence : sequences) {
    const auto whole = static_cast<int64_t>(sequence.size());
    const auto kept = std::span(sequence).first(options.length > 0 ? std::min(options.length, whole) : whole);
    if (options.pack_length == 0) {
      rows.emplace_back(kept.begin(), kept.end());
      continue;
    }
    packed.insert(packed.end(), kept.begin(), kept.end());
    packed.push_back(*standard.eos());
  }
  for (auto row = packed.begin(); options.pack_length > 0 && packed.end() - row >= options.pack_length;
       row += options.pack_length) {
    rows.emplace_back(row, row + options.pack_length);
  }
  std::vector<at::Tensor> result;
  for (size_t first = 0; first + options.batch_size <= rows.size(); first += options.batch_size) {
    const std::vector<Tokens> batch(rows.begin() + first, rows.begin() + first + options.batch_size);
    const auto longest = std::ranges::max(batch, {}, &Tokens::size).size();
    const int64_t width =
        options.pack_length > 0 || options.length == 0 ? static_cast<int64_t>(longest) : options.length;
    result.push_back(pad_sequences(batch, width, *standard.pad()));
  }
  return result;
}

Example causal_example(const at::Tensor& tokens, int64_t bos, std::optional<int64_t> pad, bool shift) {
  Example example{tokens, tokens, pad ? tokens.ne(*pad).to(at::kLong) : at::ones_like(tokens)};
  if (shift) {
    const at::Tensor first = at::full({tokens.size(0), 1}, bos, tokens.options());
    example.inputs = at::cat({first, tokens}, 1).narrow(1, 0, tokens.size(1));
  }
  return example;
}

Example masked_example(const at::Tensor& tokens, const Vocabulary& vocabulary,
                       const std::optional<MaskDraws>& draws, double rate,
                       const data::Corruption& corruption) {
  check<UsageError>(vocabulary.mask().has_value(), "masking needs a vocabulary with MASK");
  if (!draws) return {tokens, tokens, at::ones_like(tokens)};
  Tokens inputs = values_of<int64_t>(tokens), replacement = values_of<int64_t>(draws->replacement);
  const Tokens normal = vocabulary.normal_tokens();
  for (int64_t& index : replacement) index = normal.at(index);
  const std::vector<float> weights =
      data::corrupt(inputs, values_of<float>(draws->choose), values_of<float>(draws->mix), replacement, rate,
                    corruption, {.pad = vocabulary.pad().value_or(-1), .mask = *vocabulary.mask()});
  return {row_of(inputs).view_as(tokens), tokens, at::tensor(weights).to(at::kLong).view_as(tokens)};
}

int64_t evaluation_seed(const at::Tensor& tokens) {
  return tokens.sum().item<int64_t>();
}

}  // namespace performer::references::protein_lm
