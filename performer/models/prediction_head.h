// SPDX-License-Identifier: Apache-2.0
// What a fine-tuned model predicts beside tokens: a class or a number for a sequence or for each of its
// tokens, by one linear layer over the final-norm output.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>

#include <cstdint>
#include <string>
#include <vector>

#include "performer/models/safetensors.h"

namespace performer {

// sequence-classification, sequence-regression, token-classification, token-regression
const std::vector<std::string>& head_kinds();

struct HeadConfig {
  std::string kind = "sequence-classification";
  // Sequences: mean over the symbols, markers left out, or first, the marker before them.
  std::string pool = "mean";
  std::vector<std::string> classes = {};  // names, in the order of the outputs
  double mean = 0, scale = 1;             // numbers are predicted as mean + scale * output

  bool classifies() const { return kind.ends_with("classification"); }
  bool per_token() const { return kind.starts_with("token"); }
  int64_t outputs() const { return classifies() ? static_cast<int64_t>(classes.size()) : 1; }
};
// Throws UsageError for an unknown kind or pooling, fewer than two classes, and a scale that is not above 0.
void validate(const HeadConfig& config);

class PredictionHeadImpl : public torch::nn::Module {
 public:
  // Weights are Xavier-uniform from LibTorch's generator, biases 0.
  PredictionHeadImpl(const HeadConfig& config, int64_t width);

  // Pooled or token rows [N, width] -> float32 [N, outputs]: logits of classes, or a number before it is
  // scaled.
  at::Tensor forward(const at::Tensor& rows) const;
  // The same for users: probabilities of classes, or the number [N, 1].
  at::Tensor predictions(const at::Tensor& outputs) const;

  const HeadConfig& config() const { return config_; }

 private:
  HeadConfig config_;
  torch::nn::Linear dense_{nullptr};
};
TORCH_MODULE(PredictionHead);

// The content of head.safetensors, and back. parse_head() throws InputError naming `source` for what is
// missing, unknown or of another shape.
TensorFile head_file(const PredictionHead& head);
PredictionHead parse_head(const TensorFile& file, int64_t width, const std::string& source);

}  // namespace performer
