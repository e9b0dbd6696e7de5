// SPDX-License-Identifier: Apache-2.0
// How large the model of a configuration is, told without building it: a configuration from outside may ask
// for more than any memory holds.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include <ATen/core/Tensor.h>

#include "performer/nn/config.h"

namespace performer {

// At least as many numbers as building a language model of a validated configuration holds at one time: its
// parameters and buffers, what drawing projections takes, and a share for each layer's modules.
double building_numbers(const ModelConfig& model, const AttentionConfig& attention, int64_t vocabulary);

// What building may take beyond twice the numbers that the weights have: 2^24 numbers, 64 MiB in single
// precision.
inline constexpr double kSpareNumbers = 1 << 24;

// Throws InputError unless building the model takes at most twice the numbers of `weights` and kSpareNumbers
// more. Shapes are not compared: set_model_state() does that, once the model is there.
void check_weights_suffice(const ModelConfig& model, const AttentionConfig& attention, int64_t vocabulary,
                           const std::map<std::string, at::Tensor>& weights, const std::string& source);

}  // namespace performer
