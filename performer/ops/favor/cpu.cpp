// SPDX-License-Identifier: Apache-2.0
// The backend "cpu": the kernels of performer/kernels, and their double reference for float64.
#include <ATen/ATen.h>

#include <algorithm>

#include "performer/ops/executor.h"
#include "performer/ops/favor/call.h"
#include "performer/ops/projection.h"

namespace performer::ops {
namespace {

using at::Tensor;

kernels::DataType data_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kBFloat16:
      return kernels::DataType::bfloat16;
    case at::kHalf:
      return kernels::DataType::float16;
    case at::kDouble:
      return kernels::DataType::float64;
    default:  // a Call admits no other types
      return kernels::DataType::float32;
  }
}

// Only the last dimension has to be contiguous.
Tensor rows_contiguous(const Tensor& tensor) {
  return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

kernels::View view_of(const Tensor& tensor) {
  return {tensor.data_ptr(), data_type(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

kernels::State pointers(const State& state) {
  return {state.kv.data_ptr(), state.key_sum.data_ptr(), state.log_scale.data_ptr()};
}

// The strides of a constant [B or 1, H or 1, ...]: 0 where it is shared.
void set_constant(const Tensor& constant, const float*& data, int64_t& batch_stride, int64_t& head_stride) {
  if (!constant.defined()) return;
  data = constant.const_data_ptr<float>();
  const int64_t size = constant.numel() / std::max<int64_t>(1, constant.size(0) * constant.size(1));
  if (constant.size(1) > 1) head_stride = size;
  if (constant.size(0) > 1) batch_stride = size * constant.size(1);
}

// A call in the kernels' terms; owns what the params struct points to besides the call's own tensors.
struct KernelCall {
  Tensor query, key, value, factors;
  kernels::AttentionForward params;
  const kernels::FavorKernels& table;

  explicit KernelCall(const Call& call)
      : query(rows_contiguous(call.query)),
        key(rows_contiguous(call.key)),
        value(rows_contiguous(call.value)),
        table(query.scalar_type() == at::kDouble ? kernels::favor_reference() : kernels::favor_kernels()) {
    kernels::Shape& shape = params.shape;
    shape.batch = call.sequences;
    shape.query_tokens = call.query_tokens;
    shape.key_tokens = call.key_tokens;
    shape.heads = call.heads;
    shape.head_size = call.head_size;
    shape.value_size = call.value_size;
    shape.features = call.features;
    if (call.packed()) {
      shape.cu_query = call.cu_query.const_data_ptr<int64_t>();
      shape.cu_key = call.cu_key.const_data_ptr<int64_t>();
    }
    kernels::FeatureMap& map = params.map = call.map;
    set_constant(call.projection, map.projection, map.projection_batch_stride, map.projection_head_stride);
    if (table.name != "reference") factors = projection_factors(call);
    set_constant(factors, map.factors, map.factors_batch_stride, map.factors_head_stride);
    set_constant(call.offset, map.offset, map.offset_batch_stride, map.offset_head_stride);
    params.causal = call.causal;
    params.chunk = call.chunk;
    params.query = view_of(query);
    params.key = view_of(key);
    params.value = view_of(value);
    if (call.key_mask.defined()) params.key_mask = call.key_mask.const_data_ptr<bool>();
    if (call.query_mask.defined()) params.query_mask = call.query_mask.const_data_ptr<bool>();
    if (call.initial.defined()) params.initial = pointers(call.initial);
  }

  // Scratch memory of all workers.
  Tensor scratch(int64_t bytes_a_worker, const TorchExecutor& executor) const {
    return at::empty({bytes_a_worker * executor.workers()}, query.options().dtype(at::kByte));
  }
};

void cpu_forward(const Call& call, ForwardResults& results) {
  KernelCall kernel(call);
  kernel.params.out = view_of(results.out);
  kernel.params.normalizer = results.normalizer.data_ptr();
  if (results.final.defined()) kernel.params.final = pointers(results.final);
  TorchExecutor executor;
  Tensor scratch = kernel.scratch(kernel.table.workspace(kernel.params, false), executor);
  kernel.table.forward(kernel.params, executor, scratch.data_ptr());
}

void cpu_backward(const BackwardCall& backward, BackwardResults& results) {
  KernelCall kernel(backward.call);
  const Tensor grad = rows_contiguous(backward.grad_out), out = rows_contiguous(backward.out),
               normalizer = backward.normalizer.contiguous();
  kernel.params.out = view_of(out);
  kernel.params.normalizer = normalizer.data_ptr();
  kernels::AttentionBackward params;
  params.grad_out = view_of(grad);
  params.grad_query = view_of(results.query);
  params.grad_key = view_of(results.key);
  params.grad_value = view_of(results.value);
  if (backward.grad_kv.defined())
    params.grad_final = {backward.grad_kv.data_ptr(), backward.grad_key_sum.data_ptr(), nullptr};
  const auto pointer = [](const Tensor& part) { return part.defined() ? part.data_ptr() : nullptr; };
  kernel.params.final = {pointer(backward.final.kv), pointer(backward.final.key_sum),
                         pointer(backward.final.log_scale)};
  if (results.kv.defined())
    params.grad_initial = {results.kv.data_ptr(), results.key_sum.data_ptr(), nullptr};
  params.forward = kernel.params;
  TorchExecutor executor;
  Tensor scratch = kernel.scratch(kernel.table.workspace(kernel.params, true), executor);
  kernel.table.backward(params, executor, scratch.data_ptr());
}

void cpu_step(const Call& call, State& state, Tensor& out) {
  KernelCall kernel(call);
  const kernels::AttentionForward& f = kernel.params;
  const kernels::AttentionStep params{f.shape, f.map, f.query, f.key, f.value, view_of(out), pointers(state)};
  TorchExecutor executor;
  Tensor scratch = kernel.scratch(kernel.table.step_workspace(params), executor);
  kernel.table.step(params, executor, scratch.data_ptr());
}

const RegisterBackend registered_cpu({"cpu", [](const c10::Device& device) { return device.is_cpu(); },
                                      cpu_forward, cpu_backward, cpu_step},
                                     /*rank=*/1);

}  // namespace

at::Tensor projection_factors(const Call& call) {
  if (call.factors.defined()) return call.factors;
  const at::Tensor& p = call.projection;
  if (!p.defined() || p.numel() == 0) return {};
  const int64_t tokens = std::max(call.query.size(0) * call.query_tokens, call.key.size(0) * call.key_tokens);
  return hadamard_factors(p, tokens * call.heads / (p.size(0) * p.size(1)));
}

}  // namespace performer::ops
