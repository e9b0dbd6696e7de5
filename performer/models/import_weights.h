// SPDX-License-Identifier: Apache-2.0
// Weights of other implementations into our modules.
#pragma once

#include <torch/nn/module.h>

#include <functional>
#include <map>
#include <string>

namespace performer {

// Copies `weights` into the parameters and buffers of `module`, by the module's own dotted names. `rename`
// turns a stored name into ours; an empty result leaves that tensor out. Types are converted, shapes must
// agree. Every parameter must be given, buffers may be. Throws InputError naming the tensor that is missing,
// unknown or of another shape; then nothing has been copied.
void import_weights(torch::nn::Module& module, const std::map<std::string, at::Tensor>& weights,
                    const std::function<std::string(const std::string&)>& rename = {});

}  // namespace performer
