// SPDX-License-Identifier: Apache-2.0
// The module: options, projections, weights, and the compatible mode. Attention of our own is in
// kernel_attention_own.cpp.
#include "performer/references/keras/kernel_attention.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "performer/base/error.h"
#include "performer/models/import_weights.h"
#include "performer/ops/dropout.h"
#include "performer/ops/projection.h"
#include "performer/references/keras/features.h"
#include "performer/references/keras/projection.h"

namespace performer::references::keras {
namespace kernel_own {  // file-local in effect; a name because sources are compiled together
namespace {

int64_t product(const std::vector<int64_t>& sizes) {
  int64_t result = 1;
  for (int64_t size : sizes) result *= size;
  return result;
}

// Bound of the Glorot-uniform distribution. Keras takes the last two dimensions as in and out and all others
// as a receptive field, also for kernels [width, H, D], where it is not one.
double glorot_limit(const std::vector<int64_t>& in, const std::vector<int64_t>& out, bool reference_fans) {
  auto fan_in = static_cast<double>(product(in)), fan_out = static_cast<double>(product(out));
  std::vector<int64_t> all = in;
  all.insert(all.end(), out.begin(), out.end());
  if (reference_fans && all.size() > 2) {
    const std::vector<int64_t> field(all.begin(), all.end() - 2);
    fan_in = static_cast<double>(product(field) * all[all.size() - 2]);
    fan_out = static_cast<double>(product(field) * all.back());
  }
  return std::sqrt(6 / (fan_in + fan_out));
}

void validate_window(const KernelAttentionOptions& options) {
  check<UsageError>(!options.is_short_seq, "use_causal_windowed and is_short_seq exclude each other");
  check<UsageError>(options.causal_chunk_length >= 1,
                    "causal_chunk_length must be at least 1 token, found {}", options.causal_chunk_length);
  const int64_t least = options.compatible ? 1 : 0;
  check<UsageError>(options.causal_window_length >= least,
                    "causal_window_length must be at least {} chunks, found {}", least,
                    options.causal_window_length);
  const std::string& padding = options.causal_padding;
  check<UsageError>(padding == "none" || padding == "left" || padding == "right",
                    "causal_padding '{}' is unknown; known: none, left, right", padding);
  if (options.causal_window_decay && !options.compatible) {
    check<UsageError>(*options.causal_window_decay >= 0 && *options.causal_window_decay <= 1,
                      "causal_window_decay must be from 0 to 1, found {}", *options.causal_window_decay);
  }
}

void validate_own(const KernelAttentionOptions& options) {
  check<UsageError>(options.begin_kernel >= 0, "begin_kernel must not be negative, found {}",
                    options.begin_kernel);
  check<UsageError>(!options.scale || (*options.scale >= 0 && std::isfinite(*options.scale)),
                    "scale must be finite and not negative: its root multiplies queries and keys; found {}",
                    options.scale.value_or(0));
  check<UsageError>(options.feature_transform != "expplus" || options.num_random_features > 0,
                    "expplus is made of random projections: num_random_features must be at least 1, found {}",
                    options.num_random_features);
}

}  // namespace
}  // namespace kernel_own

using at::Tensor;
namespace keras = performer::references::keras;

void validate(const KernelAttentionOptions& options) {
  const auto positive = [](int64_t value, const char* name) {
    check<UsageError>(value >= 1, "{} must be at least 1, found {}", name, value);
  };
  positive(options.query_width, "query_width");
  positive(options.num_heads, "num_heads");
  positive(options.key_dim, "key_dim");
  for (int64_t size : options.output_shape) positive(size, "each of output_shape");
  check<UsageError>(options.key_width >= 0 && options.value_width >= 0 && options.value_dim >= 0,
                    "key_width, value_width and value_dim must be sizes, or 0 for their defaults; found {}, "
                    "{} and {}",
                    options.key_width, options.value_width, options.value_dim);
  check<UsageError>(options.dropout >= 0 && options.dropout < 1, "dropout must be in [0, 1), found {}",
                    options.dropout);
  keras::check_transform(options.feature_transform);
  check<UsageError>(!options.redraw || options.num_random_features > 0,
                    "redraw needs a projection: num_random_features must be at least 1, found {}",
                    options.num_random_features);
  if (options.use_causal_windowed) kernel_own::validate_window(options);
  if (options.compatible) {
    constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
    check<UsageError>(options.seed >= -kLargest - 1 && options.seed < kLargest,
                      "seed and seed + 1 are int32 in the reference, found {}", options.seed);
  } else {
    kernel_own::validate_own(options);
  }
}

HeadDenseImpl::HeadDenseImpl(std::vector<int64_t> in, std::vector<int64_t> out, bool with_bias,
                             bool reference_fans)
    : in_dims_(static_cast<int64_t>(in.size())) {
  const double limit = kernel_own::glorot_limit(in, out, reference_fans);
  std::vector<int64_t> shape = in;
  shape.insert(shape.end(), out.begin(), out.end());
  kernel = register_parameter("kernel", at::empty(shape).uniform_(-limit, limit));
  if (with_bias) bias = register_parameter("bias", at::zeros(out));
}

Tensor HeadDenseImpl::forward(const Tensor& x) {
  const auto out = kernel.sizes().slice(in_dims_);
  Tensor matrix = kernel.reshape({kernel_own::product(kernel.sizes().slice(0, in_dims_).vec()), -1});
  if (x.scalar_type() == at::kDouble) matrix = matrix.to(at::kDouble);
  const Tensor y = at::matmul(x.flatten(-in_dims_), matrix).unflatten(-1, out);
  return bias.defined() ? y + bias : y;
}

KernelAttentionImpl::KernelAttentionImpl(const KernelAttentionOptions& options) : options_(options) {
  validate(options_);
  KernelAttentionOptions& o = options_;
  if (o.value_width == 0) o.value_width = o.query_width;
  if (o.key_width == 0) o.key_width = o.value_width;
  if (o.value_dim == 0) o.value_dim = o.key_dim;
  output_shape_ = o.output_shape.empty() ? std::vector<int64_t>{o.query_width} : o.output_shape;
  scale_ = o.scale.value_or(1 / std::sqrt(static_cast<double>(o.key_dim)));
  const auto dense = [&](const char* name, std::vector<int64_t> in, std::vector<int64_t> out) {
    return register_module(name, HeadDense(std::move(in), std::move(out), o.use_bias, o.compatible));
  };
  query_ = dense("query", {o.query_width}, {o.num_heads, o.key_dim});
  key_ = dense("key", {o.key_width}, {o.num_heads, o.key_dim});
  value_ = dense("value", {o.value_width}, {o.num_heads, o.value_dim});
  output_ = dense("attention_output", {o.num_heads, o.value_dim}, output_shape_);
  if (o.begin_kernel > 0) {
    output_softmax_ = dense("attention_output_softmax", {o.num_heads, o.value_dim}, output_shape_);
  }
  if (o.num_random_features > 0) {
    projection_ = register_buffer(
        "projection",
        o.compatible ? keras::projection_from_seed(o.num_random_features, o.key_dim, {o.seed, o.seed + 1})
                     : draw(0));
  }
  if (o.redraw && o.compatible) draws_ = register_buffer("draws", at::zeros({1}, at::kLong));
  if (o.feature_transform == "expplus" && !o.compatible) {
    statistics_ = register_buffer("statistics", at::full({o.num_heads}, -1.0));
  }
}

Tensor KernelAttentionImpl::draw(int64_t index) const {
  if (!options_.compatible) {
    return ops::draw_projection("orthogonal", "chi", options_.num_heads, options_.num_random_features,
                                options_.key_dim, options_.seed, options_.layer, index);
  }
  if (redraw_source_) return redraw_source_(index);
  return keras::redrawn_projection(options_.num_random_features, options_.key_dim, options_.seed, index);
}

void KernelAttentionImpl::redraw(int64_t index) {
  if (!options_.redraw) return;
  const at::NoGradGuard no_grad;
  if (options_.compatible) {
    draws_.fill_(index);
  } else {
    projection_.copy_(draw(index));
  }
}

void KernelAttentionImpl::set_redraw_source(std::function<Tensor(int64_t)> source) {
  redraw_source_ = std::move(source);
}

void KernelAttentionImpl::check_inputs(const KernelAttentionInputs& inputs) const {
  const auto fits = [](const Tensor& x, const char* name, const Tensor& like, int64_t width) {
    check<UsageError>(x.dim() == 3 && x.size(-1) == width && x.size(0) == like.size(0),
                      "{} must be [{}, tokens, {}], found [{}]", name, like.size(0), width,
                      fmt::join(x.sizes(), ", "));
  };
  fits(inputs.query, "query", inputs.query, options_.query_width);
  fits(inputs.value, "value", inputs.query, options_.value_width);
  const Tensor& key = inputs.key.value_or(inputs.value);
  fits(key, "key", inputs.query, options_.key_width);
  check<UsageError>(key.size(1) == inputs.value.size(1),
                    "key and value must have the same tokens, found {} and {}", key.size(1),
                    inputs.value.size(1));
  check<UsageError>(inputs.cache == nullptr || options_.use_causal_windowed,
                    "a cache needs use_causal_windowed: without windows every query sees every key");
}

void KernelAttentionImpl::check_compatible_cache(bool training) const {
  check<UsageError>(!training, "the reference takes no cache while training");
  check<UsageError>(options_.begin_kernel == 0, "the reference takes no cache with begin_kernel");
  check<UsageError>(keras::transform_streams(options_.feature_transform),
                    "the reference takes no cache with feature_transform {}", options_.feature_transform);
}

KernelAttentionImpl::Heads KernelAttentionImpl::project(const KernelAttentionInputs& inputs) {
  const Tensor& key = inputs.key.value_or(inputs.value);
  if (!options_.compatible) return {query_(inputs.query), key_(key), value_(inputs.value)};
  // In double like the attention itself, which can magnify the rounding of heads a thousandfold.
  const auto wide = [](const Tensor& x) { return x.to(at::kDouble); };
  return {query_(wide(inputs.query)), key_(wide(key)), value_(wide(inputs.value))};
}

KernelAttentionImpl::Parts KernelAttentionImpl::compatible_attention(const Heads& heads,
                                                                     const KernelAttentionInputs& inputs,
                                                                     bool training) {
  check<UsageError>(!inputs.query_mask, "query_mask: the reference has none; use the default mode");
  const bool begins = options_.begin_kernel > 0;
  check<UsageError>(!begins || !options_.use_causal_windowed,
                    "begin_kernel with use_causal_windowed always raises in the reference; use the default "
                    "mode");
  std::optional<Tensor> projection;
  if (projection_.defined()) projection = projection_;
  if (options_.redraw && training && !begins) {  // with begin_kernel the flag never arrives there
    projection = draw(draws_.item<int64_t>());
    draws_.add_(1);
  }
  keras::AttentionOptions with;
  with.feature_transform = options_.feature_transform;
  with.is_short_seq = options_.is_short_seq;
  with.scale = scale_;
  with.scale_by_length = options_.scale_by_length;
  if (options_.use_causal_windowed) {
    with.window = keras::Window{options_.causal_chunk_length, options_.causal_window_length,
                                options_.causal_window_decay, options_.causal_padding};
  }
  keras::Cache* cache = inputs.cache != nullptr ? &inputs.cache->reference : nullptr;
  std::optional<Tensor> mask = inputs.attention_mask;
  if (mask) {
    check<UsageError>(
        mask->scalar_type() == inputs.query.scalar_type(),
        "attention_mask must have the type of the inputs, {}, as in the reference, which refuses "
        "bool and integers; found {}",
        c10::toString(inputs.query.scalar_type()), c10::toString(mask->scalar_type()));
    mask = mask->to(at::kDouble);
  }
  const auto attend = [&](const Tensor& query) {
    return keras::compute_attention(query, heads.key, heads.value, with, projection, mask, cache);
  };
  if (!begins) return {{}, attend(heads.query)};
  Parts parts;
  const int64_t first = std::min(options_.begin_kernel, heads.query.size(1));
  parts.kernel = attend(heads.query.slice(1, first));
  with.feature_transform = "identity";
  with.is_short_seq = true;
  parts.softmax = attend(heads.query.slice(1, 0, first));
  return parts;
}

Tensor KernelAttentionImpl::forward(const KernelAttentionInputs& inputs) {
  check_inputs(inputs);
  const bool training = inputs.training.value_or(is_training());
  if (options_.compatible && inputs.cache != nullptr) check_compatible_cache(training);
  const Heads heads = project(inputs);
  const Parts parts = options_.compatible ? compatible_attention(heads, inputs, training)
                                          : attention(heads, prepare(heads, inputs));
  const auto output = [&](const Tensor& x, HeadDense& dense) {
    return dense(training ? ops::dropout(x, options_.dropout) : x);
  };
  std::vector<Tensor> outputs;
  if (parts.softmax.defined()) outputs.push_back(output(parts.softmax, output_softmax_));
  if (parts.kernel.defined()) outputs.push_back(output(parts.kernel, output_));
  const Tensor out = outputs.size() == 1 ? outputs[0] : at::cat(outputs, 1);
  return options_.compatible ? out.to(inputs.query.scalar_type()) : out;
}

void import_kernel_attention(KernelAttention& layer, const std::map<std::string, Tensor>& weights) {
  std::map<std::string, Tensor> ours;
  for (const auto& [stored, tensor] : weights) {
    std::string name = stored.substr(0, stored.find(':'));
    std::replace(name.begin(), name.end(), '/', '.');
    const size_t last = name.rfind('.');
    const size_t second =
        last == std::string::npos || last == 0 ? std::string::npos : name.rfind('.', last - 1);
    if (second != std::string::npos) name = name.substr(second + 1);
    if (name != "W") {
      ours[name] = tensor;
      continue;
    }
    const bool shared = tensor.dim() == 2 && !layer->options().compatible;
    ours["projection"] = shared ? tensor.expand({layer->options().num_heads, -1, -1}) : tensor;
  }
  import_weights(*layer, ours);
}

}  // namespace performer::references::keras
