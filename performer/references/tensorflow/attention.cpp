// SPDX-License-Identifier: Apache-2.0
#include "performer/references/tensorflow/attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>
#include <random>

#include "performer/base/error.h"
#include "performer/base/philox.h"
#include "performer/ops/composed.h"

namespace performer::references::tensorflow {

using at::Tensor;

Tensor givens_product(int64_t size, const GivensDraw& draw) {
  const int64_t rotations = draw.uniforms.size(0);
  check<UsageError>(draw.pairs.dim() == 2 && draw.pairs.size(0) == rotations && draw.pairs.size(1) == 2,
                    "{} Givens rotations need as many pairs of rows [{}, 2]", rotations, rotations);
  const Tensor uniforms = draw.uniforms.to(at::kDouble), pairs = draw.pairs.to(at::kLong);
  Tensor product = at::eye(size, at::kDouble);
  for (int64_t t = 0; t < rotations; ++t) {
    const double angle = std::numbers::pi * uniforms[t].item<double>();
    const int64_t a = pairs[t][0].item<int64_t>(), b = pairs[t][1].item<int64_t>();
    check<UsageError>(std::min(a, b) >= 0 && std::max(a, b) < size,
                      "rows {} and {} do not exist in a {} x {} matrix", a, b, size, size);
    const int64_t i = std::min(a, b), j = std::max(a, b);
    const Tensor row_i = product[i].clone(), row_j = product[j].clone();
    product[i].copy_(std::cos(angle) * row_i + std::sin(angle) * row_j);
    product[j].copy_(std::cos(angle) * row_j - std::sin(angle) * row_i);
  }
  return product;
}

namespace {

// D ceil(ln D) rotations of a generator with uniform() in [0, 1) and below(n).
template <class Uniform, class Below>
GivensDraw draw_rotations(int64_t size, Uniform uniform, Below below) {
  check<UsageError>(size >= 1, "a Givens product needs at least 1 row, found {}", size);
  const auto rotations = size * static_cast<int64_t>(std::ceil(std::log(static_cast<double>(size))));
  GivensDraw draw{at::empty({rotations}, at::kDouble), at::empty({rotations, 2}, at::kLong)};
  double* uniforms = draw.uniforms.mutable_data_ptr<double>();
  int64_t* pairs = draw.pairs.mutable_data_ptr<int64_t>();
  for (int64_t t = 0; t < rotations; ++t) {
    uniforms[t] = uniform();
    for (int64_t side = 0; side < 2; ++side) pairs[2 * t + side] = below(static_cast<uint32_t>(size));
  }
  return draw;
}

}  // namespace

GivensDraw draw_givens(int64_t size, const jax::DrawName& name) {
  PhiloxStream stream(static_cast<uint64_t>(name.seed), static_cast<uint32_t>(name.layer),
                      static_cast<uint32_t>(name.head) << 16, static_cast<uint32_t>(name.redraw));
  return draw_rotations(
      size, [&] { return stream.uniform(); },
      [&](uint32_t n) { return static_cast<int64_t>(stream.below(n)); });
}

GivensDraw draw_numpy_givens(int64_t size, uint32_t seed) {
  std::mt19937 words(seed);
  const auto uniform = [&] {  // 53 bits of two words
    const double high = words() >> 5, low = words() >> 6;
    return (high * 67108864.0 + low) / 9007199254740992.0;
  };
  const auto below = [&](uint32_t n) {  // words cut to as many bits as n - 1 has, until one is not above it
    if (n == 1) return int64_t{0};
    const uint32_t mask = std::bit_ceil(n) - 1;
    for (;;) {
      const auto value = static_cast<uint32_t>(words()) & mask;
      if (value < n) return static_cast<int64_t>(value);
    }
  };
  return draw_rotations(size, uniform, below);
}

Tensor givens_projection(const Tensor& product, const Tensor& row_norms, int64_t rows, int64_t scaling) {
  check<UsageError>(scaling == 0 || scaling == 1, "the scaling of a projection must be 0 or 1, found {}",
                    scaling);
  const int64_t size = product.size(1), blocks = (rows + size - 1) / size;
  const Tensor directions = product.repeat({blocks, 1}).narrow(0, 0, rows);
  if (scaling == 1) return directions * std::sqrt(static_cast<double>(size));
  check<UsageError>(row_norms.defined() && row_norms.sizes() == directions.sizes(),
                    "row lengths need Gaussians [{}, {}]", rows, size);
  return directions * row_norms.norm(2, {1}, /*keepdim=*/true);
}

Tensor draw_projection(const ProjectionOptions& options, const jax::DrawName& name) {
  if (!options.givens)
    return jax::draw_projection({options.rows, options.columns, true, options.scaling}, name);
  const Tensor norms = jax::draw_gaussians(options.rows, options.columns, name).row_norms;
  const Tensor product = givens_product(options.columns, draw_givens(options.columns, name));
  return givens_projection(product, norms, options.rows, options.scaling).to(at::kFloat);
}

int32_t redraw_seed(const Tensor& query) {
  const auto sum = static_cast<float>(query.detach().to(at::kDouble).sum().item<double>());
  const float seed = std::ceil(std::abs(sum * 1e8F));
  if (std::isnan(seed)) return 0;
  return seed >= 2147483648.0F ? std::numeric_limits<int32_t>::max() : static_cast<int32_t>(seed);
}

Tensor softmax_features(const Tensor& x, bool is_query, const Tensor& projection, double epsilon) {
  check<UsageError>(x.dim() == 4, "features need x [B, T, H, D], found {} dimensions", x.dim());
  // Heads before tokens, so that the keys' maximum is over the last dimensions as in the JAX version.
  return jax::positive_features(x.transpose(1, 2), projection, {.is_query = is_query, .epsilon = epsilon})
      .transpose(1, 2);
}

Tensor relu_features(const Tensor& x, const std::optional<Tensor>& projection, double epsilon) {
  if (!projection.has_value() || !projection->defined()) return at::relu(x) + epsilon;
  const double ratio = 1 / std::sqrt(static_cast<double>(projection->size(0)));
  return at::relu(ops::project(x, projection) * ratio) + epsilon;
}

jax::Attended favor_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                              const std::optional<Tensor>& projection, const FavorOptions& options) {
  const bool softmax = options.kernel == "softmax";
  check<UsageError>(softmax || options.kernel == "relu", "the kernel must be softmax or relu, found '{}'",
                    options.kernel);
  const auto features = [&](const Tensor& x, bool is_query) {
    if (!softmax) return relu_features(x, projection, options.epsilon.value_or(1e-3));
    return softmax_features(x, is_query, projection.value_or(Tensor()), options.epsilon.value_or(1e-6));
  };
  const Tensor phi_q = features(query, true);
  Tensor phi_k = features(key, false), used = value;
  if (options.causal) {
    const int64_t tokens = query.size(1);
    check<UsageError>(key.size(1) >= tokens,
                      "causal attention needs as many keys as queries, found {} and {}", key.size(1), tokens);
    phi_k = phi_k.narrow(1, 0, tokens);
    used = value.narrow(1, 0, tokens);
  }
  const auto sums = ops::attention_sums(phi_q, phi_k, used, options.causal, options.chunk);
  return {sums.numerator / sums.denominator, sums.denominator.squeeze(-1)};
}

}  // namespace performer::references::tensorflow
