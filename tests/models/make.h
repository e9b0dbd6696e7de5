// SPDX-License-Identifier: Apache-2.0
// Small models and batches for the tests of this folder.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "performer/models/language_model.h"

namespace performer {

// One variant of a small model; everything that a test does not vary is as in the defaults.
struct Variant {
  std::string kind;
  std::string positions = "rotary";
  std::string norm = "pre";
  bool options = false;  // qk_norm, learned_temperature, attention_bias and tied_output
};

inline std::string variant_name(const Variant& variant) {
  std::string name =
      variant.kind + "_" + variant.positions + "_" + variant.norm + (variant.options ? "_options" : "");
  for (char& letter : name) letter = letter == '-' ? '_' : letter;
  return name;
}

inline ModelConfig small_model(const Variant& variant = {"favor-relu"}) {
  ModelConfig model;
  model.layers = 2;
  model.width = 24;
  model.heads = 2;
  model.ffn = 32;
  model.max_length = 200;
  model.positions = variant.positions;
  model.norm = variant.norm;
  model.attention_bias = model.tied_output = variant.options;
  return model;
}

inline AttentionConfig small_attention(const Variant& variant = {"favor-relu"}) {
  AttentionConfig attention;
  attention.kind = variant.kind;
  // The sums of few trigonometric features, which have signs, may cancel: then rounding decides.
  const int64_t features = variant.kind == std::string("favor-trigonometric") ? 512 : 16;
  if (nn::has_option(nn::find_kind(variant.kind), "features")) attention.set("features", features);
  attention.qk_norm = attention.learned_temperature = variant.options;
  return attention;
}

inline constexpr int64_t kVocabulary = 29;

// In evaluation mode.
inline LanguageModel make_model(const Variant& variant, const std::string& objective = "causal") {
  at::manual_seed(5);
  ModelConfig model = small_model(variant);
  model.objective = objective;
  LanguageModel made(model, small_attention(variant), kVocabulary);
  made->eval();
  return made;
}

inline at::Tensor random_tokens(at::IntArrayRef shape) {
  return at::randint(kVocabulary, shape, at::kLong);
}

// Rows without padding.
inline SequenceBatch rows(const at::Tensor& tokens) {
  SequenceBatch batch;
  batch.tokens = tokens;
  batch.positions = at::arange(tokens.size(1)).expand_as(tokens);
  return batch;
}

// Sequences [T_i] side by side.
inline SequenceBatch packed(const std::vector<at::Tensor>& sequences) {
  SequenceBatch batch;
  std::vector<at::Tensor> positions;
  std::vector<int64_t> bounds = {0};
  for (const at::Tensor& tokens : sequences) {
    positions.push_back(at::arange(tokens.size(0)));
    bounds.push_back(bounds.back() + tokens.size(0));
  }
  batch.tokens = at::cat(sequences).unsqueeze(0);
  batch.positions = at::cat(positions).unsqueeze(0);
  batch.cu_seqlens = at::tensor(bounds, at::kLong);
  return batch;
}

// Sequences as rows of the longest one's length, filled up with `pad`.
inline SequenceBatch padded(const std::vector<at::Tensor>& sequences, int64_t pad) {
  int64_t longest = 0;
  for (const at::Tensor& tokens : sequences) longest = std::max(longest, tokens.size(0));
  const int64_t count = static_cast<int64_t>(sequences.size());
  SequenceBatch batch = rows(at::full({count, longest}, pad, at::kLong));
  batch.key_mask = at::zeros({count, longest}, at::kBool);
  for (int64_t row = 0; row < count; ++row) {
    const at::Tensor& tokens = sequences[row];
    batch.tokens[row].narrow(0, 0, tokens.size(0)).copy_(tokens);
    (*batch.key_mask)[row].narrow(0, 0, tokens.size(0)).fill_(true);
  }
  return batch;
}

}  // namespace performer
