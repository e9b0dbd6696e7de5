// SPDX-License-Identifier: Apache-2.0
#include "performer/references/fast_transformers/attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "performer/base/error.h"
#include "performer/ops/composed.h"

namespace performer::references::fast_transformers {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Second word of the streams' names: keeps these draws apart from those of kernels/projection.h.
constexpr uint32_t kStreamPurpose = 0x46540000;

bool is_random(const std::string& map) {
  return map != "elu" && map != "activation";
}

Tensor gaussian(at::IntArrayRef sizes, PhiloxStream& stream) {
  Tensor values = at::empty(sizes, at::kDouble);
  double* data = values.mutable_data_ptr<double>();
  for (int64_t i = 0; i < values.numel(); ++i) data[i] = stream.normal();
  return values;
}

// The type sums are kept in.
at::ScalarType sum_type(const Tensor& tensor) {
  const auto type = tensor.scalar_type();
  return type == at::kHalf || type == at::kBFloat16 ? at::kFloat : type;
}
Tensor widened(const Tensor& tensor) {
  return tensor.to(sum_type(tensor));
}

Tensor masked_features(const Tensor& phi_k, const std::optional<Tensor>& key_mask) {
  if (!key_mask.has_value() || !key_mask->defined()) return phi_k;
  check<UsageError>(
      key_mask->dim() == 2 && key_mask->size(0) == phi_k.size(0) && key_mask->size(1) == phi_k.size(1),
      "a key mask of linear attention must be [{}, {}] (batch, keys), found {} dimensions of {} elements",
      phi_k.size(0), phi_k.size(1), key_mask->dim(), key_mask->numel());
  return phi_k * key_mask->to(phi_k.scalar_type()).unsqueeze(-1).unsqueeze(-1);
}

void check_features(const Tensor& phi_q, const Tensor& phi_k, const Tensor& value, int64_t dims) {
  check<UsageError>(
      phi_q.dim() == dims && phi_k.dim() == dims && value.dim() == dims,
      "linear attention: query features, key features and values need {} dimensions, found {}, {} and {}",
      dims, phi_q.dim(), phi_k.dim(), value.dim());
  check<UsageError>(
      phi_q.size(-1) == phi_k.size(-1),
      "linear attention: queries have {} features, but keys have {}; apply the same map to both",
      phi_q.size(-1), phi_k.size(-1));
  const bool agree = phi_k.sizes().slice(0, dims - 1) == value.sizes().slice(0, dims - 1);
  check<UsageError>(
      agree && phi_q.size(0) == phi_k.size(0),
      "linear attention: keys and values must agree in all but the last dimension, and queries in the batch");
}

Tensor chunk_of(const Tensor& tensor, int64_t begin, int64_t length) {
  return tensor.narrow(2, begin, length);
}

// out_l = sum_{s <= l} (a_l . b_s) c_s, or over s >= l when `reversed`; chunks are visited in the order of
// summation, so the running sum of b_s c_s^T holds exactly the chunks that a chunk sees as a whole.
Tensor triangular_product(const Tensor& a, const Tensor& b, const Tensor& c, int64_t chunk, bool reversed) {
  const int64_t length = a.size(2), count = (length + chunk - 1) / chunk;
  Tensor out = at::empty({a.size(0), a.size(1), length, c.size(3)}, c.options());
  Tensor state = at::zeros({a.size(0), a.size(1), b.size(3), c.size(3)}, c.options());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = (reversed ? count - 1 - i : i) * chunk, size = std::min(chunk, length - begin);
    const Tensor ac = chunk_of(a, begin, size), bc = chunk_of(b, begin, size), cc = chunk_of(c, begin, size);
    const Tensor scores = at::matmul(ac, bc.transpose(-1, -2));
    Tensor part = at::matmul(reversed ? scores.triu() : scores.tril(), cc);
    part += at::matmul(ac, state);
    chunk_of(out, begin, size).copy_(part);
    state += at::matmul(bc.transpose(-1, -2), cc);
  }
  return out;
}

