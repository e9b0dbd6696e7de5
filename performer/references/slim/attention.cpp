// SPDX-License-Identifier: Apache-2.0
#include "performer/references/slim/attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cctype>
#include <cmath>

#include "performer/base/error.h"
#include "performer/ops/composed.h"

namespace performer::references::slim {

using at::Tensor;

namespace {

constexpr double kDenominatorGuard = 1e-16;
constexpr const char* kFavor = "favor+";

}  // namespace

FeatureType feature_type(const std::string& name) {
  if (name == "relu" || name == "elu+1" || name == "abs") return {name, 0};
  if (name == "sqr") return {"square", 0};
  if (name == kFavor) return {"", 1};
  const std::string prefix = std::string(kFavor) + "_";
  const std::string count = name.starts_with(prefix) ? name.substr(prefix.size()) : "";
  const bool digits =
      !count.empty() && count.size() <= 6 &&
      std::all_of(count.begin(), count.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
  const int64_t blocks = digits ? std::stol(count) : 0;
  check<UsageError>(blocks >= 1,
                    "unknown feature type '{}'; known: relu, elu+1, sqr, abs, favor+, favor+_K (K >= 1)",
                    name);
  return {"", blocks};
}

Tensor householder_product(const Tensor& gaussian) {
  check<UsageError>(gaussian.dim() >= 2 && gaussian.size(-1) == gaussian.size(-2),
                    "a Householder product needs a Gaussian [..., D, D], found {} dimensions",
                    gaussian.dim());
  const Tensor lower = gaussian.tril();
  const Tensor v = lower / lower.norm(2, {-2}, /*keepdim=*/true);
  const Tensor identity = at::eye(gaussian.size(-1), gaussian.options());
  const Tensor s = at::matmul(v.transpose(-1, -2), v).triu() - identity / 2;
  return identity - at::matmul(v, at::matmul(at::linalg_inv(s), v.transpose(-1, -2)));
}

Tensor householder_projection(const Tensor& gaussian) {
  check<UsageError>(gaussian.dim() == 4,
                    "a projection for each head needs Gaussians [H, K, D, D], found {} dimensions",
                    gaussian.dim());
  const Tensor rows = householder_product(gaussian).transpose(-1, -2).flatten(1, 2);
  return rows * std::sqrt(static_cast<double>(gaussian.size(-1)));
}

Tensor draw_projection(int64_t heads, int64_t blocks, int64_t head_size, const jax::DrawName& name) {
  check<UsageError>(heads >= 1 && blocks >= 1,
                    "a projection needs at least 1 head and 1 block, found {} and {}", heads, blocks);
  std::vector<Tensor> gaussians;
  for (int64_t head = 0; head < heads; ++head) {
    jax::DrawName own = name;
    own.head += head;
    gaussians.push_back(jax::draw_gaussians(blocks * head_size, head_size, own).blocks);
  }
  return householder_projection(at::stack(gaussians)).to(at::kFloat);
}

Tensor features(const Tensor& x, const std::string& type, const std::optional<Tensor>& projection) {
  const FeatureType parsed = feature_type(type);
  if (parsed.blocks == 0) return ops::activation(parsed.function, x);
  check<UsageError>(projection.has_value() && projection->defined() && projection->dim() == 3 &&
                        projection->size(0) == x.size(2) &&
                        projection->size(1) == parsed.blocks * x.size(-1) &&
                        projection->size(2) == x.size(-1),
                    "features {} of {} heads of size {} need a projection [{}, {}, {}]", type, x.size(2),
                    x.size(-1), x.size(2), parsed.blocks * x.size(-1), x.size(-1));
  const Tensor scaled = x * std::pow(static_cast<double>(x.size(-1)), -0.25);
  return (ops::project(scaled, projection) - ops::half_square(scaled)).exp();
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value, const std::string& type,
                 const std::optional<Tensor>& projection, bool causal, Sums* sums) {
  check<UsageError>(causal || sums == nullptr, "running sums belong to causal attention");
  const Tensor phi_q = features(query, type, projection), phi_k = features(key, type, projection);
  ops::AttentionSums own = ops::attention_sums(phi_q, phi_k, value, causal);
  if (sums != nullptr) {
    if (sums->kv.defined()) {
      own.numerator = own.numerator + at::einsum("bthm,bhme->bthe", {phi_q, sums->kv});
      own.denominator = own.denominator + at::einsum("bthm,bhm->bth", {phi_q, sums->key_sum}).unsqueeze(-1);
    }
    const Tensor kv = at::einsum("bshm,bshe->bhme", {phi_k, value}), key_sum = phi_k.sum(1);
    sums->kv = sums->kv.defined() ? sums->kv + kv : kv;
    sums->key_sum = sums->key_sum.defined() ? sums->key_sum + key_sum : key_sum;
  }
  return own.numerator / (own.denominator + kDenominatorGuard);
}

}  // namespace performer::references::slim
