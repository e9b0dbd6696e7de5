// SPDX-License-Identifier: Apache-2.0
#include "performer/references/reference_kind.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "performer/base/error.h"
#include "performer/references/jax/attention.h"

namespace performer::references {

using at::Tensor;

namespace {

void check_shapes(const std::string& name, const ReferenceCall& call) {
  const Tensor &query = call.query, &key = call.key, &value = call.value;
  check<UsageError>(
      query.dim() == 4 && key.dim() == 4 && value.dim() == 4,
      "{}: query, key and value must be [B, T, H, D], [B, S, H, D] and [B, S, H, E], found {}, {} and {} "
      "dimensions",
      name, query.dim(), key.dim(), value.dim());
  check<UsageError>(query.size(0) == key.size(0) && query.size(2) == key.size(2) &&
                        query.size(3) == key.size(3) && key.sizes().slice(0, 3) == value.sizes().slice(0, 3),
                    "{}: query [{}], key [{}] and value [{}] do not agree", name,
                    fmt::join(query.sizes(), ", "), fmt::join(key.sizes(), ", "),
                    fmt::join(value.sizes(), ", "));
  check<UsageError>(!call.causal || query.size(1) == key.size(1),
                    "{}: causal attention needs as many keys as queries, found {} queries and {} keys", name,
                    query.size(1), key.size(1));
}

void check_direction(const ReferenceKind& kind, bool causal) {
  check<UsageError>(!causal || kind.causal, "{} has no causal form; use it bidirectionally", kind.name);
  check<UsageError>(causal || kind.bidirectional, "{} has no bidirectional form; use it causally", kind.name);
}

void check_projection(const ReferenceKind& kind, const ReferenceCall& call) {
  if (!call.projection) {
    check<UsageError>(!kind.projected || kind.projection_optional,
                      "{} needs a projection: draw one with draw_projection", kind.name);
    return;
  }
  check<UsageError>(kind.projected || kind.projection_optional, "{} has no projection; leave it out",
                    kind.name);
  const Tensor& w = *call.projection;
  check<UsageError>(w.dim() == (kind.projection_each_head ? 3 : 2) && w.size(-1) == call.query.size(-1),
                    "{} needs a projection [{}rows, {}], found [{}]", kind.name,
                    kind.projection_each_head ? "heads, " : "", call.query.size(-1),
                    fmt::join(w.sizes(), ", "));
}

void check_mask(const ReferenceKind& kind, const Tensor& mask, const Tensor& key) {
  check<UsageError>(kind.key_mask != KeyMask::none, "{} has no key mask; leave out `key_mask`", kind.name);
  check<UsageError>(mask.scalar_type() == at::kBool && mask.dim() == 2 && mask.size(0) == key.size(0) &&
                        mask.size(1) == key.size(1),
                    "{}: key_mask must be bool [{}, {}]", kind.name, key.size(0), key.size(1));
}

}  // namespace

Tensor draw_projection(const ReferenceKind& kind, ReferenceDraw draw) {
  check<UsageError>(draw.features <= 0 || kind.draw, "{} has no projection; ask for 0 features", kind.name);
  check<UsageError>(
      draw.heads >= 1 && draw.head_size >= 1 && draw.features >= 0,
      "{}: heads and head size must be at least 1 and features not negative, found {}, {} and {}", kind.name,
      draw.heads, draw.head_size, draw.features);
  if (draw.features == 0 && kind.features) draw.features = kind.features(draw.head_size);
  return kind.draw && draw.features > 0 ? kind.draw(draw) : Tensor();
}

Tensor attend(const ReferenceKind& kind, const ReferenceCall& given) {
  ReferenceCall call = given;
  if (call.projection && !call.projection->defined()) call.projection = std::nullopt;
  if (call.key_mask && !call.key_mask->defined()) call.key_mask = std::nullopt;
  check_direction(kind, call.causal);
  check_shapes(kind.name, call);
  check_projection(kind, call);
  if (call.key_mask) {
    check_mask(kind, *call.key_mask, call.key);
    if (kind.key_mask == KeyMask::values) {
      call.value = call.value.masked_fill(call.key_mask->logical_not().unsqueeze(-1).unsqueeze(-1), 0);
      call.key_mask = std::nullopt;
    }
  }
  return kind.attend(call);
}

Tensor uncorrected_rows(const ReferenceDraw& draw) {
  return jax::draw_projection({draw.features, draw.head_size}, {draw.seed, draw.layer, 0, draw.redraw});
}

ReferenceKind softmax_row(const std::string& name, const std::string& summary) {
  ReferenceKind row;
  row.name = name;
  row.summary = summary;
  row.instead = "favor-softmax";
  row.projected = true;
  row.prefix_invariant = false;
  row.features = [](int64_t) { return 256; };
  row.draw = uncorrected_rows;
  return row;
}

ReferenceKind function_row(const std::string& name, const std::string& summary, const std::string& instead) {
  ReferenceKind row;
  row.name = name;
  row.summary = summary;
  row.instead = instead;
  return row;
}

}  // namespace performer::references