struct CausalDotProduct : torch::autograd::Function<CausalDotProduct> {
  static Tensor forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                        int64_t chunk) {
    context->save_for_backward({q, k, v});
    context->saved_data["chunk"] = chunk;
    return triangular_product(q, k, v, chunk, /*reversed=*/false);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        !at::GradMode::is_enabled(),
        "causal_dot_product: second derivatives are not implemented; call backward without "
        "create_graph");
    const auto saved = context->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], &g = grads[0];
    const int64_t chunk = context->saved_data["chunk"].toInt();
    // dq_l = sum_{s <= l} (g_l . v_s) k_s;  dk_s = sum_{l >= s} (v_s . g_l) q_l;  dv_s = sum_{l >= s} (k_s .
    // q_l) g_l.
    Tensor dq, dk, dv;
    if (context->needs_input_grad(0)) dq = triangular_product(g, v, k, chunk, false);
    if (context->needs_input_grad(1)) dk = triangular_product(v, g, q, chunk, true);
    if (context->needs_input_grad(2)) dv = triangular_product(k, q, g, chunk, true);
    return {dq, dk, dv, Tensor()};
  }
};

}  // namespace

Tensor orthogonal_random_matrix(const Tensor& normal_blocks, int64_t columns) {
  const Tensor directions = ops::uncorrected_orthogonal_rows(normal_blocks, columns);  // [columns, D]
  const Tensor lengths = normal_blocks.square().sum(-1).sqrt().flatten().narrow(0, 0, columns);
  return (directions * lengths.unsqueeze(1)).t().contiguous();
}

Tensor orthogonal_random_matrix(int64_t rows, int64_t columns, PhiloxStream& stream) {
  check<UsageError>(rows >= 1 && columns >= 1,
                    "an orthogonal matrix needs at least 1 row and 1 column, found {} x {}", rows, columns);
  const Tensor blocks = gaussian({(columns + rows - 1) / rows, rows, rows}, stream);
  return orthogonal_random_matrix(blocks, columns).to(at::kFloat);
}

FeatureMapImpl::FeatureMapImpl(const FeatureMapOptions& options, int64_t query_dimensions, int64_t layer)
    : options_(options), query_dimensions_(query_dimensions), layer_(layer) {
  for (const FieldInfo& field : list_fields("feature_map", options)) parse_field(field, to_text(field.value));
  check<UsageError>(query_dimensions >= 1, "a feature map needs a head size of at least 1, found {}",
                    query_dimensions);
  check<UsageError>(
      options.n_dims >= 0 && options.redraw >= 0 && layer >= 0 && options.softmax_temp >= 0 &&
          std::isfinite(options.softmax_temp),
      "feature_map.n_dims ({}), redraw ({}), softmax_temp ({}) and the layer ({}) must be at least 0",
      options.n_dims, options.redraw, options.softmax_temp, layer);
  if (options.map == "activation" || options.map == "generalized") {
    ops::activation(options.function, at::empty({0}));  // throws for an unknown name
  }
  if (!is_random(options.map)) return;
  const bool generalized = options.map == "generalized";
  const int64_t asked = options.n_dims > 0 ? options.n_dims : query_dimensions;
  n_dims_ = generalized ? 2 * asked : options.map == "smoothed-random-fourier" ? asked - 1 : asked;
  if (n_dims_ == 0) n_dims_ = query_dimensions;  // what is left of 1 asks for the default
  softmax_temp_ = options.softmax_temp > 0 ? options.softmax_temp
                  : generalized            ? 1
                                           : 1 / std::sqrt(static_cast<double>(query_dimensions));
  omega_ = register_buffer("omega", draw(0));
  calls_ = at::zeros({}, at::kLong);
  if (options.keep_schedule) calls_ = register_buffer("calls", calls_);
}

