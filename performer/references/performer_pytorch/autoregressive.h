// SPDX-License-Identifier: Apache-2.0
// Training and sampling of causal Performer language models: the `AutoregressiveWrapper` of performer-pytorch
// and what we do instead.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "performer/references/performer_pytorch/language_model.h"

namespace performer::references::performer_pytorch {

// performer-pytorch 1.1.4's rules for the next token, quirks included; logits [B, V] float -> [B, V].
namespace pytorch_sampling {

// The int((1 - threshold) V) largest logits of each row, the others -infinity: a threshold of 0.9 keeps a
// tenth of the vocabulary, and where that is no token all logits are -infinity. Throws UsageError for a
// threshold outside of [0, 1].
at::Tensor keep_top_k(const at::Tensor& logits, double threshold);
// The most probable tokens up to the one with which their probability exceeds 1 - threshold: a threshold of
// 0.9 keeps 10 % of the probability, not 90 %.
at::Tensor keep_top_p(const at::Tensor& logits, double threshold);
// Logits of all tokens found anywhere in `context` (int64, any row of the batch), positive or negative,
// divided by theta: negative ones become more probable.
at::Tensor penalize_repetition(const at::Tensor& logits, const at::Tensor& context, double theta);

}  // namespace pytorch_sampling

struct DecodingOptions {
  double temperature = 1;
  int64_t end_token = -1;         // -1: none, every row gets all its tokens
  double repetition_penalty = 1;  // compatible mode: no effect up to 1, as there
  int64_t repetition_window = 32;

  // Our own mode only.
  int64_t top_k = 0;  // keep the k most probable tokens (ties with the k-th kept); 0: all
  double top_p = 1;   // keep the smallest set with at least this probability
  uint64_t seed = 0;  // row i draws from its own stream (seed, i)

  // Compatible mode only.
  std::string filter = "top_k";  // or top_p
  double filter_threshold = 0.9;
};
void validate(const DecodingOptions& options);  // throws UsageError naming the option

struct AutoregressiveOptions {
  int64_t ignore_index = 0;  // targets that do not count
  int64_t pad_token = 0;     // our own mode: what follows a row's end token
};

// A causal model, as submodule `net`. Its stack.compatible chooses the mode.
//
// compatible, as performer-pytorch 1.1.4:
//   loss: mean cross-entropy over targets other than ignore_index (NaN where there is none); a mask changes
//   attention only.
//   generate: the whole window of the last max_length tokens again for each token; repetition penalty,
//   filter, temperature in this order; draws from LibTorch's default generator; the last logits of each row
//   count, so shorter prompts must be padded on the left. The penalty counts the tokens of the last
//   `repetition_window` rows of the batch, not of the last tokens. It stops early only when all rows draw the
//   end token in the same step; a row goes on after its end token.
//
// our own:
//   loss: targets that the mask hides do not count either; 0 where no target counts.
//   generate: each token is read once, with a state that does not grow; only beyond max_length are the last
//   max_length tokens read again for each. Each row as if alone: its masked tokens do not exist, wherever
//   they stand; temperature (0: the most probable token, the smallest id among equals), repetition penalty
//   over the row's own last tokens (positive logits divided, negative ones multiplied), top-k, top-p; a row
//   ends with its end token.
class AutoregressiveImpl : public torch::nn::Module {
 public:
  // Throws UsageError for a model that is not causal or has no output layer.
  explicit AutoregressiveImpl(PerformerLM net, const AutoregressiveOptions& options = {});

  // Mean loss (scalar) of tokens [B, T], T >= 2: each predicts the next. A mask [B, T] or [B, T - 1].
  at::Tensor forward(const PerformerLMInputs& inputs);

  // `steps` further tokens of start.tokens [B, T]: int64 [B, up to steps], without the start. In evaluation
  // mode and without gradients; the mode of the model is restored.
  at::Tensor generate(const PerformerLMInputs& start, int64_t steps, const DecodingOptions& options = {});

  PerformerLM net() const { return net_; }
  const AutoregressiveOptions& options() const { return options_; }

 private:
  at::Tensor generate_compatible(const PerformerLMInputs& start, int64_t steps,
                                 const DecodingOptions& options);
  at::Tensor generate_own(const PerformerLMInputs& start, int64_t steps, const DecodingOptions& options);

  AutoregressiveOptions options_;
  PerformerLM net_{nullptr};
};
TORCH_MODULE(Autoregressive);

// Our own rules for one row: logits [V] to probabilities [V] (float64) after all filters; `recent` are the
// row's tokens so far. Throws Error when a logit is NaN or no token is possible.
at::Tensor next_token_probabilities(const at::Tensor& logits, const std::vector<int64_t>& recent,
                                    const DecodingOptions& options);

}  // namespace performer::references::performer_pytorch
