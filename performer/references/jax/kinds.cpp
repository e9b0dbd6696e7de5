// SPDX-License-Identifier: Apache-2.0
// Kinds of google-research's fast_attention in JAX.
#include "performer/references/jax/attention.h"
#include "performer/references/reference_kind.h"

namespace performer::references::jax {
namespace {

auto softmax_attention(bool nonnegative, KeyShift shift) {
  return [=](const ReferenceCall& call) {
    SoftmaxAttentionOptions options;
    options.nonnegative = nonnegative;
    options.key_shift = shift;
    options.unidirectional = call.causal;
    return fast_softmax_attention(call.query, call.key, call.value, *call.projection, options);
  };
}

at::Tensor relu_attention(const ReferenceCall& call) {
  GeneralizedAttentionOptions options;
  options.unidirectional = call.causal;
  return fast_generalized_attention(call.query, call.key, call.value, call.projection, options);
}

}  // namespace

std::vector<ReferenceKind> kinds() {
  // make_fast_softmax_attention: epsilon 1e-6 inside 1/sqrt(M), keys shifted by their largest u, denominator
  // + 2e-6 where at most 1e-6; a mask as MultiHeadDotProductFastAttention has it.
  ReferenceKind softmax =
      softmax_row("jax-softmax", "google-research fast_attention (JAX): positive features of softmax");
  softmax.key_mask = KeyMask::values;
  softmax.attend = softmax_attention(true, KeyShift::sequence);

  // The same with nonnegative_features=False; denominators may vanish.
  ReferenceKind trigonometric =
      softmax_row("jax-trig", "google-research fast_attention (JAX): cosines and sines");
  trigonometric.key_mask = KeyMask::values;
  trigonometric.attend = softmax_attention(false, KeyShift::sequence);

  // make_fast_generalized_attention: without a projection unless one is given (features_type ortho).
  ReferenceKind relu =
      function_row("jax-relu", "google-research fast_attention (JAX): relu + 1e-3", "favor-relu");
  relu.projection_optional = true;
  relu.key_mask = KeyMask::values;
  relu.draw = uncorrected_rows;
  relu.attend = relu_attention;

  // Keys are shifted by the largest u of the whole batch, so that sequences reach each other.
  ReferenceKind softmax_2020 = softmax_row(
      "jax-2020-softmax", "google-research fast_self_attention of 2020 (JAX): positive features of softmax");
  softmax_2020.attend = softmax_attention(true, KeyShift::tensor);

  return {softmax, trigonometric, relu, softmax_2020};
}

}  // namespace performer::references::jax
