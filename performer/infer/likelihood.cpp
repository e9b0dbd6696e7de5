// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/likelihood.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "performer/infer/packing.h"

namespace performer {
namespace {

using Tokens = std::vector<data::Token>;

// Log-probabilities [places, vocabulary] at places of a packed batch.
at::Tensor distributions_at(LanguageModel& model, const Packing& packing,
                            const std::vector<int64_t>& places) {
  const at::Tensor logits = model->forward(packing.batch())[0].index_select(0, at::tensor(places, at::kLong));
  return at::log_softmax(logits, -1, at::kFloat);
}

// Of distributions [places, vocabulary] those of one target each.
std::vector<float> chosen_of(const at::Tensor& distributions, const std::vector<int64_t>& targets) {
  const at::Tensor chosen =
      distributions.gather(1, at::tensor(targets, at::kLong).unsqueeze(1)).squeeze(1).contiguous();
  const float* values = chosen.data_ptr<float>();
  return {values, values + chosen.numel()};
}

// log p(targets[i]) at place places[i] of a packed batch.
std::vector<float> log_probabilities(LanguageModel& model, const Packing& packing,
                                     const std::vector<int64_t>& places,
                                     const std::vector<int64_t>& targets) {
  return chosen_of(distributions_at(model, packing, places), targets);
}

// What belongs to each sequence, of the values of all of them.
std::vector<std::vector<float>> split_by(const TokenSequences& sequences, const std::vector<float>& values) {
  std::vector<std::vector<float>> each;
  auto from = values.begin();
  for (const Tokens* sequence : sequences) {
    const auto to = from + static_cast<std::ptrdiff_t>(sequence->size());
    each.emplace_back(from, to);
    from = to;
  }
  return each;
}

// A sequence between its markers, with the token at place `hidden` masked; -1: none.
void add_masked(Packing& packing, const data::Vocabulary& vocabulary, const Tokens& sequence,
                int64_t hidden) {
  packing.add(vocabulary.bos());
  for (int64_t i = 0; i < std::ssize(sequence); ++i) {
    packing.add(i == hidden ? vocabulary.mask() : sequence[static_cast<size_t>(i)]);
  }
  packing.add(vocabulary.eos());
  packing.end_segment();
}

// Calls `read` with batches of copies of a sequence, each with one of `places` hidden: the copies, where in
// them the hidden tokens are, and the first of `places` that it is about.
template <class Read>
void hide_each(const data::Vocabulary& vocabulary, const Tokens& sequence, const std::vector<int64_t>& places,
               int64_t batch_tokens, const Read& read) {
  const int64_t copies = masked_copies(sequence, batch_tokens);
  for (int64_t first = 0; first < std::ssize(places); first += copies) {
    Packing packing;
    std::vector<int64_t> hidden;
    for (int64_t i = first; i < std::min(first + copies, std::ssize(places)); ++i) {
      hidden.push_back(packing.bounds.back() + 1 + places[static_cast<size_t>(i)]);
      add_masked(packing, vocabulary, sequence, places[static_cast<size_t>(i)]);
    }
    read(packing, hidden, first);
  }
}

}  // namespace

int64_t masked_copies(const Tokens& sequence, int64_t batch_tokens) {
  return std::max<int64_t>(1, batch_tokens / (std::ssize(sequence) + 2));
}

// Inputs start marker, x1 .. x(n-1), targets x1 .. xn.
std::vector<std::vector<float>> causal_log_probabilities(LanguageModel& model,
                                                         const data::Vocabulary& vocabulary,
                                                         const TokenSequences& sequences) {
  Packing packing;
  std::vector<int64_t> targets;
  for (const Tokens* sequence : sequences) {
    int64_t previous = vocabulary.bos();
    for (const data::Token token : *sequence) {
      packing.add(previous);
      targets.push_back(token);
      previous = token;
    }
    packing.end_segment();
  }
  std::vector<int64_t> places(targets.size());
  std::iota(places.begin(), places.end(), int64_t{0});
  return split_by(sequences, log_probabilities(model, packing, places, targets));
}

std::vector<float> causal_log_probabilities_in_chunks(LanguageModel& model,
                                                      const data::Vocabulary& vocabulary,
                                                      const Tokens& sequence, ChunkedRequest request) {
  const auto length = std::ssize(sequence);
  at::Tensor inputs = at::empty({length}, at::kLong);
  int64_t* input = inputs.mutable_data_ptr<int64_t>();
  input[0] = vocabulary.bos();
  std::copy(sequence.begin(), sequence.end() - 1, input + 1);
  request.layers = {std::ssize(model->blocks())};
  std::vector<float> all;
  represent_in_chunks(model, inputs, request, [&](int64_t, int64_t first, const at::Tensor& rows) {
    const auto begin = sequence.begin() + first;
    const std::vector<float> values =
        chosen_of(at::log_softmax(model->logits(rows), -1, at::kFloat), {begin, begin + rows.size(0)});
    all.insert(all.end(), values.begin(), values.end());
  });
  return all;
}

std::vector<std::vector<float>> unmasked_log_probabilities(LanguageModel& model,
                                                           const data::Vocabulary& vocabulary,
                                                           const TokenSequences& sequences) {
  Packing packing;
  std::vector<int64_t> places, targets;
  for (const Tokens* sequence : sequences) {
    for (int64_t i = 0; i < std::ssize(*sequence); ++i) places.push_back(packing.bounds.back() + 1 + i);
    targets.insert(targets.end(), sequence->begin(), sequence->end());
    add_masked(packing, vocabulary, *sequence, -1);
  }
  return split_by(sequences, log_probabilities(model, packing, places, targets));
}

std::vector<float> masked_log_probabilities_at(LanguageModel& model, const data::Vocabulary& vocabulary,
                                               const Tokens& sequence, int64_t first, int64_t count) {
  Packing packing;
  std::vector<int64_t> places;
  for (int64_t place = first; place < first + count; ++place) {
    places.push_back(packing.bounds.back() + 1 + place);
    add_masked(packing, vocabulary, sequence, place);
  }
  const auto begin = sequence.begin() + first;
  return log_probabilities(model, packing, places, {begin, begin + count});
}

std::vector<float> masked_log_probabilities(LanguageModel& model, const data::Vocabulary& vocabulary,
                                            const Tokens& sequence, int64_t batch_tokens,
                                            const std::function<void(int64_t)>& progress) {
  const int64_t length = std::ssize(sequence), copies = masked_copies(sequence, batch_tokens);
  std::vector<float> all;
  for (int64_t first = 0; first < length; first += copies) {
    const std::vector<float> values =
        masked_log_probabilities_at(model, vocabulary, sequence, first, std::min(copies, length - first));
    all.insert(all.end(), values.begin(), values.end());
    if (progress) progress(std::ssize(all));
  }
  return all;
}

at::Tensor masked_distributions(LanguageModel& model, const data::Vocabulary& vocabulary,
                                const Tokens& sequence, const std::vector<int64_t>& places,
                                int64_t batch_tokens, const std::function<void(int64_t)>& progress) {
  std::vector<at::Tensor> parts = {at::empty({0, vocabulary.size()}, at::kFloat)};
  hide_each(vocabulary, sequence, places, batch_tokens,
            [&](const Packing& packing, const std::vector<int64_t>& hidden, int64_t first) {
              parts.push_back(distributions_at(model, packing, hidden));
              if (progress) progress(first + std::ssize(hidden));
            });
  return at::cat(parts);
}

at::Tensor unmasked_distributions(LanguageModel& model, const data::Vocabulary& vocabulary,
                                  const Tokens& sequence, const std::vector<int64_t>& places) {
  Packing packing;
  add_masked(packing, vocabulary, sequence, -1);
  std::vector<int64_t> shifted;
  for (const int64_t place : places) shifted.push_back(place + 1);  // behind the start marker
  return distributions_at(model, packing, shifted);
}

}  // namespace performer