Tensor FeatureMapImpl::draw(int64_t number) const {
  PhiloxStream stream(static_cast<uint64_t>(options_.seed), static_cast<uint32_t>(layer_), kStreamPurpose,
                      static_cast<uint32_t>(number));
  const int64_t columns = n_dims_ / 2;
  if (columns == 0) return at::zeros({query_dimensions_, 0}, at::kFloat);
  const bool fourier = options_.map == "random-fourier" || options_.map == "smoothed-random-fourier";
  const bool orthogonal = options_.draw == "auto" ? !fourier : options_.draw == "orthogonal";
  if (orthogonal) return orthogonal_random_matrix(query_dimensions_, columns, stream);
  return gaussian({query_dimensions_, columns}, stream).to(at::kFloat);
}

void FeatureMapImpl::new_feature_map() {
  if (!omega_.defined() || options_.redraw == 0) return;
  if (options_.deterministic_eval && !is_training()) return;
  const int64_t call = calls_.item<int64_t>();
  calls_.fill_(call + 1);
  if (call % options_.redraw != 0) return;
  // Draw 0 is the constructor's. Not in place: graphs of earlier passes still need the omega they used.
  omega_.set_data(draw(1 + call / options_.redraw).to(omega_.options()));
}

int64_t FeatureMapImpl::size() const {
  if (!omega_.defined()) return query_dimensions_;
  if (options_.map == "generalized") return omega_.size(1);
  return 2 * omega_.size(1) + (options_.map == "smoothed-random-fourier" ? 1 : 0);
}

Tensor FeatureMapImpl::forward(const Tensor& input) const {
  check<UsageError>(input.dim() >= 1 && input.size(-1) == query_dimensions_,
                    "a feature map for head size {} was given {} numbers a token", query_dimensions_,
                    input.dim() >= 1 ? input.size(-1) : 0);
  if (options_.map == "elu") return ops::activation("elu+1", input);
  if (options_.map == "activation") return ops::activation(options_.function, input);
  const bool generalized = options_.map == "generalized";
  const Tensor x = generalized && softmax_temp_ == 1 ? input : input * std::sqrt(softmax_temp_);
  // A graph keeps what it was given, so it gets a tensor of its own: set_data() must not reach into it.
  const Tensor u = at::matmul(x, omega_.detach().to(x.scalar_type()));
  if (generalized) return ops::activation(options_.function, u);
  const double n = static_cast<double>(n_dims_);
  if (options_.map == "favor") {
    const Tensor square = x.square().sum(-1, /*keepdim=*/true);
    Tensor offset = square * 0.5 + 0.5 * std::log(n);
    if (options_.stabilize) {
      check<UsageError>(
          x.dim() >= 3,
          "a stabilized feature map takes its maximum over dimension 1 and needs inputs [batch, "
          "tokens or heads, ...], found {} dimensions",
          x.dim());
      offset = offset + std::get<0>(square.max(1, /*keepdim=*/true));
    }
    return at::cat({(u - offset).exp(), (-u - offset).exp()}, -1);
  }
  Tensor phi = at::cat({u.cos(), u.sin()}, -1) * std::sqrt(2 / n);
  if (options_.map == "smoothed-random-fourier") {
    phi = at::cat({phi, at::full_like(x.narrow(-1, 0, 1), options_.smoothing)}, -1);
  }
  return phi;
}

Tensor linear_attention(const Tensor& phi_q, const Tensor& phi_k, const Tensor& value,
                        const std::optional<Tensor>& key_mask, double eps) {
  check_features(phi_q, phi_k, value, 4);
  const Tensor k = masked_features(phi_k.to(at::kDouble), key_mask);
  const auto sums = ops::attention_sums(phi_q.to(at::kDouble), k, value.to(at::kDouble), /*causal=*/false);
  return (sums.numerator / (sums.denominator + eps)).to(value.scalar_type());
}

