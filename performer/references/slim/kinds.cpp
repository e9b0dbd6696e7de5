// SPDX-License-Identifier: Apache-2.0
// Kinds of SLiM Performer.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include "performer/base/error.h"
#include "performer/references/reference_kind.h"
#include "performer/references/slim/attention.h"

namespace performer::references::slim {
namespace {

at::Tensor rows_of_heads(const ReferenceDraw& draw) {
  check<UsageError>(draw.features % draw.head_size == 0,
                    "slim-favor has a multiple of the head size as features, found {} for head size {}",
                    draw.features, draw.head_size);
  return draw_projection(draw.heads, draw.features / draw.head_size, draw.head_size,
                         {draw.seed, draw.layer, 0, draw.redraw});
}

// favor+_K by the size of the projection.
at::Tensor favor(const ReferenceCall& call) {
  check<UsageError>(call.projection->size(1) % call.query.size(-1) == 0,
                    "slim-favor needs a projection [heads, K head_size, head_size]");
  const std::string type = fmt::format("favor+_{}", call.projection->size(1) / call.query.size(-1));
  return attention(call.query, call.key, call.value, type, call.projection, call.causal);
}

}  // namespace

// Both are causal only there, and add 1e-16 to the denominator.
std::vector<ReferenceKind> kinds() {
  ReferenceKind exponential =
      function_row("slim-favor", "SLiM Performer favor+: exp(u - |x|^2 / 2), unshifted", "favor-softmax");
  exponential.projected = exponential.projection_each_head = true;
  exponential.bidirectional = false;
  exponential.features = [](int64_t head_size) { return head_size; };
  exponential.draw = rows_of_heads;
  exponential.attend = favor;

  ReferenceKind relu =
      function_row("slim-relu", "SLiM Performer relu: relu(x), without epsilon", "favor-relu");
  relu.bidirectional = false;
  relu.attend = [](const ReferenceCall& call) {
    return attention(call.query, call.key, call.value, "relu", {}, call.causal);
  };
  return {exponential, relu};
}

}  // namespace performer::references::slim
