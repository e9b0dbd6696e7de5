// SPDX-License-Identifier: Apache-2.0
// Kinds of performer-pytorch 1.1.4.
#include "performer/references/performer_pytorch/fast_attention.h"
#include "performer/references/reference_kind.h"

namespace performer::references::performer_pytorch {
namespace {

auto attention_of(bool generalized, bool no_projection) {
  return [=](const ReferenceCall& call) {
    FastAttentionOptions options;
    options.causal = call.causal;
    options.generalized = generalized;
    options.no_projection = no_projection;
    return fast_attention(call.query, call.key, call.value, call.projection.value_or(at::Tensor()), options);
  };
}

}  // namespace

std::vector<ReferenceKind> kinds() {
  // As jax-softmax with epsilon 1e-4, no gradient through shifts, no guard, causal key sums + 1e-6 a feature.
  ReferenceKind softmax = softmax_row("performer-pytorch-softmax",
                                      "performer-pytorch 1.1.4 FastAttention: positive features of softmax");
  softmax.key_mask = KeyMask::values;
  softmax.features = default_features;
  softmax.attend = attention_of(false, false);

  // relu(W x) + 1e-3 of x D^(-1/4).
  ReferenceKind generalised =
      function_row("performer-pytorch-generalised",
                   "performer-pytorch 1.1.4 FastAttention, generalized_attention: relu + 1e-3", "favor-relu");
  generalised.projected = true;
  generalised.key_mask = KeyMask::values;
  generalised.features = default_features;
  generalised.draw = uncorrected_rows;
  generalised.attend = attention_of(true, false);

  // Queries softmaxed over features, keys over tokens; causal: exp(k), which overflows for large keys.
  ReferenceKind no_projection = function_row(
      "performer-pytorch-no-projection",
      "performer-pytorch 1.1.4 FastAttention, no_projection: softmaxes of queries and of keys", "favor-exp");
  no_projection.key_mask = KeyMask::values;
  no_projection.attend = attention_of(false, true);

  return {softmax, generalised, no_projection};
}

}  // namespace performer::references::performer_pytorch
