// SPDX-License-Identifier: Apache-2.0
// Linear attention from C++: a whole sequence at once, the same sequence token by token, how close it comes
// to softmax attention, and the attention of a reference system.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cstdio>

#include "performer/ops/feature_maps.h"
#include "performer/references/jax/attention.h"

namespace ops = performer::ops;

int main() {
  const at::NoGradGuard no_grad;
  const int64_t tokens = 1000, heads = 8, head_size = 64;
  const auto draw = [&](double size) { return at::randn({1, tokens, heads, head_size}) * size; };
  ops::AttentionInputs inputs;  // [batch, tokens, heads, head size]
  inputs.query = draw(0.3);
  inputs.key = draw(0.3);
  inputs.value = draw(1);
  inputs.causal = true;

  // A feature map is data: its name, its size, and a projection that seed, layer and redraw index name.
  ops::FeatureMapOptions map;
  map.map = "favor+";
  map.features = 256;
  ops::MapWeights weights;
  weights.projection = ops::draw_map_projection(map, heads, head_size, /*seed=*/0, /*layer=*/0, /*redraw=*/0);

  const auto [whole, last] = ops::mapped_attention(inputs, map, weights);

  // Token by token: the state does not grow.
  const ops::PreparedMap prepared = ops::prepare_feature_map(map, weights, {}, heads, head_size);
  ops::State state;
  double difference = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    const auto token = [&](const at::Tensor& x) { return x.select(1, i); };
    const at::Tensor out =
        ops::mapped_step(token(inputs.query), token(inputs.key), token(inputs.value), state, prepared);
    difference = std::max(difference, (out - token(whole)).abs().max().item<double>());
  }
  std::printf("one pass and %ld steps differ by %.1e; the state has %ld numbers a head\n",
              static_cast<long>(tokens), difference,
              static_cast<long>((state.kv.numel() + 2 * state.key_sum.numel()) / heads));

  const auto by_head = [](const at::Tensor& x) { return x.transpose(1, 2); };
  const at::Tensor exact = by_head(at::scaled_dot_product_attention(
      by_head(inputs.query), by_head(inputs.key), by_head(inputs.value), {}, 0, /*is_causal=*/true));
  const double error = ((whole - exact).norm() / exact.norm()).item<double>();
  std::printf("relative distance from softmax attention: %.3f\n", error);

  // google-research's attention, with its epsilons and its shift over the whole sequence.
  performer::references::jax::SoftmaxAttentionOptions options;
  options.head_size = head_size;
  options.unidirectional = true;
  const auto attention = performer::references::jax::make_fast_softmax_attention(options);
  const at::Tensor theirs = attention(inputs.query, inputs.key, inputs.value);
  std::printf("google-research's: %.3f\n", ((theirs - exact).norm() / exact.norm()).item<double>());
  return difference < 1e-3 && error < 0.3 ? 0 : 1;
}
