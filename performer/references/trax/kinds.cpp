// SPDX-License-Identifier: Apache-2.0
// Kinds of Trax.
#include "performer/base/error.h"
#include "performer/references/reference_kind.h"
#include "performer/references/trax/attention.h"

namespace performer::references::trax {
namespace {

at::Tensor relu_attention(const ReferenceCall& call) {
  if (!call.causal) return favor_attention(call.query, call.key, call.value, {}, {}, call.key_mask);
  check<UsageError>(!call.key_mask, "trax-relu has no key mask when causal; leave out `key_mask`");
  return causal_favor_attention(call.query, call.key, call.value);
}

at::Tensor softmax_attention(const ReferenceCall& call) {
  return favor_attention(call.query, call.key, call.value, {.approximate_softmax = true}, call.projection,
                         call.key_mask);
}

}  // namespace

std::vector<ReferenceKind> kinds() {
  ReferenceKind relu = function_row("trax-relu", "Trax Favor and CausalFavor: relu + 1e-3", "favor-relu");
  relu.key_mask = KeyMask::features;
  relu.attend = relu_attention;

  // Features of unscaled inputs, which estimate exp(q k) without 1/sqrt(D); epsilon 1e-4.
  ReferenceKind softmax =
      softmax_row("trax-softmax", "Trax Favor with use_approximate_softmax: positive features of exp(q k)");
  softmax.key_mask = KeyMask::features;
  softmax.causal = false;
  softmax.attend = softmax_attention;

  return {relu, softmax};
}

}  // namespace performer::references::trax
