// SPDX-License-Identifier: Apache-2.0
// The derivative of favor_attention: what is kept is the inputs, the output, one normalizer a row, and the
// final state where it is small beside the values.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "performer/ops/favor/call.h"

namespace performer::ops {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

auto find_forward() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("performer::favor_attention", "")
                       .typed<ForwardSignature>();
  return op;
}
auto find_backward() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("performer::favor_attention_backward", "")
                       .typed<BackwardSignature>();
  return op;
}

// Whether the bidirectional backward pass of the CPU kernels shall find the keys' state ready, which saves it
// a fifth of its work: where all states together are at most half as large as the values.
bool keeps_state(const Tensor& query, const Tensor& key, const OptionalTensor& projection,
                 const OptionalTensor& cu_key, const std::string& family, bool causal,
                 c10::string_view backend) {
  if (causal || !query.device().is_cpu() || query.scalar_type() == at::kDouble || backend == "composed" ||
      key.dim() != 4)
    return false;
  const auto sequences = cu_key.has_value() ? cu_key->sym_size(0) - 1 : c10::SymInt(1);
  auto features =
      projection.has_value() && projection->dim() > 1 ? projection->sym_size(-2) : key.sym_size(3);
  if (family == "trigonometric") features = 2 * features + 1;
  return 2 * sequences * features <= key.sym_size(1);
}

struct FavorAttention : torch::autograd::Function<FavorAttention> {
  static variable_list forward(AutogradContext* context, PERFORMER_FAVOR_PARAMETERS) {
    at::AutoDispatchBelowADInplaceOrView below;
    const std::string name(family), backend_name(backend);
    const bool keeps = keeps_state(query, key, projection, cu_key, name, causal, backend);
    auto [out, normalizer, kv, key_sum, log_scale] =
        find_forward().call(query, key, value, projection, offset, key_mask, query_mask, cu_query, cu_key,
                            initial_kv, initial_key_sum, initial_log_scale, name, scale, norm_weight, epsilon,
                            causal, chunk, return_state || keeps, backend_name);
    context->save_for_backward({query, key, value, or_undefined(projection), or_undefined(offset),
                                or_undefined(key_mask), or_undefined(query_mask), or_undefined(cu_query),
                                or_undefined(cu_key), or_undefined(initial_kv), or_undefined(initial_key_sum),
                                or_undefined(initial_log_scale), out, normalizer, log_scale,
                                keeps ? kv : Tensor(), keeps ? key_sum : Tensor()});
    context->saved_data["family"] = name;
    context->saved_data["scale"] = scale;
    context->saved_data["norm_weight"] = norm_weight;
    context->saved_data["epsilon"] = epsilon;
    context->saved_data["causal"] = causal;
    context->saved_data["chunk"] = chunk;
    context->saved_data["return_state"] = return_state;
    context->saved_data["backend"] = backend_name;
    if (!return_state) {
      for (Tensor* part : {&kv, &key_sum, &log_scale}) *part = at::empty({0}, part->options());
    }
    context->mark_non_differentiable({normalizer, log_scale});
    context->set_materialize_grads(false);
    return {out, normalizer, kv, key_sum, log_scale};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        !at::GradMode::is_enabled(),
        "favor_attention: second derivatives are not implemented; call backward without create_graph");
    const auto saved = context->get_saved_variables();
    const Tensor& out = saved[12];
    const Tensor& normalizer = saved[13];
    const bool return_state = context->saved_data["return_state"].toBool();
    const Tensor grad_out = grads[0].defined() ? grads[0] : at::zeros_like(out);
    const bool has_state = return_state || saved[15].defined();
    OptionalTensor grad_kv, grad_key_sum, log_scale = has_state ? or_nothing(saved[14]) : std::nullopt;
    if (return_state && (grads[2].defined() || grads[3].defined())) {
      grad_key_sum = grads[3].defined() ? grads[3] : at::zeros_like(saved[14]);
      if (grads[2].defined()) {
        grad_kv = grads[2];
      } else {
        auto sizes = saved[14].sym_sizes().vec();
        sizes.push_back(saved[2].sym_size(3));
        grad_kv = at::zeros_symint(sizes, saved[14].options());
      }
    }
    auto [grad_query, grad_key, grad_value, grad_initial_kv, grad_initial_key_sum] = find_backward().call(
        grad_out, out, normalizer, grad_kv, grad_key_sum, or_nothing(saved[15]), or_nothing(saved[16]),
        log_scale, saved[0], saved[1], saved[2], or_nothing(saved[3]), or_nothing(saved[4]),
        or_nothing(saved[5]), or_nothing(saved[6]), or_nothing(saved[7]), or_nothing(saved[8]),
        or_nothing(saved[9]), or_nothing(saved[10]), or_nothing(saved[11]),
        context->saved_data["family"].toStringRef(), context->saved_data["scale"].toDouble(),
        context->saved_data["norm_weight"].toDouble(), context->saved_data["epsilon"].toDouble(),
        context->saved_data["causal"].toBool(), context->saved_data["chunk"].toInt(), return_state,
        context->saved_data["backend"].toStringRef());
    variable_list result(kFavorParameters);  // one entry a parameter of forward
    result[0] = grad_query;
    result[1] = grad_key;
    result[2] = grad_value;
    if (saved[9].defined()) {
      result[9] = grad_initial_kv;
      result[10] = grad_initial_key_sum;
    }
    return result;
  }
};

// Recording a call costs as much as a small one takes.
bool wants_gradient(const Tensor& query, const Tensor& key, const Tensor& value,
                    const OptionalTensor& initial_kv, const OptionalTensor& initial_key_sum) {
  if (!at::GradMode::is_enabled()) return false;
  const auto asks = [](const OptionalTensor& t) { return t.has_value() && t->requires_grad(); };
  return query.requires_grad() || key.requires_grad() || value.requires_grad() || asks(initial_kv) ||
         asks(initial_key_sum);
}

Results favor_attention_autograd(PERFORMER_FAVOR_PARAMETERS) {
  for (const auto* constant : {&projection, &offset}) {
    TORCH_CHECK_VALUE(!constant->has_value() || !(*constant)->requires_grad(),
                      "favor_attention: projection and offset are constants and get no gradient; apply "
                      "learned maps to query and key "
                      "before the call, or detach");
  }
  if (!wants_gradient(query, key, value, initial_kv, initial_key_sum)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return find_forward().call(query, key, value, projection, offset, key_mask, query_mask, cu_query, cu_key,
                               initial_kv, initial_key_sum, initial_log_scale, family, scale, norm_weight,
                               epsilon, causal, chunk, return_state, backend);
  }
  auto results = FavorAttention::apply(query, key, value, projection, offset, key_mask, query_mask, cu_query,
                                       cu_key, initial_kv, initial_key_sum, initial_log_scale, family, scale,
                                       norm_weight, epsilon, causal, chunk, return_state, backend);
  return {results[0], results[1], results[2], results[3], results[4]};
}

}  // namespace

TORCH_LIBRARY_IMPL(performer, Autograd, library) {
  library.impl("favor_attention", favor_attention_autograd);
}

}  // namespace performer::ops
