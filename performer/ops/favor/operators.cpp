// SPDX-License-Identifier: Apache-2.0
// favor_attention and favor_step as LibTorch operators: schemas, the way from arguments to a backend, shapes
// without data (Meta), and the C++ functions. The derivative is in autograd.cpp.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "performer/ops/favor/call.h"

namespace performer::ops {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

at::TensorOptions sum_options_of(const Tensor& query) {
  return query.options().dtype(precise_type(query));
}

Results forward(PERFORMER_FAVOR_PARAMETERS) {
  const Call call(Arguments{PERFORMER_FAVOR_NAMES});
  ForwardResults results{
      at::empty({value.size(0), query.size(1), call.heads, call.value_size}, value.options()),
      at::empty({query.size(0), query.size(1), call.heads}, call.sum_options),
      {}};
  if (return_state) results.final = call.new_state();
  call.backend->forward(call, results);
  if (!return_state) {
    const auto none = [&] { return at::empty({0}, call.sum_options); };
    return {results.out, results.normalizer, none(), none(), none()};
  }
  return {results.out, results.normalizer, results.final.kv, results.final.key_sum, results.final.log_scale};
}

// Shapes of packed states need the number of segments only, so nothing here reads data.
Results forward_meta(PERFORMER_FAVOR_PARAMETERS) {
  (void)key, (void)scale, (void)norm_weight, (void)epsilon, (void)causal, (void)chunk;
  (void)offset, (void)key_mask, (void)query_mask, (void)cu_key, (void)initial_key_sum,
      (void)initial_log_scale, (void)initial_kv;
  const kernels::Family known = family_of(std::string_view(family.data(), family.size()));
  check_backend_name(std::string_view(backend.data(), backend.size()));
  const auto sums = sum_options_of(query);
  Tensor out = at::empty_symint({value.sym_size(0), query.sym_size(1), query.sym_size(2), value.sym_size(3)},
                                value.options());
  Tensor normalizer = at::empty_symint({query.sym_size(0), query.sym_size(1), query.sym_size(2)}, sums);
  if (!return_state)
    return {out, normalizer, at::empty({0}, sums), at::empty({0}, sums), at::empty({0}, sums)};
  const c10::SymInt batch = cu_query.has_value() ? cu_query->sym_size(0) - 1 : query.sym_size(0);
  c10::SymInt features = projection.has_value() ? projection->sym_size(-2) : query.sym_size(3);
  if (known == kernels::Family::trigonometric) features = 2 * features + 1;
  return {out, normalizer, at::empty_symint({batch, query.sym_size(2), features, value.sym_size(3)}, sums),
          at::empty_symint({batch, query.sym_size(2), features}, sums),
          at::empty_symint({batch, query.sym_size(2), features}, sums)};
}

Gradients backward(const Tensor& grad_out, const Tensor& out, const Tensor& normalizer,
                   const OptionalTensor& grad_kv, const OptionalTensor& grad_key_sum,
                   const OptionalTensor& final_kv, const OptionalTensor& final_key_sum,
                   const OptionalTensor& final_log_scale, PERFORMER_FAVOR_PARAMETERS) {
  (void)return_state;
  BackwardCall call{Call(Arguments{PERFORMER_FAVOR_NAMES}), grad_out, out, normalizer, {}, {}, {}};
  if (final_kv.has_value()) call.final.kv = final_kv->contiguous();
  if (final_key_sum.has_value()) call.final.key_sum = final_key_sum->contiguous();
  if (final_log_scale.has_value()) call.final.log_scale = final_log_scale->contiguous();
  const Call& c = call.call;
  if (grad_kv.has_value() && grad_kv->defined()) {
    call.grad_kv = grad_kv->to(c.sum_options.dtype()).contiguous();
    call.grad_key_sum = grad_key_sum->to(c.sum_options.dtype()).contiguous();
  }
  BackwardResults results{at::empty(query.sizes(), query.options()),
                          at::empty(key.sizes(), key.options()),
                          at::empty(value.sizes(), value.options()),
                          {},
                          {}};
  if (c.initial.defined()) {
    results.kv = at::empty(c.kv_shape(), c.sum_options);
    results.key_sum = at::empty(c.sum_shape(), c.sum_options);
  }
  c.backend->backward(call, results);
  if (!c.initial.defined())
    results.kv = at::empty({0}, c.sum_options), results.key_sum = at::empty({0}, c.sum_options);
  return {results.query, results.key, results.value, results.kv, results.key_sum};
}

Gradients backward_meta(const Tensor& grad_out, const Tensor& out, const Tensor& normalizer,
                        const OptionalTensor& grad_kv, const OptionalTensor& grad_key_sum,
                        const OptionalTensor& final_kv, const OptionalTensor& final_key_sum,
                        const OptionalTensor& final_log_scale, PERFORMER_FAVOR_PARAMETERS) {
  (void)grad_out, (void)out, (void)grad_kv, (void)grad_key_sum, (void)final_kv, (void)final_key_sum,
      (void)final_log_scale;
  (void)projection, (void)offset, (void)key_mask, (void)query_mask, (void)cu_query, (void)cu_key,
      (void)initial_log_scale, (void)backend;
  (void)family, (void)scale, (void)norm_weight, (void)epsilon, (void)causal, (void)chunk, (void)return_state;
  const bool stateful = initial_kv.has_value();
  return {at::empty_like(query, at::MemoryFormat::Contiguous),
          at::empty_like(key, at::MemoryFormat::Contiguous),
          at::empty_like(value, at::MemoryFormat::Contiguous),
          stateful ? at::empty_like(*initial_kv, at::MemoryFormat::Contiguous)
                   : at::empty({0}, normalizer.options()),
          stateful ? at::empty_like(*initial_key_sum, at::MemoryFormat::Contiguous)
                   : at::empty({0}, normalizer.options())};
}

// One token of each sequence; the three state tensors are updated in place.
Tensor step(const Tensor& query, const Tensor& key, const Tensor& value, Tensor& kv, Tensor& key_sum,
            Tensor& log_scale, const OptionalTensor& projection, const OptionalTensor& offset,
            c10::string_view family, double scale, double norm_weight, double epsilon,
            c10::string_view backend, const OptionalTensor& factors) {
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
  arguments.backend = std::string(backend);
  arguments.factors = factors;
  const Call call(arguments);
  const auto usable = [&](const Tensor& part, const std::vector<int64_t>& shape) {
    return part.sizes() == at::IntArrayRef(shape) && part.is_contiguous() &&
           part.scalar_type() == call.sum_options.dtype() && part.device() == query.device();
  };
  TORCH_CHECK_VALUE(
      usable(kv, call.kv_shape()) && usable(key_sum, call.sum_shape()) && usable(log_scale, call.sum_shape()),
      "favor_step: the state must be contiguous ", call.sum_options.dtype(), " on ", query.device(),
      " with kv ", at::IntArrayRef(call.kv_shape()), ", found kv ", kv.sizes(), ", key_sum ", key_sum.sizes(),
      ", log_scale ", log_scale.sizes());
  Tensor out = at::empty({value.size(0), 1, value.size(1), value.size(2)}, value.options());
  State state{kv, key_sum, log_scale};
  call.backend->step(call, state, out);
  return out.squeeze(1);
}

Tensor step_meta(const Tensor&, const Tensor&, const Tensor& value, Tensor&, Tensor&, Tensor&,
                 const OptionalTensor&, const OptionalTensor&, c10::string_view, double, double, double,
                 c10::string_view, const OptionalTensor&) {
  return at::empty_like(value, at::MemoryFormat::Contiguous);
}

#define PERFORMER_FAVOR_SCHEMA                                                                           \
  "Tensor query, Tensor key, Tensor value, Tensor? projection=None, Tensor? offset=None, "               \
  "Tensor? key_mask=None, Tensor? query_mask=None, Tensor? cu_query=None, Tensor? cu_key=None, "         \
  "Tensor? initial_kv=None, Tensor? initial_key_sum=None, Tensor? initial_log_scale=None, "              \
  "str family='exponential', float scale=1, float norm_weight=0.5, float epsilon=0, bool causal=False, " \
  "int chunk=0, bool return_state=False, str backend=''"

}  // namespace

