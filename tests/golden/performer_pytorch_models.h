// SPDX-License-Identifier: Apache-2.0
// Options, inputs and outputs of performer-pytorch's recorded models, for the tests of its groups.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>

#include "performer/references/performer_pytorch/encoder_decoder.h"
#include "performer/references/performer_pytorch/language_model.h"
#include "performer/references/performer_pytorch/stack.h"
#include "tests/golden/golden.h"

namespace performer::golden::performer_pytorch {

using namespace references::performer_pytorch;  // NOLINT: what is tested

// Keyword arguments of the reference's classes. An unknown one throws InputError, so that
// no recorded option is ignored. Keys in kDescription say how a case was recorded and are skipped.
PerformerStackOptions stack_options(const nlohmann::json& options);
PerformerLMOptions lm_options(const nlohmann::json& options);
// {"ignore_index", "pad"}, as cases of losses have them.
AutoregressiveOptions loss_options(const nlohmann::json& loss);
EncoderDecoderOptions encoder_decoder_options(const nlohmann::json& options);

// Input `name` as the model gets it: numbers in `type`, integers as int64, masks as bool; nothing if the case
// has no such input.
at::Tensor number(const Case& item, const std::string& name, at::ScalarType type);
at::Tensor integer(const Case& item, const std::string& name);
std::optional<at::Tensor> mask(const Case& item, const std::string& name);

// The weights "w.NAME" of a case by the reference's names.
std::map<std::string, at::Tensor> weights(const Case& item);

// Compares all outputs of a case: `main` is held to `main_name`, "dw.NAME" to the gradient of our tensor of
// that name in `model`, "d<input>" to the gradients of `inputs`. Runs the backward pass of sum(main * cot),
// or of main itself without a cot, when gradients are recorded. Any other output is a test failure.
void expect_all(Group& group, const Case& item, const std::string& main_name, const at::Tensor& main,
                const torch::nn::Module& model, const std::map<std::string, at::Tensor>& inputs,
                const std::function<std::string(const std::string&)>& our_name);

}  // namespace performer::golden::performer_pytorch
