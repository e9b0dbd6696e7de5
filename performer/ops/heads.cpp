// SPDX-License-Identifier: Apache-2.0
// Queries, keys and values of one product, and their rotary positions.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>

#include "performer/kernels/block.h"
#include "performer/ops/block.h"

namespace performer::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kHeadGrain = 1 << 15;  // elements a thread takes at least

char* place(const at::Tensor& x, int64_t offset) {
  return static_cast<char*>(x.mutable_data_ptr()) + offset * static_cast<int64_t>(x.element_size());
}

// Turns the heads of x [B, T, H, D], whose tokens lie evenly and whose heads lie behind each other, into
// `output`, which may be x. table: [B T, D] floats.
void rotate_heads(const at::Tensor& x, const at::Tensor& output, const at::Tensor& table, bool backwards) {
  const int64_t tokens = x.size(0) * x.size(1), heads = x.size(2), size = x.size(3);
  const int64_t from = x.stride(1), to = output.stride(1);
  const auto type = x.scalar_type() == at::kFloat ? kernels::DataType::float32 : kernels::DataType::bfloat16;
  const int64_t grain = std::max<int64_t>(1, kHeadGrain / std::max<int64_t>(1, heads * size));
  at::parallel_for(0, tokens, grain, [&](int64_t begin, int64_t end) {
    kernels::rotate({end - begin, heads, size, type, place(x, begin * from), place(output, begin * to), from,
                     to, table.const_data_ptr<float>() + begin * size, backwards});
  });
}

bool lies_evenly(const at::Tensor& x) {
  return x.stride(3) == 1 && (x.size(2) == 1 || x.stride(2) == x.size(3)) &&
         (x.size(0) == 1 || x.stride(0) == x.size(1) * x.stride(1));
}

// The cosines and sines of `table` as floats [B T, D].
at::Tensor plain_table(const at::Tensor& table, int64_t batch, int64_t tokens) {
  const at::Tensor all = table.expand({batch, tokens, 1, table.size(-1)}).contiguous();
  return at::view_as_real(all).reshape({batch * tokens, 2 * table.size(-1)});
}

// Part 0, 1 or 2 of [B, T, 3 H D] as [B, T, H, D].
at::Tensor part_of(const at::Tensor& projected, int64_t part, int64_t heads) {
  const int64_t inner = projected.size(-1) / 3;
  return projected.narrow(-1, part * inner, inner).unflatten(-1, {heads, inner / heads});
}

struct SplitProjection : torch::autograd::Function<SplitProjection> {
  static variable_list forward(AutogradContext* context, const at::Tensor& projected,
                               const std::optional<at::Tensor>& table, int64_t heads) {
    const at::AutoDispatchBelowADInplaceOrView below;
    variable_list parts;
    for (int64_t i = 0; i < 3; ++i) parts.push_back(part_of(projected, i, heads));
    if (table) {
      const at::Tensor plain = plain_table(*table, projected.size(0), projected.size(1));
      for (int64_t i = 0; i < 2; ++i) rotate_heads(parts[i], parts[i], plain, false);
      context->save_for_backward({plain});
    }
    context->saved_data["table"] = table.has_value();
    context->saved_data["sizes"] = projected.sizes().vec();
    context->saved_data["type"] = static_cast<int64_t>(projected.scalar_type());
    context->saved_data["heads"] = heads;
    return parts;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto type = static_cast<at::ScalarType>(context->saved_data["type"].toInt());
    const at::Tensor result = at::empty(context->saved_data["sizes"].toIntVector(), type);
    for (int64_t i = 0; i < 3; ++i) {
      const at::Tensor part = part_of(result, i, context->saved_data["heads"].toInt());
      at::Tensor gradient = gradients[i];
      if (!gradient.defined()) {
        part.zero_();
      } else if (i == 2 || !context->saved_data["table"].toBool()) {
        part.copy_(gradient);
      } else {
        gradient = gradient.to(type);
        if (!lies_evenly(gradient)) gradient = gradient.contiguous();
        rotate_heads(gradient, part, context->get_saved_variables()[0], true);
      }
    }
    return {result, {}, {}};
  }
};

}  // namespace

bool splits_in_place(const at::Tensor& x) {
  return x.device().is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

ProjectedHeads split_projection(const at::Tensor& projected, const at::Tensor& table, int64_t heads) {
  TORCH_CHECK_VALUE(projected.dim() == 3 && projected.is_contiguous() && heads >= 1 &&
                        projected.size(-1) % (3 * heads) == 0,
                    "projected heads must be contiguous [B, T, 3 H D] with H = ", heads, ", not ",
                    projected.sizes());
  TORCH_CHECK_VALUE(
      splits_in_place(projected) && (!table.defined() || table.scalar_type() == at::kComplexFloat),
      "projected heads must be float32 or bfloat16 on the CPU, and their table complex float32");
  const variable_list parts =
      SplitProjection::apply(projected, table.defined() ? std::optional(table) : std::nullopt, heads);
  return {parts[0], parts[1], parts[2]};
}

}  // namespace performer::ops
