// SPDX-License-Identifier: Apache-2.0
// Every reference's attention by one name each: what a model that was trained there continues with, and what
// a comparison is made against. A preset computes the reference's own numbers, its epsilons, shifts, guards
// and masks included; for a new model each says which of our own kinds is right instead.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace performer::references {

// How a preset treats a key mask: refused, as the reference has none; values of masked keys are zero, but
// they stay in the denominator and in maxima; or features of masked keys are zero.
enum class KeyMask : uint8_t { none, values, features };

struct PresetTraits {
  std::string reproduces;            // the system and the call
  std::string instead;               // what a new model should use, and why
  std::string projection;            // what preset_projection draws; empty: nothing
  bool projected = false;            // draws a projection unless told otherwise
  bool projection_optional = false;  // works with and without one
  bool causal = true, bidirectional = true;
  // Causal outputs do not depend on later tokens. Where false, the largest feature of the whole sequence
  // reaches the past through an epsilon or a guard.
  bool prefix_invariant = true;
  KeyMask key_mask = KeyMask::none;
};

std::vector<std::string> preset_names();
// Throws UsageError naming the known presets for another, here and below.
const PresetTraits& preset_traits(const std::string& preset);

// The reference's default number of features for a head size; 0 where its default has no projection.
int64_t preset_features(const std::string& preset, int64_t head_size);

// The projection of a preset, drawn by our counter-based generator and named by (seed, layer, redraw), made
// of the Gaussians as the reference makes it (mostly from a QR whose signs are not corrected): [rows,
// head_size] float32, [heads, rows, head_size] for slim-favor. `features` 0: the default. Rows are the
// features, except half of them for fast-transformers-favor and fast-transformers-rff and half of features -
// 2 for fast-transformers-smoothed-rff, which must be even. Undefined when the preset has none, or by default
// has none.
at::Tensor preset_projection(const std::string& preset, int64_t heads, int64_t features, int64_t head_size,
                             int64_t seed, int64_t layer, int64_t redraw);

// Attention of query [B, T, H, D], key [B, S, H, D], value [B, S, H, E] -> [B, T, H, E]; key_mask bool [B,
// S], true keeps. With the reference's defaults; its other options are in the functions that the presets call
// (google.h, tensorflow.h, trax.h, keras_attention.h, lucidrains.h, fast_transformers.h, slim.h,
// darkformer.h). Differentiable. Throws UsageError for shapes that do not fit, a projection that is missing
// or has no use, and for a mask or a direction that the reference does not have.
at::Tensor preset_attention(const std::string& preset, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value, const std::optional<at::Tensor>& projection, bool causal,
                            const std::optional<at::Tensor>& key_mask = {});

}  // namespace performer::references
