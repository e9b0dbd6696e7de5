// SPDX-License-Identifier: Apache-2.0
// A source's tokens as a vocabulary of ours, and its rows in our order.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "performer/data/vocabulary.h"

namespace performer::convert {

// The tokens of a source in the order of their ids, and which of them are markers. How the texts of tokens
// become tokens of a text:
//   letters  each symbol is one byte, and every byte of a sequence is one token (proteins, DNA)
//   pieces   symbols are texts of several bytes; the longest that fits is taken
//   words    WordPiece, BPE or unigram pieces, for which a tokenizer is needed that is not here
//   unknown  nothing is known but how many there are
struct SourceTokens {
  enum class Spelling { letters, pieces, words, unknown };
  Spelling spelling = Spelling::unknown;
  int64_t size = 0;                // rows of the embedding
  std::vector<std::string> texts;  // at most `size`; empty when unknown
  std::optional<int64_t> bos, eos, pad, mask, unknown;
};

// Tokens by their texts: markers are found under the names of BERT ([CLS] ...), of RoBERTa and fairseq
// (<s> ...), and of ESM (<cls> ...).
SourceTokens tokens_of_texts(std::vector<std::string> texts, int64_t size);
// The tokenizer beside a source: vocab.txt, tokenizer.json, vocab.json or dict.txt (fairseq) in `directory`.
// Without any of them the spelling is unknown. Throws InputError for a damaged one, for one of more tokens
// than `size`, and for an id given twice.
SourceTokens read_tokens(const std::string& directory, int64_t size);
// The 33 tokens of ESM-2.
SourceTokens esm_tokens(int64_t size);

// How texts become tokens of the model.
enum class Tokenizer {
  automatic,  // by letters or pieces
  ids,        // texts are ids of the source, written as numbers
};

// A vocabulary and where its rows come from.
struct TokenPlan {
  data::Vocabulary vocabulary = data::Vocabulary::protein();
  std::vector<std::string> notes = {};

  // Rows of a source tensor [size, ...] in the order of the vocabulary; rows that the source does not have
  // are `fill`.
  at::Tensor rows(const at::Tensor& source, double fill = 0) const;
  // The same for the bias of the output layer: what the source does not predict is never predicted.
  at::Tensor bias(const at::Tensor& source) const;
};
// Throws UsageError for words with Tokenizer::automatic, and for more tokens than ids of 16 bits name.
// `name` is that of the vocabulary.
TokenPlan plan_tokens(const SourceTokens& tokens, Tokenizer tokenizer, const std::string& name);

// What is added to the logit of a token that a source does not have.
inline constexpr double kNeverPredicted = -1e4;

}  // namespace performer::convert
