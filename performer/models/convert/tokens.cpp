// SPDX-License-Identifier: Apache-2.0
#include "performer/models/convert/tokens.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>

#include "performer/base/error.h"
#include "performer/data/vocabulary_text.h"

namespace performer::convert {
namespace {

constexpr int64_t kMostTokens = 65'532;
constexpr std::string_view kAminoAcids = "ACDEFGHIKLMNPQRSTVWY";

bool is_special(const std::string& text) {
  return text.size() > 1 &&
         ((text.starts_with('<') && text.ends_with('>')) || (text.starts_with('[') && text.ends_with(']')));
}

std::optional<int64_t> find_text(const std::vector<std::string>& texts,
                                 std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const auto found = std::find(texts.begin(), texts.end(), name);
    if (found != texts.end()) return found - texts.begin();
  }
  return std::nullopt;
}

bool holds_all(const std::vector<std::string>& texts, std::string_view letters) {
  return std::all_of(letters.begin(), letters.end(), [&](char letter) {
    return std::find(texts.begin(), texts.end(), std::string(1, letter)) != texts.end();
  });
}

// The markers of a plan, in our order.
std::array<std::optional<int64_t>, 4> markers_of(const SourceTokens& tokens) {
  return {tokens.bos, tokens.eos, tokens.pad, tokens.mask};
}

// Collects symbols with their ids of the source; those without a text come last.
class Symbols {
 public:
  void add(std::string text, int64_t id) {
    if (!texts_.insert(text).second) return add_unwritten(fmt::format("<{}>", id), id);
    written_.emplace_back(std::move(text), id);
  }
  void add_unwritten(std::string name, int64_t id) {
    if (!texts_.insert(name).second) name = fmt::format("<token {}>", id);
    unwritten_.emplace_back(std::move(name), id);
  }
  data::VocabularyText parts() const {
    data::VocabularyText parts;
    for (const auto& list : {written_, unwritten_}) {
      for (const auto& [text, id] : list) {
        parts.symbols.push_back(text);
        parts.source_ids.push_back(id);
      }
    }
    parts.reserved = std::ssize(unwritten_);
    return parts;
  }

 private:
  std::vector<std::pair<std::string, int64_t>> written_, unwritten_;
  std::set<std::string> texts_;
};

bool is_marker(const SourceTokens& tokens, int64_t id) {
  const auto markers = markers_of(tokens);
  return std::find(markers.begin(), markers.end(), std::optional(id)) != markers.end();
}

// Letters of proteins that a source does not know are read as its unknown token, which X stands for, or,
// where X is a residue of its own, the question mark.
data::VocabularyText spell_letters(const SourceTokens& tokens) {
  const bool has_x = find_text(tokens.texts, {"X"}).has_value();
  const bool protein = holds_all(tokens.texts, kAminoAcids);
  const char unknown = has_x || !protein ? '?' : 'X';
  Symbols symbols;
  for (int64_t id = 0; id < tokens.size; ++id) {
    if (is_marker(tokens, id)) continue;
    const std::string text =
        id < std::ssize(tokens.texts) ? tokens.texts[id] : fmt::format("<unused {}>", id);
    if (tokens.unknown == id) {
      symbols.add(std::string(1, unknown), id);
    } else if (text.size() == 1 && text != " ") {
      symbols.add(text, id);
    } else {
      symbols.add_unwritten(text, id);
    }
  }
  data::VocabularyText parts = symbols.parts();
  if (protein) parts.unit = "residues";
  if (protein && tokens.unknown) {
    for (const char letter : std::string_view("BJOUXZ")) {
      if (std::find(parts.symbols.begin(), parts.symbols.end(), std::string(1, letter)) ==
          parts.symbols.end())
        parts.aliases.push_back({letter, unknown});
    }
  }
  return parts;
}

data::VocabularyText spell_pieces(const SourceTokens& tokens) {
  Symbols symbols;
  for (int64_t id = 0; id < tokens.size; ++id) {
    if (is_marker(tokens, id)) continue;
    const std::string text = id < std::ssize(tokens.texts) ? tokens.texts[id] : "";
    if (text.empty() || is_special(text)) {
      symbols.add_unwritten(text.empty() ? fmt::format("<unused {}>", id) : text, id);
    } else {
      symbols.add(text, id);
    }
  }
  return symbols.parts();
}

data::VocabularyText spell_ids(const SourceTokens& tokens) {
  data::VocabularyText parts;
  for (int64_t id = 0; id < tokens.size; ++id) {
    if (is_marker(tokens, id)) continue;
    parts.symbols.push_back(std::to_string(id));
    parts.source_ids.push_back(id);
  }
  parts.numbers = true;
  return parts;
}

}  // namespace

