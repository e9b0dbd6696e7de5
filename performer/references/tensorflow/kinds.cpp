// SPDX-License-Identifier: Apache-2.0
// Kinds of google-research's fast_attention in TensorFlow.
#include "performer/references/reference_kind.h"
#include "performer/references/tensorflow/attention.h"

namespace performer::references::tensorflow {
namespace {

auto attention_of(const char* kernel) {
  return [=](const ReferenceCall& call) {
    FavorOptions options;
    options.kernel = kernel;
    options.causal = call.causal;
    return favor_attention(call.query, call.key, call.value, call.projection, options).output;
  };
}

}  // namespace

std::vector<ReferenceKind> kinds() {
  // As jax-softmax without a guard of the denominator.
  ReferenceKind softmax = softmax_row(
      "tensorflow-softmax", "google-research fast_attention (TensorFlow): positive features of softmax");
  softmax.attend = attention_of("softmax");

  // With a projection relu(W x / sqrt(M)) + 1e-3.
  ReferenceKind relu = function_row("tensorflow-relu",
                                    "google-research fast_attention (TensorFlow): relu + 1e-3", "favor-relu");
  relu.projection_optional = true;
  relu.draw = uncorrected_rows;
  relu.attend = attention_of("relu");

  return {softmax, relu};
}

}  // namespace performer::references::tensorflow