TORCH_LIBRARY(performer, library) {
  library.def("favor_attention(" PERFORMER_FAVOR_SCHEMA
              ") -> (Tensor out, Tensor normalizer, Tensor kv, Tensor key_sum, Tensor log_scale)");
  library.def(
      "favor_attention_backward(Tensor grad_out, Tensor out, Tensor normalizer, Tensor? grad_kv, "
      "Tensor? grad_key_sum, Tensor? final_kv, Tensor? final_key_sum, Tensor? "
      "final_log_scale, " PERFORMER_FAVOR_SCHEMA
      ") -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_kv, Tensor grad_key_sum)");
  library.def(
      "favor_step(Tensor query, Tensor key, Tensor value, Tensor(a!) kv, Tensor(b!) key_sum, "
      "Tensor(c!) log_scale, Tensor? projection=None, Tensor? offset=None, str family='exponential', "
      "float scale=1, float norm_weight=0.5, float epsilon=0, str backend='', Tensor? factors=None) -> "
      "Tensor");
}

// One entry for every device: the call chooses the backend by the device and the name.
TORCH_LIBRARY_IMPL(performer, CompositeExplicitAutograd, library) {
  library.impl("favor_attention", forward);
  library.impl("favor_attention_backward", backward);
  library.impl("favor_step", step);
}

TORCH_LIBRARY_IMPL(performer, Meta, library) {
  library.impl("favor_attention", forward_meta);
  library.impl("favor_attention_backward", backward_meta);
  library.impl("favor_step", step_meta);
}

Results favor_results(const AttentionInputs& in, const FeatureMap& map) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("performer::favor_attention", "")
                             .typed<ForwardSignature>();
  OptionalTensor kv, key_sum, log_scale;
  if (in.initial.has_value())
    kv = in.initial->kv, key_sum = in.initial->key_sum, log_scale = in.initial->log_scale;
  return op.call(in.query, in.key, in.value, map.projection, map.offset, in.key_mask, in.query_mask,
                 in.cu_query, in.cu_key, kv, key_sum, log_scale, map.family, map.scale, map.norm_weight,
                 map.epsilon, in.causal, in.chunk, in.return_state, in.backend);
}

std::tuple<Tensor, State> favor_attention(const AttentionInputs& in, const FeatureMap& map) {
  auto [out, normalizer, final_kv, final_key_sum, final_log_scale] = favor_results(in, map);
  if (!in.return_state) return {out, State{}};
  return {out, State{final_kv, final_key_sum, final_log_scale}};
}

Tensor favor_step(const Tensor& query, const Tensor& key, const Tensor& value, State& state,
                  const FeatureMap& map, const std::string& backend) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("performer::favor_step", "").typed<StepSignature>();
  return op.call(query, key, value, state.kv, state.key_sum, state.log_scale, map.projection, map.offset,
                 map.family, map.scale, map.norm_weight, map.epsilon, backend, map.factors);
}

}  // namespace performer::ops