Tensor causal_linear_attention(const Tensor& phi_q, const Tensor& phi_k, const Tensor& value,
                               const std::optional<Tensor>& key_mask, double eps) {
  check_features(phi_q, phi_k, value, 4);
  const int64_t length = phi_q.size(1);
  check<UsageError>(length <= phi_k.size(1),
                    "causal linear attention of {} queries needs at least as many keys, found {}; continue a "
                    "sequence by its "
                    "state instead",
                    length, phi_k.size(1));
  const Tensor k = masked_features(phi_k.to(at::kDouble), key_mask).narrow(1, 0, length);
  const Tensor v = value.to(at::kDouble).narrow(1, 0, length);
  // A column of ones makes the denominator the last column of the same product.
  const Tensor with_one = at::cat({v, at::ones_like(v.narrow(-1, 0, 1))}, -1);
  const Tensor sums =
      causal_dot_product(phi_q.to(at::kDouble).transpose(1, 2), k.transpose(1, 2), with_one.transpose(1, 2))
          .transpose(1, 2);
  const int64_t size = value.size(-1);
  return (sums.narrow(-1, 0, size) / (sums.narrow(-1, size, 1) + eps)).to(value.scalar_type());
}

Tensor causal_dot_product(const Tensor& q, const Tensor& k, const Tensor& v, int64_t chunk) {
  check<UsageError>(chunk >= 1, "causal_dot_product: chunk must be at least 1, found {}", chunk);
  check<UsageError>(q.dim() == 4 && q.sizes() == k.sizes() && v.dim() == 4 &&
                        v.sizes().slice(0, 3) == k.sizes().slice(0, 3),
                    "causal_dot_product: q and k must be [batch, heads, tokens, features] of one shape and v "
                    "[batch, heads, "
                    "tokens, size], found {} features of q and {} of k",
                    q.size(-1), k.size(-1));
  return CausalDotProduct::apply(widened(q), widened(k), widened(v), chunk).to(v.scalar_type());
}

Tensor recurrent_linear_attention(const Tensor& phi_q, const Tensor& phi_k, const Tensor& value,
                                  LinearState& state, double eps) {
  check_features(phi_q, phi_k, value, 3);
  const Tensor q = widened(phi_q), k = widened(phi_k), v = widened(value);
  if (!state.defined()) {
    state.s = at::zeros({k.size(0), k.size(1), k.size(2), v.size(2)}, v.options());
    state.z = at::zeros(k.sizes(), k.options());
  }
  check<UsageError>(state.s.size(0) == k.size(0),
                    "recurrent linear attention: the batch size changed during iteration, from {} to {}; "
                    "start with an empty "
                    "state",
                    state.s.size(0), k.size(0));
  const Tensor outer = k.unsqueeze(-1) * v.unsqueeze(-2);
  const bool recorded =
      at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad() ||
                                     state.s.requires_grad() || state.z.requires_grad());
  if (recorded) {  // the graph of earlier steps needs the earlier sums
    state.s = state.s + outer;
    state.z = state.z + k;
  } else {
    state.s += outer;
    state.z += k;
  }
  const Tensor denominator = (q * state.z).sum(-1, /*keepdim=*/true) + eps;
  return (at::matmul(q.unsqueeze(-2), state.s).squeeze(-2) / denominator).to(value.scalar_type());
}

LinearState cross_linear_summary(const Tensor& phi_k, const Tensor& value,
                                 const std::optional<Tensor>& key_mask) {
  check_features(phi_k, phi_k, value, 4);
  const Tensor k = masked_features(widened(phi_k), key_mask);
  const Tensor v = widened(value).transpose(1, 2);  // [N, H, S, E]
  return {at::matmul(v.transpose(-1, -2), k.transpose(1, 2)), k.sum(1)};
}

Tensor recurrent_cross_linear_attention(const Tensor& phi_q, const LinearState& state, double eps) {
  check<UsageError>(state.defined(),
                    "recurrent cross-attention needs the summary of a memory; make it first");
  check<UsageError>(phi_q.dim() == 3 && phi_q.sizes() == state.z.sizes(),
                    "recurrent cross-attention: query features must agree with the memory's summary in batch "
                    "({}), heads ({}) "
                    "and features ({})",
                    state.z.size(0), state.z.size(1), state.z.size(2));
  const Tensor q = widened(phi_q);
  const Tensor denominator = (q * state.z).sum(-1, /*keepdim=*/true) + eps;
  return (at::matmul(state.s, q.unsqueeze(-1)).squeeze(-1) / denominator).to(phi_q.scalar_type());
}

}  // namespace performer::references::fast_transformers
