// SPDX-License-Identifier: Apache-2.0
// Training and sampling of causal language models: the `AutoregressiveWrapper` of performer-pytorch 1.1.4.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <string>

#include "performer/references/performer_pytorch/language_model.h"

namespace performer::references::performer_pytorch {

struct DecodingOptions {
  double temperature = 1;
  int64_t end_token = -1;         // -1: none
  double repetition_penalty = 1;  // no effect up to 1
  int64_t repetition_window = 32;
  std::string filter = "top_k";  // or top_p, see sampling.h
  double filter_threshold = 0.9;
};
void validate(const DecodingOptions& options);  // throws UsageError naming the option

struct AutoregressiveOptions {
  int64_t ignore_index = 0;  // targets that do not count
};

// A causal model, as submodule `net`.
//
// The loss is the mean cross-entropy over targets other than ignore_index (NaN where there is none); a mask
// changes attention only.
//
// Generation reads the whole window of the last max_length tokens again for each token; repetition penalty,
// filter and temperature follow in this order; draws come from LibTorch's default generator. The last logits
// of each row count, so shorter prompts must be padded on the left. The penalty counts the tokens of the last
// `repetition_window` rows of the batch, not of the last tokens. It stops early only when all rows draw the
// end token in the same step; a row goes on after its end token.
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
  AutoregressiveOptions options_;
  PerformerLM net_{nullptr};
};
TORCH_MODULE(Autoregressive);

}  // namespace performer::references::performer_pytorch
