// SPDX-License-Identifier: Apache-2.0
// Models of google-research protein_lm (FlaxLM, FlaxBERT) as models of ours.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "performer/models/language_model.h"

namespace performer::references::protein_lm {

// One parameter: our name, the reference's path, and how its layout becomes ours.
struct ProteinLMParameter {
  std::string ours, theirs;
  enum class Layout { same, dense, heads_in, heads_out, row } layout;
  at::Tensor to_ours(const at::Tensor& theirs_tensor) const;
  // The inverse, for gradients: `like` has the shape of the reference's tensor.
  at::Tensor to_theirs(const at::Tensor& ours_tensor, const at::Tensor& like) const;
};

std::vector<ProteinLMParameter> protein_lm_parameters(const ModelConfig& model);

// A model with the reference's parameters, named by path ("embed/embedding",
// "Transformer1DBlock_1/LayerNorm_0/scale",
// ...) in its layouts ([in, out] kernels, [width, heads, head size] projections). Sizes and positions are
// read off the tensors; objective, norm_epsilon and dropout come from `model`. `attention` must name the same
// attention: exact, the kind jax-softmax, or favor-relu, whose features are the reference's. `projection`
// [M, D] is the random matrix of all layers and heads there, if it has one. A reference model whose attention
// ignores that it is causal (FAVOR built without `unidirectional`) is one of objective `masked` here. Throws
// InputError naming the parameter that is missing, superfluous or of another shape.
LanguageModel import_protein_lm(const std::map<std::string, at::Tensor>& parameters, ModelConfig model,
                                AttentionConfig attention, const std::optional<at::Tensor>& projection = {});

}  // namespace performer::references::protein_lm
