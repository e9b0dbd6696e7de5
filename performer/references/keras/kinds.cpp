// SPDX-License-Identifier: Apache-2.0
// Kinds of the Keras KernelAttention layer.
#include <cmath>

#include "performer/references/keras/attention.h"
#include "performer/references/reference_kind.h"

namespace performer::references::keras {
namespace {

auto attention_of(const std::string& transform) {
  return [=](const ReferenceCall& call) {
    AttentionOptions options;
    options.feature_transform = transform;
    options.scale = 1 / std::sqrt(static_cast<double>(call.query.size(-1)));
    // Causal there are windows of chunks alone: single tokens, and a window of the whole sequence.
    if (call.causal) {
      options.window.emplace();
      options.window->window_length = call.query.size(1);
    }
    std::optional<at::Tensor> mask;
    if (call.key_mask) mask = call.key_mask->to(call.query.scalar_type());
    return compute_attention(call.query, call.key, call.value, options, call.projection, mask);
  };
}

ReferenceKind exponential_row(const std::string& transform, const std::string& what) {
  ReferenceKind row = softmax_row("keras-" + transform, "Keras KernelAttention, " + transform + ": " + what);
  row.key_mask = KeyMask::features;
  row.attend = attention_of(transform);
  return row;
}

// f(W x) / sqrt(M) of x D^(-1/4), denominator + 1e-6.
ReferenceKind transform_row(const std::string& transform, const std::string& what,
                            const std::string& instead) {
  ReferenceKind row =
      function_row("keras-" + transform, "Keras KernelAttention, " + transform + ": " + what, instead);
  row.projected = row.projection_optional = true;
  row.key_mask = KeyMask::features;
  row.features = [](int64_t) { return 256; };
  row.draw = uncorrected_rows;
  row.attend = attention_of(transform);
  return row;
}

}  // namespace

std::vector<ReferenceKind> kinds() {
  // One maximum for all heads of an example, and denominator + 1e-6, under which outputs of ordinary inputs
  // shrink to almost nothing.
  ReferenceKind exp = exponential_row("exp", "exp(u - max) exp(-|x|^2 / 2)");
  exp.projection_optional = true;
  // For inputs of squared norm sqrt(D).
  ReferenceKind expmod = exponential_row("expmod", "exp(u - max) exp(-sqrt(D) / 2)");
  expmod.projection_optional = true;
  // Statistics of the whole sequence, masked keys included; inputs scaled twice (kernel exp(q k / D)).
  ReferenceKind expplus = exponential_row("expplus", "optimal positive features");
  expplus.instead = "favor-oprf";

  return {exp,
          expmod,
          expplus,
          transform_row("relu", "relu + 1e-3", "favor-relu"),
          transform_row("elu", "elu + 1", "favor-elu+1"),
          transform_row("square", "squares", "favor-square"),
          transform_row("identity", "the projected inputs themselves", "favor-identity")};
}

}  // namespace performer::references::keras
