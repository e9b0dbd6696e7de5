// SPDX-License-Identifier: Apache-2.0
// Kinds of pytorch-fast-transformers 0.4.0.
#include <ATen/ATen.h>

#include "performer/base/error.h"
#include "performer/references/fast_transformers/attention.h"
#include "performer/references/jax/attention.h"
#include "performer/references/reference_kind.h"

namespace performer::references::fast_transformers {
namespace {

// A map with the rows of the projection as its directions, and its n_dims from their number.
FeatureMap map_of(const std::string& map, const ReferenceCall& call) {
  FeatureMapOptions options;
  options.map = map;
  if (call.projection) {
    const int64_t rows = call.projection->size(0);
    options.n_dims = map == "generalized" ? rows : map == "smoothed-random-fourier" ? 2 * rows + 2 : 2 * rows;
  }
  FeatureMap made(options, call.query.size(-1));
  if (call.projection) {
    const at::NoGradGuard no_grad;
    made->to(call.query.scalar_type());
    made->named_buffers()["omega"].copy_(call.projection->t());
  }
  return made;
}

auto attention_of(const std::string& name) {
  return [=](const ReferenceCall& call) {
    FeatureMap map = map_of(name, call);
    const at::Tensor phi_q = map->forward(call.query), phi_k = map->forward(call.key);
    return call.causal ? causal_linear_attention(phi_q, phi_k, call.value, call.key_mask)
                       : linear_attention(phi_q, phi_k, call.value, call.key_mask);
  };
}

PhiloxStream stream_of(const ReferenceDraw& draw) {
  return PhiloxStream(static_cast<uint64_t>(draw.seed), static_cast<uint32_t>(draw.layer), 0,
                      static_cast<uint32_t>(draw.redraw));
}

// Directions of a QR without sign correction, whose lengths are those of the same block's rows; one
// projection for all heads.
at::Tensor orthogonal_rows(const ReferenceDraw& draw, int64_t rows) {
  PhiloxStream stream = stream_of(draw);
  return orthogonal_random_matrix(draw.head_size, rows, stream).t().contiguous();
}

at::Tensor pairs_of_rows(const ReferenceDraw& draw) {
  check<UsageError>(draw.features % 2 == 0, "fast-transformers-favor has pairs of features, found {}",
                    draw.features);
  return orthogonal_rows(draw, draw.features / 2);
}

// Gaussian rows, one projection for all heads: of each pair of features, `fewer` features not among them.
auto fourier_rows(int64_t fewer) {
  return [=](const ReferenceDraw& draw) {
    const int64_t rows = (draw.features - fewer) / 2;
    check<UsageError>(
        draw.features % 2 == 0 && rows >= 1,
        "random Fourier features of fast-transformers are an even number of at least {}, found {}", fewer + 2,
        draw.features);
    return jax::draw_projection({rows, draw.head_size, /*orthogonal=*/false},
                                {draw.seed, draw.layer, 0, draw.redraw});
  };
}

ReferenceKind row(const std::string& name, const std::string& what, const std::string& instead,
                  const std::string& map, std::function<at::Tensor(const ReferenceDraw&)> draw) {
  ReferenceKind kind = function_row("fast-transformers-" + name, "fast-transformers 0.4.0 " + what, instead);
  kind.key_mask = KeyMask::features;
  kind.attend = attention_of(map);
  kind.projected = draw != nullptr;
  if (draw) kind.features = [](int64_t head_size) { return head_size; };
  kind.draw = std::move(draw);
  return kind;
}

}  // namespace

// All add 1e-6 to the denominator. With a projection, M features come of M/2 rows (favor, rff), of M/2 - 1
// (smoothed-rff), or of M (generalised).
std::vector<ReferenceKind> kinds() {
  return {
      row("favor", "Favor: exp(u) and exp(-u), without a shift", "favor-hyperbolic", "favor", pairs_of_rows),
      row("elu", "linear attention: elu + 1 of unscaled inputs", "favor-elu+1", "elu", nullptr),
      row("rff", "RandomFourierFeatures: the RBF kernel by signed features", "favor-softmax",
          "random-fourier", fourier_rows(0)),
      row("smoothed-rff", "SmoothedRandomFourierFeatures: those of rff and a constant 1", "favor-softmax",
          "smoothed-random-fourier", fourier_rows(2)),
      row("generalised", "GeneralizedRandomFeatures: relu(W x) of unscaled inputs", "favor-relu",
          "generalized", [](const ReferenceDraw& draw) { return orthogonal_rows(draw, draw.features); })};
}

}  // namespace performer::references::fast_transformers
