// SPDX-License-Identifier: Apache-2.0
// The kind of darkformer-pytorch.
#include "performer/references/darkformer/attention.h"
#include "performer/references/reference_kind.h"

namespace performer::references::darkformer {

// Its geometry is the identity, as at the start of training; when causal the shifts run along.
std::vector<ReferenceKind> kinds() {
  ReferenceKind kind =
      function_row("darkformer", "darkformer-pytorch: positive features of a geometry that is the identity",
                   "favor-geometry");
  kind.projected = true;
  kind.key_mask = KeyMask::features;
  kind.features = default_features;
  kind.draw = [](const ReferenceDraw& draw) {  // Haar-distributed blocks, one projection for all heads
    return draw_projection(draw.features, draw.head_size, draw.seed, draw.layer, draw.redraw);
  };
  kind.attend = [](const ReferenceCall& call) {
    AttentionOptions options;
    options.causal = call.causal;
    options.key_mask = call.key_mask;
    return attention(call.query, call.key, call.value, {*call.projection, {}, {}}, options);
  };
  return {kind};
}

}  // namespace performer::references::darkformer
