// SPDX-License-Identifier: Apache-2.0
// How google-research's protein_lm turns sequences into batches (domains.py, seq_utils.py, data.py,
// models.py), for comparing with it and for models trained by it. What this project does instead, and why:
// docs/formats.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "performer/data/masking.h"

namespace performer::references::protein_lm {

using Tokens = std::vector<int64_t>;

struct VocabularyOptions {
  bool anomalous = true;                                 // B O U X Z after the 20 amino acids
  bool align = false;                                    // then the gaps . and -
  bool bos = true, eos = true, pad = true, mask = true;  // then the markers < > _ *
};

// One id a letter, in the order of the options.
class Vocabulary {
 public:
  explicit Vocabulary(const VocabularyOptions& options = {});

  const std::string& letters() const { return letters_; }
  int64_t size() const { return static_cast<int64_t>(letters_.size()); }
  // Ids of the markers; nothing for one that is left out.
  std::optional<int64_t> bos() const { return marker('<'); }
  std::optional<int64_t> eos() const { return marker('>'); }
  std::optional<int64_t> pad() const { return marker('_'); }
  std::optional<int64_t> mask() const { return marker('*'); }
  // Ids that are no marker: what masking draws replacements from.
  Tokens normal_tokens() const;

  // Throws InputError naming the first letter that has no id (J has none, lower case neither).
  Tokens encode(std::string_view text) const;
  // Letters of the ids, up to the first EOS with `stop_at_eos`. Throws InputError for another id, UsageError
  // for stopping at an EOS that the vocabulary does not have.
  std::string decode(std::span<const int64_t> tokens, bool stop_at_eos = false) const;

 private:
  std::optional<int64_t> marker(char letter) const;
  std::string letters_;
};

// Rows of `length`, padded by `value`: int64 [N, length]. Of longer sequences the last `length` tokens are
// kept.
at::Tensor pad_sequences(const std::vector<Tokens>& sequences, int64_t length, int64_t value);

// Whether a row is a sequence of the variable-length domain: known ids, nothing but EOS after an EOS, and
// between `min_length` and `length` tokens before it. Throws UsageError for a vocabulary without EOS.
bool is_valid(std::span<const int64_t> row, const Vocabulary& vocabulary, int64_t length,
              int64_t min_length = 0);

struct BatchOptions {
  int64_t length = 512;     // tokens of a sequence that are read, from its beginning; 0: all
  int64_t batch_size = 32;  // rows
  int64_t pack_length = 0;  // tokens of a row of concatenated sequences; 0: one sequence a row
};

// Batches int64 [batch_size, T] in order. One sequence a row: padded by PAD to `length` (0: to the longest of
// the batch), without EOS. Packed: each sequence followed by EOS, all of them cut into rows of `pack_length`.
// What does not fill a batch at the end is dropped. Markers are those of the default vocabulary. Throws
// UsageError for sizes below 1.
std::vector<at::Tensor> batches(const std::vector<Tokens>& sequences, const BatchOptions& options);

// What a model reads, what it is asked for, and which targets count; all int64 [B, T].
struct Example {
  at::Tensor inputs, targets, weights;
};

// Inputs are the tokens shifted right behind BOS (`shift` = false, mode "sample": the tokens themselves),
// targets the tokens; those that are `pad`, if given, do not count.
Example causal_example(const at::Tensor& tokens, int64_t bos, std::optional<int64_t> pad, bool shift = true);

// The draws of one masked example, all [B, T]; what they decide: data::corrupt().
struct MaskDraws {
  at::Tensor choose, mix;  // float32, uniform in [0, 1)
  at::Tensor replacement;  // int64, index of a normal token
};
// Targets are the tokens, and the chosen ones count. Without draws (mode "predict") nothing is masked and
// every position counts. Throws UsageError for a vocabulary without MASK.
Example masked_example(const at::Tensor& tokens, const Vocabulary& vocabulary,
                       const std::optional<MaskDraws>& draws, double rate = 0.15,
                       const data::Corruption& corruption = data::corruption_from_name("protein-lm"));

// Seed of the draws in evaluation: the sum of the ids, so that it depends on how sequences are batched.
int64_t evaluation_seed(const at::Tensor& tokens);

}  // namespace performer::references::protein_lm
