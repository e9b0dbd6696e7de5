// SPDX-License-Identifier: Apache-2.0
// performer::fast_softmax_attention and performer::fast_generalized_attention: operators composed of
// differentiable ones, so LibTorch derives gradients and shapes by itself.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "performer/references/jax/attention.h"

namespace performer::references::jax {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

std::vector<int64_t> axis_of(at::OptionalIntArrayRef axis) {
  return axis.has_value() ? axis->vec() : std::vector<int64_t>{};
}

Tensor softmax_operator(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& projection,
                        at::OptionalIntArrayRef axis, bool renormalize, double stabilizer,
                        bool unidirectional, bool nonnegative, bool key_shift_over_tensor, int64_t chunk) {
  SoftmaxAttentionOptions options;
  options.head_size = query.size(-1);
  options.renormalize = renormalize;
  options.stabilizer = stabilizer;
  options.unidirectional = unidirectional;
  options.nonnegative = nonnegative;
  options.key_shift = key_shift_over_tensor ? KeyShift::tensor : KeyShift::sequence;
  options.chunk = chunk;
  return make_fast_softmax_attention(options, projection)(query, key, value, axis_of(axis));
}

Tensor generalized_operator(const Tensor& query, const Tensor& key, const Tensor& value,
                            const OptionalTensor& projection, c10::string_view function, double epsilon,
                            at::OptionalIntArrayRef axis, bool renormalize, double stabilizer,
                            bool unidirectional, int64_t chunk) {
  GeneralizedAttentionOptions options;
  options.head_size = query.size(-1);
  options.function = std::string(function);
  options.epsilon = epsilon;
  options.renormalize = renormalize;
  options.stabilizer = stabilizer;
  options.unidirectional = unidirectional;
  options.chunk = chunk;
  return make_fast_generalized_attention(options, projection)(query, key, value, axis_of(axis));
}

}  // namespace

Tensor fast_softmax_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                              const Tensor& projection, const SoftmaxAttentionOptions& options,
                              const std::vector<int64_t>& axis) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("performer::fast_softmax_attention", "")
                       .typed<decltype(softmax_operator)>();
  return op.call(query, key, value, projection, at::IntArrayRef(axis), options.renormalize,
                 options.stabilizer, options.unidirectional, options.nonnegative,
                 options.key_shift == KeyShift::tensor, options.chunk);
}

Tensor fast_generalized_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                  const OptionalTensor& projection,
                                  const GeneralizedAttentionOptions& options,
                                  const std::vector<int64_t>& axis) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("performer::fast_generalized_attention", "")
                       .typed<decltype(generalized_operator)>();
  return op.call(query, key, value, projection, options.function, options.epsilon, at::IntArrayRef(axis),
                 options.renormalize, options.stabilizer, options.unidirectional, options.chunk);
}

TORCH_LIBRARY_FRAGMENT(performer, library) {
  library.def(
      "fast_softmax_attention(Tensor query, Tensor key, Tensor value, Tensor projection, int[]? axis=None, "
      "bool renormalize=True, float stabilizer=1e-06, bool unidirectional=False, bool nonnegative=True, "
      "bool key_shift_over_tensor=False, int chunk=64) -> Tensor",
      torch::dispatch(c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(softmax_operator)));
  library.def(
      "fast_generalized_attention(Tensor query, Tensor key, Tensor value, Tensor? projection=None, "
      "str function='relu', float epsilon=0.001, int[]? axis=None, bool renormalize=True, float "
      "stabilizer=0., "
      "bool unidirectional=False, int chunk=64) -> Tensor",
      torch::dispatch(c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(generalized_operator)));
}

}  // namespace performer::references::jax
