// SPDX-License-Identifier: Apache-2.0
#include "performer/references/jax/module.h"

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <fmt/ranges.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/models/import_weights.h"

namespace performer::references::jax {
namespace {

namespace jax = references::jax;

// Flax's dense layers, [in, H, head] and [H, head, out], as LibTorch's [out, in]. A tensor of another rank is
// left as it is: the import then names it with its shape.
at::Tensor flax_kernel(const at::Tensor& kernel, bool out) {
  if (kernel.dim() != 3) return kernel;
  return out ? kernel.flatten(0, 1).t() : kernel.flatten(1, 2).t();
}

}  // namespace

FastAttentionModuleImpl::FastAttentionModuleImpl(const FastAttentionModuleOptions& options)
    : options_(options) {
  check<UsageError>(options.heads >= 1 && options.query_size >= 1,
                    "at least 1 head and 1 input feature are needed, found {} "
                    "and {}",
                    options.heads, options.query_size);
  if (options_.key_value_size == 0) options_.key_value_size = options_.query_size;
  if (options_.qkv_features == 0) options_.qkv_features = options_.query_size;
  if (options_.out_features == 0) options_.out_features = options_.query_size;
  check<UsageError>(options_.qkv_features % options_.heads == 0,
                    "qkv_features {} are not divisible by {} heads", options_.qkv_features, options_.heads);
  head_size_ = options_.qkv_features / options_.heads;
  const auto linear = [&](const char* name, int64_t in, int64_t out) {
    torch::nn::Linear made(torch::nn::LinearOptions(in, out).bias(options_.use_bias));
    const at::NoGradGuard no_grad;
    made->weight.normal_(0, 1 / std::sqrt(static_cast<double>(in)));
    if (options_.use_bias) made->bias.zero_();
    return register_module(name, made);
  };
  query_ = linear("query", options_.query_size, options_.qkv_features);
  key_ = linear("key", options_.key_value_size, options_.qkv_features);
  value_ = linear("value", options_.key_value_size, options_.qkv_features);
  out_ = linear("out", options_.qkv_features, options_.out_features);
  std::visit([&](auto& attention) { attention.head_size = head_size_; }, options_.attention);
  if (const auto* softmax = std::get_if<jax::SoftmaxAttentionOptions>(&options_.attention)) {
    if (!softmax->redraw) projection_ = jax::make_fast_softmax_attention(*softmax).projection_for({});
  } else {
    const auto& generalized = std::get<jax::GeneralizedAttentionOptions>(options_.attention);
    if (!generalized.redraw)
      projection_ = jax::make_fast_generalized_attention(generalized).projection_for({});
  }
  if (projection_.defined()) projection_ = register_buffer("projection", projection_);
}

at::Tensor FastAttentionModuleImpl::forward(const at::Tensor& inputs_q, const at::Tensor& inputs_kv,
                                            const std::optional<at::Tensor>& mask_k) {
  const auto heads = [&](torch::nn::Linear& linear, const at::Tensor& x) {
    return linear(x).unflatten(-1, {options_.heads, head_size_});
  };
  const at::Tensor query = heads(query_, inputs_q), key = heads(key_, inputs_kv);
  at::Tensor value = heads(value_, inputs_kv);
  if (mask_k.has_value() && mask_k->defined()) {
    // As in the reference's einsum, a mask may lack the batch or have one row for all.
    const at::IntArrayRef keys = inputs_kv.sizes().slice(0, inputs_kv.dim() - 1);
    check<UsageError>(
        mask_k->dim() >= 1 && mask_k->size(-1) == keys.back() && at::is_expandable_to(mask_k->sizes(), keys),
        "the mask of keys must be [{}], found [{}]", fmt::join(keys, ", "), fmt::join(mask_k->sizes(), ", "));
    value = value * mask_k->to(value.scalar_type()).unsqueeze(-1).unsqueeze(-1);
  }
  std::optional<at::Tensor> projection;
  if (projection_.defined()) projection = projection_;
  const jax::FastAttention attention = std::visit(
      [&](const auto& of) {
        if constexpr (std::is_same_v<std::decay_t<decltype(of)>, jax::SoftmaxAttentionOptions>) {
          return jax::make_fast_softmax_attention(of, projection);
        } else {
          return jax::make_fast_generalized_attention(of, projection);
        }
      },
      options_.attention);
  return out_(attention(query, key, value).flatten(-2));
}

void FastAttentionModuleImpl::import_flax(const std::map<std::string, at::Tensor>& weights) {
  std::map<std::string, at::Tensor> ours;
  for (const auto& [name, tensor] : weights) {
    const size_t slash = name.find('/');
    const std::string layer = name.substr(0, slash),
                      part = slash == std::string::npos ? "" : name.substr(slash + 1);
    if (part == "kernel") {
      ours[layer + ".weight"] = flax_kernel(tensor, layer == "out");
    } else if (part == "bias") {
      ours[layer + ".bias"] = tensor.flatten();
    } else {
      ours[name] = tensor;
    }
  }
  import_weights(*this, ours);
}

}  // namespace performer::references::jax
