// SPDX-License-Identifier: Apache-2.0
// Checks, schemas, and the way from tensors to the kernels' params structs. The derivative is in
// autograd.cpp.
#include "performer/ops/favor.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "performer/kernels/favor.h"
#include "performer/ops/executor.h"
#include "performer/ops/schema.h"

namespace performer::ops {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

kernels::DataType data_type(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return kernels::DataType::float32;
    case at::kBFloat16:
      return kernels::DataType::bfloat16;
    case at::kHalf:
      return kernels::DataType::float16;
    case at::kDouble:
      return kernels::DataType::float64;
    default:
      TORCH_CHECK_TYPE(false, "favor_attention: ", name,
                       " must be float32, bfloat16, float16 or float64, but is ", tensor.scalar_type());
  }
}

// Only the last dimension has to be contiguous.
Tensor rows_contiguous(const Tensor& tensor) {
  return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

kernels::View view_of(const Tensor& tensor, const char* name) {
  return {tensor.data_ptr(), data_type(tensor, name), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// Projection or offset broadcast to [B or 1, H or 1, ...], contiguous float32; strides are 0 where it is
// shared.
struct Constant {
  Tensor tensor;
  int64_t batch_stride = 0, head_stride = 0;
};

Constant constant_of(const OptionalTensor& given, const char* name, int64_t own_dims, int64_t batch,
                     int64_t heads) {
  if (!given.has_value() || !given->defined()) return {};
  Tensor tensor = given->to(at::kFloat).contiguous();
  TORCH_CHECK_VALUE(tensor.dim() >= own_dims && tensor.dim() <= own_dims + 2, "favor_attention: ", name,
                    " must have ", own_dims,
                    " dimensions, with heads and batch in front as needed, but has shape ", tensor.sizes());
  while (tensor.dim() < own_dims + 2) tensor = tensor.unsqueeze(0);
  for (int64_t dim = 0; dim < 2; ++dim) {
    const int64_t expected = dim == 0 ? batch : heads;
    TORCH_CHECK_VALUE(tensor.size(dim) == 1 || tensor.size(dim) == expected, "favor_attention: ", name,
                      " has ", tensor.size(dim), dim == 0 ? " batch entries" : " heads", ", expected 1 or ",
                      expected);
  }
  Constant constant;
  constant.tensor = tensor;
  const int64_t size = tensor.numel() / std::max<int64_t>(1, tensor.size(0) * tensor.size(1));
  if (tensor.size(1) > 1) constant.head_stride = size;
  if (tensor.size(0) > 1) constant.batch_stride = size * tensor.size(1);
  return constant;
}

Tensor checked_mask(const OptionalTensor& mask, const char* name, int64_t batch, int64_t tokens) {
  if (!mask.has_value() || !mask->defined()) return {};
  TORCH_CHECK_VALUE(mask->scalar_type() == at::kBool && mask->dim() == 2 && mask->size(0) == batch &&
                        mask->size(1) == tokens,
                    "favor_attention: ", name, " must be bool of shape [", batch, ", ", tokens, "], but is ",
                    mask->scalar_type(), " of shape ", mask->sizes());
  return mask->contiguous();
}

// Bounds of packed segments; returns their number.
int64_t check_segments(const Tensor& cu, const char* name, int64_t tokens) {
  TORCH_CHECK_VALUE(cu.scalar_type() == at::kLong && cu.dim() == 1 && cu.size(0) >= 1 &&
                        cu.device().is_cpu() && cu.is_contiguous(),
                    "favor_attention: ", name,
                    " must be a contiguous int64 vector of at least one bound on the CPU");
  const int64_t* bounds = cu.const_data_ptr<int64_t>();
  const int64_t segments = cu.size(0) - 1;
  TORCH_CHECK_VALUE(bounds[0] == 0 && bounds[segments] == tokens, "favor_attention: ", name,
                    " must run from 0 to the ", tokens, " packed tokens, but runs from ", bounds[0], " to ",
                    bounds[segments]);
  for (int64_t i = 0; i < segments; ++i) {
    TORCH_CHECK_VALUE(bounds[i] <= bounds[i + 1], "favor_attention: ", name, " decreases at segment ", i);
  }
  return segments;
}

// A call, checked and turned into the kernels' terms; owns what the params struct points to.
struct Prepared {
  Tensor query, key, value, key_mask, query_mask, cu_query, cu_key;
  Constant projection, offset;
  State initial;
  kernels::AttentionForward params;
  at::TensorOptions sum_options;  // of states and normalizers

  explicit Prepared(const Arguments& a)
      : query(rows_contiguous(a.query)), key(rows_contiguous(a.key)), value(rows_contiguous(a.value)) {
    check_arguments(a);
    kernels::Shape& shape = params.shape;
    shape.batch = query.size(0);
    shape.query_tokens = query.size(1);
    shape.key_tokens = key.size(1);
    shape.heads = query.size(2);
    shape.head_size = query.size(3);
    shape.value_size = value.size(3);
    if (a.cu_query.has_value() && a.cu_query->defined()) pack(a);
    projection = constant_of(a.projection, "projection", 2, shape.batch, shape.heads);
    shape.features = projection.tensor.defined() ? projection.tensor.size(2) : shape.head_size;
    TORCH_CHECK_VALUE(shape.features >= 1,
                      "favor_attention: at least one feature is needed, found a projection of shape ",
                      projection.tensor.defined() ? projection.tensor.sizes() : query.sizes());
    TORCH_CHECK_VALUE(!projection.tensor.defined() || projection.tensor.size(3) == shape.head_size,
                      "favor_attention: projection rows have ",
                      projection.tensor.defined() ? projection.tensor.size(3) : 0,
                      " elements, but the head size is ", shape.head_size);
    offset = constant_of(a.offset, "offset", 1, shape.batch, shape.heads);
    TORCH_CHECK_VALUE(!offset.tensor.defined() || offset.tensor.size(2) == shape.features,
                      "favor_attention: offset has ", offset.tensor.defined() ? offset.tensor.size(2) : 0,
                      " elements, but there are ", shape.features, " features");
    key_mask = checked_mask(a.key_mask, "key_mask", key.size(0), shape.key_tokens);
    query_mask = checked_mask(a.query_mask, "query_mask", query.size(0), shape.query_tokens);
    sum_options = query.options().dtype(query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    params.causal = a.causal;
    params.chunk = a.chunk;
    params.map = feature_map(a);
    params.query = view_of(query, "query");
    params.key = view_of(key, "key");
    params.value = view_of(value, "value");
    params.key_mask = key_mask.defined() ? key_mask.const_data_ptr<bool>() : nullptr;
    params.query_mask = query_mask.defined() ? query_mask.const_data_ptr<bool>() : nullptr;
    set_initial(a);
  }

  std::vector<int64_t> kv_shape() const {
    return {params.shape.batch, params.shape.heads, params.shape.features, params.shape.value_size};
  }
  std::vector<int64_t> sum_shape() const {
    return {params.shape.batch, params.shape.heads, params.shape.features};
  }
  State new_state() const {
    return {at::empty(kv_shape(), sum_options), at::empty(sum_shape(), sum_options),
            at::empty(sum_shape(), sum_options)};
  }
  const kernels::FavorKernels& table() const {
    return query.scalar_type() == at::kDouble ? kernels::favor_reference() : kernels::favor_kernels();
  }
  // Scratch memory of all workers.
  Tensor workspace(const kernels::FavorKernels& kernels, bool backward) const {
    const int64_t bytes = kernels.workspace(params, backward) * TorchExecutor().workers();
    return at::empty({bytes}, query.options().dtype(at::kByte));
  }

 private:
  static void check_arguments(const Arguments& a) {
    const auto four = [](const Tensor& tensor, const char* name) {
      TORCH_CHECK_VALUE(tensor.dim() == 4, "favor_attention: ", name,
                        " must be [batch, tokens, heads, size], but has shape ", tensor.sizes());
    };
    four(a.query, "query");
    four(a.key, "key");
    four(a.value, "value");
    TORCH_CHECK_VALUE(
        a.key.size(0) == a.query.size(0) && a.key.size(2) == a.query.size(2) &&
            a.key.size(3) == a.query.size(3),
        "favor_attention: key must agree with query in batch, heads and head size, found query ",
        a.query.sizes(), " and key ", a.key.sizes());
    TORCH_CHECK_VALUE(a.value.size(0) == a.key.size(0) && a.value.size(1) == a.key.size(1) &&
                          a.value.size(2) == a.key.size(2),
                      "favor_attention: value must agree with key in batch, tokens and heads, found key ",
                      a.key.sizes(), " and value ", a.value.sizes());
    TORCH_CHECK_VALUE(!a.causal || a.query.size(1) == a.key.size(1),
                      "favor_attention: causal attention needs as many keys as queries, found ",
                      a.query.size(1), " queries and ", a.key.size(1),
                      " keys; continue a sequence by its state instead");
    const bool any_double = a.query.scalar_type() == at::kDouble || a.key.scalar_type() == at::kDouble ||
                            a.value.scalar_type() == at::kDouble;
    TORCH_CHECK_TYPE(
        !any_double || (a.query.scalar_type() == at::kDouble && a.key.scalar_type() == at::kDouble &&
                        a.value.scalar_type() == at::kDouble),
        "favor_attention: query, key and value must all be float64 or none, found ", a.query.scalar_type(),
        ", ", a.key.scalar_type(), " and ", a.value.scalar_type());
    TORCH_CHECK_VALUE(a.chunk >= 0 && a.chunk <= kernels::kMaxChunk, "favor_attention: chunk must be 0 to ",
                      kernels::kMaxChunk, ", found ", a.chunk);
  }

  void pack(const Arguments& a) {
    TORCH_CHECK_VALUE(query.size(0) == 1, "favor_attention: packed sequences need batch size 1, found ",
                      query.size(0));
    cu_query = *a.cu_query;
    cu_key = a.cu_key.has_value() && a.cu_key->defined() ? *a.cu_key : cu_query;
    params.shape.batch = check_segments(cu_query, "cu_query", query.size(1));
    TORCH_CHECK_VALUE(check_segments(cu_key, "cu_key", key.size(1)) == params.shape.batch,
                      "favor_attention: cu_query and cu_key must have the same number of segments, found ",
                      cu_query.size(0) - 1, " and ", cu_key.size(0) - 1);
    TORCH_CHECK_VALUE(!a.causal || at::equal(cu_query, cu_key),
                      "favor_attention: causal attention needs equal cu_query and cu_key");
    params.shape.cu_query = cu_query.const_data_ptr<int64_t>();
    params.shape.cu_key = cu_key.const_data_ptr<int64_t>();
  }

  kernels::FeatureMap feature_map(const Arguments& a) const {
    kernels::FeatureMap map;
    map.family = a.family == "exponential" ? kernels::Family::exponential : kernels::Family::elementwise;
    if (map.family == kernels::Family::elementwise) map.function = kernels::function_from_name(a.family);
    map.scale = a.scale;
    map.norm_weight = a.norm_weight;
    map.epsilon = a.epsilon;
    if (projection.tensor.defined()) map.projection = projection.tensor.const_data_ptr<float>();
    map.projection_batch_stride = projection.batch_stride;
    map.projection_head_stride = projection.head_stride;
    if (offset.tensor.defined()) map.offset = offset.tensor.const_data_ptr<float>();
    map.offset_batch_stride = offset.batch_stride;
    map.offset_head_stride = offset.head_stride;
    return map;
  }

  void set_initial(const Arguments& a) {
    if (!a.initial_kv.has_value() || !a.initial_kv->defined()) return;
    const auto part = [&](const OptionalTensor& tensor, const char* name, const std::vector<int64_t>& shape) {
      TORCH_CHECK_VALUE(tensor.has_value() && tensor->defined() && tensor->sizes() == at::IntArrayRef(shape),
                        "favor_attention: the state's ", name, " must have shape ", at::IntArrayRef(shape),
                        ", found ",
                        tensor.has_value() && tensor->defined() ? tensor->sizes() : at::IntArrayRef());
      return tensor->to(sum_options.dtype()).contiguous();
    };
    initial = {part(a.initial_kv, "kv", kv_shape()), part(a.initial_key_sum, "key_sum", sum_shape()),
               part(a.initial_log_scale, "log_scale", sum_shape())};
    params.initial = pointers(initial);
  }

 public:
  static kernels::State pointers(const State& state) {
    return {state.kv.data_ptr(), state.key_sum.data_ptr(), state.log_scale.data_ptr()};
  }
};

Results forward_cpu(PERFORMER_FAVOR_PARAMETERS) {
  const Arguments arguments{PERFORMER_FAVOR_NAMES};
  Prepared call(arguments);
  kernels::AttentionForward& params = call.params;
  const auto& s = params.shape;
  Tensor out = at::empty({value.size(0), query.size(1), s.heads, s.value_size}, value.options());
  Tensor normalizer = at::empty({query.size(0), query.size(1), s.heads}, call.sum_options);
  params.out = view_of(out, "value");
  params.normalizer = normalizer.data_ptr();
  State final{at::empty({0}, call.sum_options), at::empty({0}, call.sum_options),
              at::empty({0}, call.sum_options)};
  if (return_state) {
    final = call.new_state();
    params.final = Prepared::pointers(final);
  }
  const auto& table = call.table();
  Tensor scratch = call.workspace(table, false);
  TorchExecutor executor;
  table.forward(params, executor, scratch.data_ptr());
  return {out, normalizer, final.kv, final.key_sum, final.log_scale};
}

Results forward_meta(PERFORMER_FAVOR_PARAMETERS) {
  (void)key, (void)scale, (void)norm_weight, (void)epsilon, (void)causal, (void)chunk, (void)family;
  (void)offset, (void)key_mask, (void)query_mask, (void)cu_key, (void)initial_key_sum,
      (void)initial_log_scale, (void)initial_kv;
  const auto sums = query.options().dtype(query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  Tensor out = at::empty_symint({value.sym_size(0), query.sym_size(1), query.sym_size(2), value.sym_size(3)},
                                value.options());
  Tensor normalizer = at::empty_symint({query.sym_size(0), query.sym_size(1), query.sym_size(2)}, sums);
  if (!return_state)
    return {out, normalizer, at::empty({0}, sums), at::empty({0}, sums), at::empty({0}, sums)};
  const c10::SymInt batch = cu_query.has_value() ? cu_query->sym_size(0) - 1 : query.sym_size(0);
  const c10::SymInt features = projection.has_value() ? projection->sym_size(-2) : query.sym_size(3);
  return {out, normalizer, at::empty_symint({batch, query.sym_size(2), features, value.sym_size(3)}, sums),
          at::empty_symint({batch, query.sym_size(2), features}, sums),
          at::empty_symint({batch, query.sym_size(2), features}, sums)};
}

Gradients backward_cpu(const Tensor& grad_out, const Tensor& out, const Tensor& normalizer,
                       const OptionalTensor& grad_kv, const OptionalTensor& grad_key_sum,
                       const OptionalTensor& final_log_scale, PERFORMER_FAVOR_PARAMETERS) {
  const Arguments arguments{PERFORMER_FAVOR_NAMES};
  Prepared call(arguments);
  kernels::AttentionBackward params;
  const Tensor grad = rows_contiguous(grad_out), output = rows_contiguous(out),
               denominators = normalizer.contiguous();
  call.params.out = view_of(output, "out");
  call.params.normalizer = denominators.data_ptr();
  Tensor grad_query = at::empty(query.sizes(), query.options()),
         grad_key = at::empty(key.sizes(), key.options()),
         grad_value = at::empty(value.sizes(), value.options());
  params.grad_out = view_of(grad, "grad_out");
  params.grad_query = view_of(grad_query, "query");
  params.grad_key = view_of(grad_key, "key");
  params.grad_value = view_of(grad_value, "value");
  Tensor state_grads[2], log_scale;
  if (grad_kv.has_value() && grad_kv->defined()) {
    state_grads[0] = grad_kv->to(call.sum_options.dtype()).contiguous();
    state_grads[1] = grad_key_sum->to(call.sum_options.dtype()).contiguous();
    log_scale = final_log_scale->contiguous();
    params.grad_final = {state_grads[0].data_ptr(), state_grads[1].data_ptr(), nullptr};
    call.params.final = {nullptr, nullptr, log_scale.data_ptr()};
  }
  Tensor grad_initial_kv = at::empty({0}, call.sum_options),
         grad_initial_key_sum = at::empty({0}, call.sum_options);
  if (call.params.initial) {
    grad_initial_kv = at::empty(call.kv_shape(), call.sum_options);
    grad_initial_key_sum = at::empty(call.sum_shape(), call.sum_options);
    params.grad_initial = {grad_initial_kv.data_ptr(), grad_initial_key_sum.data_ptr(), nullptr};
  }
  params.forward = call.params;
  (void)return_state;
  const auto& table = call.table();
  Tensor scratch = call.workspace(table, true);
  TorchExecutor executor;
  table.backward(params, executor, scratch.data_ptr());
  return {grad_query, grad_key, grad_value, grad_initial_kv, grad_initial_key_sum};
}

Gradients backward_meta(const Tensor& grad_out, const Tensor& out, const Tensor& normalizer,
                        const OptionalTensor& grad_kv, const OptionalTensor& grad_key_sum,
                        const OptionalTensor& final_log_scale, PERFORMER_FAVOR_PARAMETERS) {
  (void)grad_out, (void)out, (void)grad_kv, (void)grad_key_sum, (void)final_log_scale;
  (void)projection, (void)offset, (void)key_mask, (void)query_mask, (void)cu_query, (void)cu_key,
      (void)initial_log_scale;
  (void)family, (void)scale, (void)norm_weight, (void)epsilon, (void)causal, (void)chunk, (void)return_state;
  const bool stateful = initial_kv.has_value();
  return {at::empty_like(query, at::MemoryFormat::Contiguous),
          at::empty_like(key, at::MemoryFormat::Contiguous),
          at::empty_like(value, at::MemoryFormat::Contiguous),
          stateful ? at::empty_like(*initial_kv) : at::empty({0}, normalizer.options()),
          stateful ? at::empty_like(*initial_key_sum) : at::empty({0}, normalizer.options())};
}

// One token of each sequence; the three state tensors are updated in place.
Tensor step_cpu(const Tensor& query, const Tensor& key, const Tensor& value, Tensor& kv, Tensor& key_sum,
                Tensor& log_scale, const OptionalTensor& projection, const OptionalTensor& offset,
                c10::string_view family, double scale, double norm_weight, double epsilon) {
  TORCH_CHECK_VALUE(query.dim() == 3 && key.dim() == 3 && value.dim() == 3,
                    "favor_step: query, key and value must be [batch, heads, size], found ", query.sizes(),
                    ", ", key.sizes(), " and ", value.sizes());
  Arguments arguments{query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)};
  arguments.projection = projection;
  arguments.offset = offset;
  arguments.family = std::string(family);
  arguments.scale = scale;
  arguments.norm_weight = norm_weight;
  arguments.epsilon = epsilon;
  arguments.causal = true;
  Prepared call(arguments);
  const auto usable = [&](const Tensor& part, const std::vector<int64_t>& shape) {
    return part.sizes() == at::IntArrayRef(shape) && part.is_contiguous() &&
           part.scalar_type() == call.sum_options.dtype();
  };
  TORCH_CHECK_VALUE(
      usable(kv, call.kv_shape()) && usable(key_sum, call.sum_shape()) && usable(log_scale, call.sum_shape()),
      "favor_step: the state must be contiguous ", call.sum_options.dtype(), " with kv ",
      at::IntArrayRef(call.kv_shape()), ", found kv ", kv.sizes(), ", key_sum ", key_sum.sizes(),
      ", log_scale ", log_scale.sizes());
  Tensor out = at::empty({value.size(0), 1, value.size(1), value.size(2)}, value.options());
  const kernels::AttentionForward& f = call.params;
  kernels::AttentionStep params{f.shape,
                                f.map,
                                f.query,
                                f.key,
                                f.value,
                                view_of(out, "value"),
                                {kv.data_ptr(), key_sum.data_ptr(), log_scale.data_ptr()}};
  const auto& table = call.table();
  Tensor scratch = call.workspace(table, false);
  TorchExecutor executor;
  table.step(params, executor, scratch.data_ptr());
  return out.squeeze(1);
}

Tensor step_meta(const Tensor&, const Tensor&, const Tensor& value, Tensor&, Tensor&, Tensor&,
                 const OptionalTensor&, const OptionalTensor&, c10::string_view, double, double, double) {
  return at::empty_like(value, at::MemoryFormat::Contiguous);
}

#define PERFORMER_FAVOR_SCHEMA                                                                               \
  "Tensor query, Tensor key, Tensor value, Tensor? projection, Tensor? offset, Tensor? key_mask, Tensor? "   \
  "query_mask, "                                                                                             \
  "Tensor? cu_query, Tensor? cu_key, Tensor? initial_kv, Tensor? initial_key_sum, Tensor? "                  \
  "initial_log_scale, "                                                                                      \
  "str family='exponential', float scale=1, float norm_weight=0.5, float epsilon=0, bool causal=False, int " \
  "chunk=0, "                                                                                                \
  "bool return_state=False"

}  // namespace

TORCH_LIBRARY(performer, library) {
  library.def("favor_attention(" PERFORMER_FAVOR_SCHEMA
              ") -> (Tensor out, Tensor normalizer, Tensor kv, Tensor key_sum, Tensor log_scale)");
  library.def(
      "favor_attention_backward(Tensor grad_out, Tensor out, Tensor normalizer, Tensor? grad_kv, Tensor? "
      "grad_key_sum, "
      "Tensor? final_log_scale, " PERFORMER_FAVOR_SCHEMA
      ") -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_kv, Tensor grad_key_sum)");
  library.def(
      "favor_step(Tensor query, Tensor key, Tensor value, Tensor(a!) kv, Tensor(b!) key_sum, Tensor(c!) "
      "log_scale, "
      "Tensor? projection, Tensor? offset, str family='exponential', float scale=1, float norm_weight=0.5, "
      "float epsilon=0) -> Tensor");
}

TORCH_LIBRARY_IMPL(performer, CPU, library) {
  library.impl("favor_attention", forward_cpu);
  library.impl("favor_attention_backward", backward_cpu);
  library.impl("favor_step", step_cpu);
}

TORCH_LIBRARY_IMPL(performer, Meta, library) {
  library.impl("favor_attention", forward_meta);
  library.impl("favor_attention_backward", backward_meta);
  library.impl("favor_step", step_meta);
}

TORCH_LIBRARY_IMPL(performer, Autograd, library) {
  library.impl("favor_attention", favor_attention_autograd);
}

State empty_state(int64_t batch, int64_t heads, int64_t features, int64_t value_size,
                  const std::string& family, const at::TensorOptions& options) {
  const double scale = family == "exponential" ? kernels::kEmptyLogScale : 0;
  return {at::zeros({batch, heads, features, value_size}, options),
          at::zeros({batch, heads, features}, options), at::full({batch, heads, features}, scale, options)};
}

std::tuple<Tensor, State> favor_attention(const AttentionInputs& in, const FeatureMap& map) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("performer::favor_attention", "")
                       .typed<ForwardSignature>();
  OptionalTensor kv, key_sum, log_scale;
  if (in.initial.has_value())
    kv = in.initial->kv, key_sum = in.initial->key_sum, log_scale = in.initial->log_scale;
  auto [out, normalizer, final_kv, final_key_sum, final_log_scale] =
      op.call(in.query, in.key, in.value, map.projection, map.offset, in.key_mask, in.query_mask, in.cu_query,
              in.cu_key, kv, key_sum, log_scale, map.family, map.scale, map.norm_weight, map.epsilon,
              in.causal, in.chunk, in.return_state);
  if (!in.return_state) return {out, State{}};
  return {out, State{final_kv, final_key_sum, final_log_scale}};
}

Tensor favor_step(const Tensor& query, const Tensor& key, const Tensor& value, State& state,
                  const FeatureMap& map) {
  static auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("performer::favor_step", "").typed<StepSignature>();
  return op.call(query, key, value, state.kv, state.key_sum, state.log_scale, map.projection, map.offset,
                 map.family, map.scale, map.norm_weight, map.epsilon);
}

}  // namespace performer::ops
