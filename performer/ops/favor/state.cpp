// SPDX-License-Identifier: Apache-2.0
// The algebra of states: performer::merge_states and performer::key_state, composed of other operators and so
// differentiable by them, and the empty state.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "performer/ops/favor/call.h"

namespace performer::ops {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using StateTensors = std::tuple<Tensor, Tensor, Tensor>;

void check_mergeable(const State& a, const State& b) {
  const auto fits = [](const State& s) {
    return s.kv.dim() == 4 && s.key_sum.sym_sizes() == s.kv.sym_sizes().slice(0, 3) &&
           s.log_scale.sym_sizes() == s.key_sum.sym_sizes();
  };
  for (const State* s : {&a, &b}) {
    TORCH_CHECK_VALUE(fits(*s),
                      "merge_states: a state is kv [batch, heads, features, size] with key_sum and log_scale "
                      "[batch, heads, features], found ",
                      s->kv.sym_sizes(), ", ", s->key_sum.sym_sizes(), " and ", s->log_scale.sym_sizes());
  }
  TORCH_CHECK_VALUE(a.kv.sym_sizes() == b.kv.sym_sizes(),
                    "merge_states: both states must have the same shape, found kv ", a.kv.sym_sizes(),
                    " and ", b.kv.sym_sizes());
  TORCH_CHECK_TYPE(a.kv.scalar_type() == b.kv.scalar_type(),
                   "merge_states: both states must have the same type, found ", a.kv.scalar_type(), " and ",
                   b.kv.scalar_type());
}

// Log-scales are representations, not values: they get no gradient.
StateTensors merge(const Tensor& kv_a, const Tensor& key_sum_a, const Tensor& log_scale_a, const Tensor& kv_b,
                   const Tensor& key_sum_b, const Tensor& log_scale_b) {
  check_mergeable({kv_a, key_sum_a, log_scale_a}, {kv_b, key_sum_b, log_scale_b});
  const Tensor scale_a = log_scale_a.detach(), scale_b = log_scale_b.detach();
  const Tensor scale = at::maximum(scale_a, scale_b);
  const Tensor of_a = (scale_a - scale).exp(), of_b = (scale_b - scale).exp();
  return {kv_a * of_a.unsqueeze(-1) + kv_b * of_b.unsqueeze(-1), key_sum_a * of_a + key_sum_b * of_b, scale};
}

// Attention of no queries at all, of which only the state is wanted.
StateTensors state_of_keys(const Tensor& key, const Tensor& value, const OptionalTensor& projection,
                           const OptionalTensor& offset, const OptionalTensor& key_mask,
                           const OptionalTensor& cu_key, const OptionalTensor& initial_kv,
                           const OptionalTensor& initial_key_sum, const OptionalTensor& initial_log_scale,
                           c10::string_view family, double scale, double norm_weight, double epsilon,
                           int64_t chunk, c10::string_view backend) {
  TORCH_CHECK_VALUE(key.dim() == 4, "key_state: key must be [batch, tokens, heads, size], found ", key.dim(),
                    " dimensions");
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("performer::favor_attention", "")
                             .typed<ForwardSignature>();
  OptionalTensor cu_query;
  if (cu_key.has_value() && cu_key->defined()) cu_query = at::zeros_like(*cu_key);
  auto [out, normalizer, kv, key_sum, log_scale] =
      op.call(key.narrow(1, 0, 0), key, value, projection, offset, key_mask, {}, cu_query, cu_key, initial_kv,
              initial_key_sum, initial_log_scale, family, scale, norm_weight, epsilon, /*causal=*/false,
              chunk, /*return_state=*/true, backend);
  return {kv, key_sum, log_scale};
}

using MergeSignature = StateTensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                    const Tensor&);

}  // namespace

TORCH_LIBRARY_FRAGMENT(performer, library) {
  library.def(
      "merge_states(Tensor kv_a, Tensor key_sum_a, Tensor log_scale_a, Tensor kv_b, Tensor key_sum_b, "
      "Tensor log_scale_b) -> (Tensor kv, Tensor key_sum, Tensor log_scale)",
      merge);
  library.def(
      "key_state(Tensor key, Tensor value, Tensor? projection=None, Tensor? offset=None, "
      "Tensor? key_mask=None, Tensor? cu_key=None, Tensor? initial_kv=None, Tensor? initial_key_sum=None, "
      "Tensor? initial_log_scale=None, str family='exponential', float scale=1, float norm_weight=0.5, "
      "float epsilon=0, int chunk=0, str backend='') -> (Tensor kv, Tensor key_sum, Tensor log_scale)",
      state_of_keys);
}

State empty_state(int64_t batch, int64_t heads, int64_t features, int64_t value_size,
                  const std::string& family, const at::TensorOptions& options) {
  const double scale = family_of(family) == kernels::Family::elementwise ? 0 : kernels::kEmptyLogScale;
  return {at::zeros({batch, heads, features, value_size}, options),
          at::zeros({batch, heads, features}, options), at::full({batch, heads, features}, scale, options)};
}

State merge_states(const State& a, const State& b) {
  TORCH_CHECK_VALUE(a.defined() && b.defined(), "merge_states: a state is undefined");
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("performer::merge_states", "").typed<MergeSignature>();
  auto [kv, key_sum, log_scale] = op.call(a.kv, a.key_sum, a.log_scale, b.kv, b.key_sum, b.log_scale);
  return {kv, key_sum, log_scale};
}

State key_state(const KeyInputs& in, const FeatureMap& map) {
  const State initial = in.initial.value_or(State{});
  auto [kv, key_sum, log_scale] =
      state_of_keys(in.key, in.value, map.projection, map.offset, in.key_mask, in.cu_key,
                    or_nothing(initial.kv), or_nothing(initial.key_sum), or_nothing(initial.log_scale),
                    map.family, map.scale, map.norm_weight, map.epsilon, in.chunk, in.backend);
  return {kv, key_sum, log_scale};
}

}  // namespace performer::ops
