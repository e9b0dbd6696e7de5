// SPDX-License-Identifier: Apache-2.0
#include "performer/ops/composed.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

namespace performer::ops {
namespace {

using at::Tensor;
using Unary = Tensor (*)(const Tensor&);

const std::map<std::string, Unary>& activations() {
  static const std::map<std::string, Unary> all = {
      {"relu", [](const Tensor& x) { return at::relu(x); }},
      {"elu", [](const Tensor& x) { return at::elu(x); }},
      {"elu+1", [](const Tensor& x) { return at::elu(x) + 1; }},
      {"square", [](const Tensor& x) { return x * x; }},
      {"abs", [](const Tensor& x) { return x.abs(); }},
      {"requ", [](const Tensor& x) { return at::relu(x).square(); }},
      {"gelu", [](const Tensor& x) { return at::gelu(x); }},
      {"gelu-tanh", [](const Tensor& x) { return at::gelu(x, "tanh"); }},
      {"sigmoid", [](const Tensor& x) { return at::sigmoid(x); }},
      {"tanh", [](const Tensor& x) { return at::tanh(x); }},
      {"cos", [](const Tensor& x) { return at::cos(x); }},
      {"sin", [](const Tensor& x) { return at::sin(x); }},
      {"identity", [](const Tensor& x) { return x; }},
      {"exp", [](const Tensor& x) { return at::exp(x); }},
      {"softplus", [](const Tensor& x) { return at::softplus(x); }},
      {"silu", [](const Tensor& x) { return at::silu(x); }},
      {"mish", [](const Tensor& x) { return at::mish(x); }},
      {"leaky-relu", [](const Tensor& x) { return at::leaky_relu(x); }},
  };
  return all;
}

}  // namespace

std::vector<std::string> activation_names() {
  std::vector<std::string> names;
  for (const auto& [name, function] : activations()) names.push_back(name);
  return names;
}

Tensor activation(const std::string& name, const Tensor& x) {
  const auto found = activations().find(name);
  TORCH_CHECK_VALUE(found != activations().end(), "unknown feature function '", name,
                    "'; known: ", fmt::format("{}", fmt::join(activation_names(), ", ")));
  return found->second(x);
}

Tensor project(const Tensor& x, const std::optional<Tensor>& projection) {
  if (!projection.has_value() || !projection->defined()) return x;
  const Tensor w = projection->to(x.scalar_type());
  if (w.dim() == 2) return at::matmul(x, w.t());
  return at::einsum(w.dim() == 3 ? "bthd,hmd->bthm" : "bthd,bhmd->bthm", {x, w});
}

Tensor half_square(const Tensor& x) {
  return x.square().sum(-1, /*keepdim=*/true) / 2;
}

AttentionSums attention_sums(const Tensor& phi_q, const Tensor& phi_k, const Tensor& value, bool causal,
                             int64_t chunk) {
  // The value's extra column of ones makes the denominator the last column of one product.
  const Tensor q = phi_q.transpose(1, 2), k = phi_k.transpose(1, 2);
  const Tensor v = at::cat({value, at::ones_like(value.narrow(-1, 0, 1))}, -1).transpose(1, 2);
  Tensor sums;
  if (!causal) {
    sums = at::matmul(q, at::matmul(k.transpose(-1, -2), v));
  } else {
    TORCH_CHECK_VALUE(q.size(2) == k.size(2), "causal attention needs as many keys as queries, found ",
                      q.size(2), " queries and ", k.size(2), " keys");
    std::vector<Tensor> parts;
    Tensor state;
    for (int64_t begin = 0; begin < q.size(2); begin += chunk) {
      const int64_t length = std::min(chunk, q.size(2) - begin);
      const Tensor qc = q.narrow(2, begin, length), kc = k.narrow(2, begin, length),
                   vc = v.narrow(2, begin, length);
      Tensor part = at::matmul(at::matmul(qc, kc.transpose(-1, -2)).tril(), vc);
      if (state.defined()) part = part + at::matmul(qc, state);
      const Tensor update = at::matmul(kc.transpose(-1, -2), vc);
      state = state.defined() ? state + update : update;
      parts.push_back(part);
    }
    sums = parts.empty() ? v : at::cat(parts, 2);
  }
  sums = sums.transpose(1, 2);
  return {sums.narrow(-1, 0, value.size(-1)), sums.narrow(-1, value.size(-1), 1)};
}

Tensor uncorrected_orthogonal_rows(const Tensor& gaussian_blocks, int64_t rows) {
  const int64_t size = gaussian_blocks.size(-1);
  TORCH_CHECK_VALUE(gaussian_blocks.dim() == 3 && gaussian_blocks.size(1) == size,
                    "orthogonal rows need Gaussian blocks [N, D, D], found shape ", gaussian_blocks.sizes());
  TORCH_CHECK_VALUE(gaussian_blocks.size(0) * size >= rows, rows, " orthogonal rows need ",
                    (rows + size - 1) / size, " blocks of ", size, ", found ", gaussian_blocks.size(0));
  const Tensor q = std::get<0>(at::linalg_qr(gaussian_blocks));
  return q.transpose(-1, -2).reshape({-1, size}).narrow(0, 0, rows);
}

}  // namespace performer::ops
