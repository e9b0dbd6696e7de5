// SPDX-License-Identifier: Apache-2.0
#include "performer/ops/projection.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "performer/base/error.h"
#include "performer/kernels/projection.h"
#include "performer/ops/executor.h"

namespace performer::ops {

at::Tensor draw_projection(const std::string& kind, const std::string& row_norm, int64_t heads,
                           int64_t features, int64_t head_size, int64_t seed, int64_t layer, int64_t redraw) {
  TORCH_CHECK_VALUE(features >= 1 && head_size >= 1,
                    "a projection needs at least 1 feature and a head size of at least 1, found ", features,
                    " and ", head_size);
  kernels::ProjectionKind projection_kind;
  kernels::RowNorm norm;
  try {
    projection_kind = kernels::projection_kind_from_name(kind);
    norm = kernels::row_norm_from_name(row_norm);
  } catch (const UsageError& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
  at::Tensor projection = at::empty({heads, features, head_size}, at::kFloat);
  at::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      const kernels::ProjectionKey key{static_cast<uint64_t>(seed), static_cast<uint32_t>(layer),
                                       static_cast<uint32_t>(head), static_cast<uint32_t>(redraw)};
      const auto rows = kernels::draw_projection(projection_kind, norm, features, head_size, key);
      std::copy(rows.begin(), rows.end(), projection.mutable_data_ptr<float>() + head * features * head_size);
    }
  });
  return projection;
}

at::Tensor hadamard_factors(const at::Tensor& projection, int64_t tokens) {
  if (!projection.defined() || projection.dim() < 2 || projection.numel() == 0) return {};
  if (!projection.device().is_cpu()) return {};
  const at::Tensor rows = projection.to(at::kFloat).contiguous();
  const int64_t features = rows.size(-2), size = rows.size(-1);
  TorchExecutor executor;
  const std::vector<float> factors = kernels::factors_for_tokens(
      rows.const_data_ptr<float>(), rows.numel() / (features * size), features, size, tokens, executor);
  if (factors.empty()) return {};
  std::vector<int64_t> shape(rows.sizes().begin(), rows.sizes().end() - 2);
  shape.insert(shape.end(), {features / size, 4, size});
  return at::tensor(factors, at::kFloat).view(shape);
}

}  // namespace performer::ops