SourceTokens tokens_of_texts(std::vector<std::string> texts, int64_t size) {
  SourceTokens tokens;
  tokens.size = size;
  tokens.bos = find_text(texts, {"[CLS]", "<cls>", "<s>", "<bos>", "<|startoftext|>", "<|endoftext|>"});
  tokens.eos = find_text(texts, {"[SEP]", "<eos>", "</s>", "<|endoftext|>"});
  tokens.pad = find_text(texts, {"[PAD]", "<pad>"});
  tokens.mask = find_text(texts, {"[MASK]", "<mask>"});
  tokens.unknown = find_text(texts, {"[UNK]", "<unk>"});
  bool letters = false, all_short = true;
  for (const std::string& text : texts) {
    if (text.empty() || is_special(text)) continue;
    letters = true;
    all_short = all_short && text.size() == 1;
  }
  tokens.spelling = !letters    ? SourceTokens::Spelling::unknown
                    : all_short ? SourceTokens::Spelling::letters
                                : SourceTokens::Spelling::words;
  tokens.texts = std::move(texts);
  return tokens;
}

SourceTokens esm_tokens(int64_t size) {
  std::vector<std::string> texts = {"<cls>", "<pad>", "<eos>", "<unk>"};
  for (const char letter : std::string_view("LAGVSERTIDPKQNFYMHWCXBUZO.-")) texts.emplace_back(1, letter);
  texts.insert(texts.end(), {"<null_1>", "<mask>"});
  return tokens_of_texts(std::move(texts), size);
}

TokenPlan plan_tokens(const SourceTokens& tokens, Tokenizer tokenizer, const std::string& name) {
  check<UsageError>(tokens.size <= kMostTokens,
                    "the source has {} tokens, but ids here have 16 bits, so that at most {} fit",
                    tokens.size, kMostTokens);
  using Spelling = SourceTokens::Spelling;
  const bool ids = tokenizer == Tokenizer::ids;
  check<UsageError>(
      ids || tokens.spelling == Spelling::letters || tokens.spelling == Spelling::pieces,
      "the source {}: give --tokenizer ids, and the model reads the source's token ids as numbers "
      "between white space",
      tokens.spelling == Spelling::words
          ? "cuts texts into WordPiece, BPE or unigram pieces, and no tokenizer of this kind is "
            "built in"
          : "comes without its tokens");
  for (const auto& marker : markers_of(tokens)) {
    check<InputError>(!marker || (*marker >= 0 && *marker < tokens.size),
                      "the source names {} as the id of a marker, but has {} tokens", marker.value_or(0),
                      tokens.size);
  }
  check<InputError>(tokens.size > 0, "the source has no tokens");
  TokenPlan plan;
  data::VocabularyText parts = ids                                    ? spell_ids(tokens)
                               : tokens.spelling == Spelling::letters ? spell_letters(tokens)
                                                                      : spell_pieces(tokens);
  parts.name = name;
  std::vector<std::string> absent;
  const std::array<const char*, 4> names = {"BOS", "EOS", "PAD", "MASK"};
  const auto markers = markers_of(tokens);
  for (size_t i = 0; i < markers.size(); ++i) {
    parts.source_ids.push_back(markers[i].value_or(-1));
    if (!markers[i]) absent.emplace_back(names[i]);
  }
  if (!absent.empty()) {
    plan.notes.push_back(fmt::format(
        "the source has no {}: such a marker has an embedding of zeros here and is never predicted",
        fmt::join(absent, ", ")));
  }
  plan.vocabulary = data::Vocabulary::from_parts(std::move(parts));
  return plan;
}

at::Tensor TokenPlan::rows(const at::Tensor& source, double fill) const {
  std::vector<at::Tensor> rows;
  const at::Tensor absent = at::full(source.sizes().slice(1), fill, source.options());
  for (const int64_t id : vocabulary.source_ids()) rows.push_back(id >= 0 ? source[id] : absent);
  return at::stack(rows);
}

at::Tensor TokenPlan::bias(const at::Tensor& source) const {
  at::Tensor bias = rows(source, kNeverPredicted);
  // One token of the source may be two markers here (GPT-2's <|endoftext|>): it is predicted as the end.
  if (vocabulary.source_ids()[vocabulary.bos()] == vocabulary.source_ids()[vocabulary.eos()])
    bias[vocabulary.bos()] = kNeverPredicted;
  return bias;
}

}  // namespace performer::convert
