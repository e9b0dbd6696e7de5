// SPDX-License-Identifier: Apache-2.0
#include "performer/references/keras/kernel_attention.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "performer/base/error.h"
#include "performer/models/import_weights.h"
#include "performer/ops/dropout.h"
#include "performer/references/keras/features.h"
#include "performer/references/keras/projection.h"

namespace performer::references::keras {
namespace {

using at::Tensor;

int64_t product(const std::vector<int64_t>& sizes) {
  int64_t result = 1;
  for (int64_t size : sizes) result *= size;
  return result;
}

// Bound of Keras' Glorot-uniform distribution.
double glorot_limit(const std::vector<int64_t>& in, const std::vector<int64_t>& out) {
  auto fan_in = static_cast<double>(product(in)), fan_out = static_cast<double>(product(out));
  std::vector<int64_t> all = in;
  all.insert(all.end(), out.begin(), out.end());
  if (all.size() > 2) {
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
  check<UsageError>(options.causal_window_length >= 1,
                    "causal_window_length must be at least 1 chunk, found {}", options.causal_window_length);
  const std::string& padding = options.causal_padding;
  check<UsageError>(padding == "none" || padding == "left" || padding == "right",
                    "causal_padding '{}' is unknown; known: none, left, right", padding);
}

}  // namespace

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
  check_transform(options.feature_transform);
  check<UsageError>(!options.redraw || options.num_random_features > 0,
                    "redraw needs a projection: num_random_features must be at least 1, found {}",
                    options.num_random_features);
  if (options.use_causal_windowed) validate_window(options);
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
  check<UsageError>(options.seed >= -kLargest - 1 && options.seed < kLargest,
                    "seed and seed + 1 are int32 in the layer, found {}", options.seed);
}

HeadDenseImpl::HeadDenseImpl(std::vector<int64_t> in, std::vector<int64_t> out, bool with_bias)
    : in_dims_(static_cast<int64_t>(in.size())) {
  const double limit = glorot_limit(in, out);
  std::vector<int64_t> shape = in;
  shape.insert(shape.end(), out.begin(), out.end());
  kernel = register_parameter("kernel", at::empty(shape).uniform_(-limit, limit));
  if (with_bias) bias = register_parameter("bias", at::zeros(out));
}

Tensor HeadDenseImpl::forward(const Tensor& x) {
  const auto out = kernel.sizes().slice(in_dims_);
  Tensor matrix = kernel.reshape({product(kernel.sizes().slice(0, in_dims_).vec()), -1});
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
    return register_module(name, HeadDense(std::move(in), std::move(out), o.use_bias));
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
        "projection", projection_from_seed(o.num_random_features, o.key_dim, {o.seed, o.seed + 1}));
  }
  if (o.redraw) draws_ = register_buffer("draws", at::zeros({1}, at::kLong));
}

Tensor KernelAttentionImpl::draw(int64_t index) const {
  if (redraw_source_) return redraw_source_(index);
  return redrawn_projection(options_.num_random_features, options_.key_dim, options_.seed, index);
}

void KernelAttentionImpl::redraw(int64_t index) {
  if (!options_.redraw) return;
  const at::NoGradGuard no_grad;
  draws_.fill_(index);
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

void KernelAttentionImpl::check_cache(bool training) const {
  check<UsageError>(!training, "KernelAttention takes no cache while training");
  check<UsageError>(options_.begin_kernel == 0, "KernelAttention takes no cache with begin_kernel");
  check<UsageError>(transform_streams(options_.feature_transform),
                    "KernelAttention takes no cache with feature_transform {}", options_.feature_transform);
}

std::optional<Tensor> KernelAttentionImpl::projection_for(bool training) {
  if (!projection_.defined()) return std::nullopt;
  // With begin_kernel the flag `training` never arrives at this place of the layer.
  if (!options_.redraw || !training || options_.begin_kernel > 0) return projection_;
  const Tensor drawn = draw(draws_.item<int64_t>());
  draws_.add_(1);
  return drawn;
}

AttentionOptions KernelAttentionImpl::attention_options() const {
  AttentionOptions with;
  with.feature_transform = options_.feature_transform;
  with.is_short_seq = options_.is_short_seq;
  with.scale = scale_;
  with.scale_by_length = options_.scale_by_length;
  if (options_.use_causal_windowed) {
    with.window = Window{options_.causal_chunk_length, options_.causal_window_length,
                         options_.causal_window_decay, options_.causal_padding};
  }
  return with;
}

KernelAttentionImpl::Parts KernelAttentionImpl::attend(const KernelAttentionInputs& inputs, bool training) {
  const bool begins = options_.begin_kernel > 0;
  check<UsageError>(
      !begins || !options_.use_causal_windowed,
      "begin_kernel with use_causal_windowed always raises in KernelAttention: leave one of them "
      "out");
  // In double like the attention itself, which can magnify the rounding of heads a thousandfold.
  const auto wide = [](const Tensor& x) { return x.to(at::kDouble); };
  const Tensor queries = query_(wide(inputs.query)), keys = key_(wide(inputs.key.value_or(inputs.value))),
               values = value_(wide(inputs.value));
  const std::optional<Tensor> projection = projection_for(training);
  std::optional<Tensor> mask = inputs.attention_mask;
  if (mask) {
    check<UsageError>(mask->scalar_type() == inputs.query.scalar_type(),
                      "attention_mask must have the type of the inputs, {}: KernelAttention refuses bool and "
                      "integers; found {}",
                      c10::toString(inputs.query.scalar_type()), c10::toString(mask->scalar_type()));
    mask = wide(*mask);
  }
  AttentionOptions with = attention_options();
  const auto compute = [&](const Tensor& query) {
    return compute_attention(query, keys, values, with, projection, mask, inputs.cache);
  };
  if (!begins) return {{}, compute(queries)};
  Parts parts;
  const int64_t first = std::min(options_.begin_kernel, queries.size(1));
  parts.kernel = compute(queries.slice(1, first));
  with.feature_transform = "identity";
  with.is_short_seq = true;
  parts.softmax = compute(queries.slice(1, 0, first));
  return parts;
}

Tensor KernelAttentionImpl::forward(const KernelAttentionInputs& inputs) {
  check_inputs(inputs);
  const bool training = inputs.training.value_or(is_training());
  if (inputs.cache != nullptr) check_cache(training);
  const Parts parts = attend(inputs, training);
  const auto output = [&](const Tensor& x, HeadDense& dense) {
    return dense(training ? ops::dropout(x, options_.dropout) : x);
  };
  std::vector<Tensor> outputs;
  if (parts.softmax.defined()) outputs.push_back(output(parts.softmax, output_softmax_));
  if (parts.kernel.defined()) outputs.push_back(output(parts.kernel, output_));
  const Tensor out = outputs.size() == 1 ? outputs[0] : at::cat(outputs, 1);
  return out.to(inputs.query.scalar_type());
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
    ours[name == "W" ? "projection" : name] = tensor;
  }
  import_weights(*layer, ours);
}

}  // namespace performer::references::keras
