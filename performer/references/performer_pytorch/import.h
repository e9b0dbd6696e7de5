// SPDX-License-Identifier: Apache-2.0
// Weights of performer-pytorch 1.1.4 in our models.
#pragma once

#include <torch/nn/module.h>

#include <map>
#include <string>

namespace performer::references::performer_pytorch {

// Our name of a tensor in the state of the reference's Performer, PerformerLM, AutoregressiveWrapper or
// PerformerEncDec (for PerformerStack, PerformerLM, Autoregressive and EncoderDecoder); empty for tensors
// that the reference stores twice (proj_updater.instance...) and for its count of calls.
std::string performer_pytorch_name(const std::string& name);

// Copies the reference's weights into `model`, all or nothing: see import_weights. What a model has no place
// for, because it does not use it, is left out: an encoder's output layer, and its embedding when that is the
// decoder's. Throws InputError naming the tensor that is missing, unknown, of another shape, or said to be
// tied but different.
void import_performer_pytorch(torch::nn::Module& model, const std::map<std::string, at::Tensor>& weights);

}  // namespace performer::references::performer_pytorch
