// SPDX-License-Identifier: Apache-2.0
// Linear attention from C++: a whole sequence at once, the same sequence token by token, in two parts whose
// states are merged, and how close it comes to softmax attention.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstdio>

#include "performer/ops/feature_maps.h"

namespace ops = performer::ops;

namespace {

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

}  // namespace

int main() {
  const at::NoGradGuard no_grad;
  const int64_t tokens = 1000, heads = 8, head_size = 64;
  const auto draw = [&](double size) { return at::randn({1, tokens, heads, head_size}) * size; };
  ops::AttentionInputs inputs;  // [batch, tokens, heads, head size]
  inputs.query = draw(0.3);
  inputs.key = draw(0.3);
  inputs.value = draw(1);
  inputs.causal = inputs.return_state = true;

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
    difference = std::max(difference, largest_difference(out, token(whole)));
  }
  std::printf("one pass and %ld steps differ by %.1e; the state has %ld numbers a head\n",
              static_cast<long>(tokens), difference,
              static_cast<long>((state.kv.numel() + 2 * state.key_sum.numel()) / heads));

  // States are summaries of keys and values, and two of them merge into that of both: so a long sequence can
  // be split over threads or machines.
  const auto part = [&](int64_t begin, int64_t end) {
    return ops::key_state({inputs.key.slice(1, begin, end), inputs.value.slice(1, begin, end)}, prepared);
  };
  const ops::State merged = ops::merge_states(part(0, tokens / 3), part(tokens / 3, tokens));
  const double merge_difference = largest_difference(merged.kv, last.kv) / last.kv.abs().max().item<double>();
  std::printf("the merged state of two parts differs from that of the whole by %.1e of its largest number\n",
              merge_difference);

  // The same by LibTorch operations alone, which is what runs on devices without a kernel of ours.
  inputs.backend = "composed";
  const double backend_difference =
      largest_difference(std::get<0>(ops::mapped_attention(inputs, map, weights)), whole);
  std::printf("kernels and LibTorch operations differ by %.1e\n", backend_difference);

  const auto by_head = [](const at::Tensor& x) { return x.transpose(1, 2); };
  const at::Tensor exact = by_head(at::scaled_dot_product_attention(
      by_head(inputs.query), by_head(inputs.key), by_head(inputs.value), {}, 0, /*is_causal=*/true));
  const double error = ((whole - exact).norm() / exact.norm()).item<double>();
  std::printf("relative distance from softmax attention: %.3f\n", error);
  return difference < 1e-3 && merge_difference < 1e-4 && backend_difference < 1e-3 && error < 0.3 ? 0 : 1;
}
