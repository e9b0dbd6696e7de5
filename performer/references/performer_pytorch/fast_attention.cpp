// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/fast_attention.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "performer/base/error.h"
#include "performer/base/philox.h"
#include "performer/ops/composed.h"

namespace performer::references::performer_pytorch {
namespace {

using at::Tensor;

// The generator's third name part, which our own projections use for head and purpose.
constexpr uint32_t kStreamPurpose = 0xFFFF0001;

// The reference's data normaliser.
double input_scale(const Tensor& x, bool normalize) {
  return normalize ? std::pow(static_cast<double>(x.size(-1)), -0.25) : 1.0;
}

bool float_holds(const Tensor& x) {
  return x.numel() == 0 || x.detach().abs().max().item<double>() <= std::numeric_limits<float>::max();
}

// Whether sums of k or of k v leave the range of float32 values.
bool float_sums_overflow(const Tensor& k, const Tensor& v) {
  if (v.scalar_type() != at::kFloat || k.numel() == 0) return false;
  const double keys = k.detach().abs().sum(1, false, at::kDouble).max().item<double>();
  const double values = v.numel() == 0 ? 0 : v.detach().abs().max().item<double>();
  return !(keys * std::max(values, 1.0) < std::numeric_limits<float>::max());
}

// The reference's own order of operations, in which infinite sums become NaN in the rows where they do there:
// running sums of k and of k v, M E numbers a token.
Tensor overflowing_causal_attention(const Tensor& q, const Tensor& k, const Tensor& v, double epsilon) {
  const Tensor inverse = at::einsum("bthm,bthm->bth", {q, k.cumsum(1) + epsilon}).reciprocal();
  const Tensor context = (k.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(1);
  return at::einsum("bthme,bthm,bth->bthe", {context, q, inverse});
}

// Rows of the reference's result where queries and keys differ in number: it splits both into at most
// `chunks` pieces of equal size, pairs piece by piece, stops with the shorter list, and a piece of one token
// goes with every token of its partner.
struct PairedRows {
  std::vector<int64_t> query, last_key;  // of each row
};

PairedRows pair_pieces(int64_t queries, int64_t keys, int64_t chunks) {
  const auto piece = [&](int64_t length) { return std::max<int64_t>(1, (length + chunks - 1) / chunks); };
  const int64_t query_step = piece(queries), key_step = piece(keys);
  PairedRows rows;
  for (int64_t q = 0, k = 0; q < queries && k < keys; q += query_step, k += key_step) {
    const int64_t q_length = std::min(query_step, queries - q), k_length = std::min(key_step, keys - k);
    check<UsageError>(
        q_length == k_length || q_length == 1 || k_length == 1,
        "causal attention of {} queries and {} keys pairs {} queries with {} keys in {} chunks: give as many "
        "keys as queries",
        queries, keys, q_length, k_length, chunks);
    for (int64_t i = 0; i < std::max(q_length, k_length); ++i) {
      rows.query.push_back(q + (q_length == 1 ? 0 : i));
      rows.last_key.push_back(k + (k_length == 1 ? 0 : i));
    }
  }
  return rows;
}

Tensor paired_causal_attention(const Tensor& phi_q, const Tensor& phi_k, const Tensor& value,
                               const PairedRows& rows, double epsilon) {
  const auto index = [&](const std::vector<int64_t>& numbers) {
    return at::tensor(numbers, at::kLong).to(phi_q.device());
  };
  const Tensor q = phi_q.to(at::kDouble).index_select(1, index(rows.query));
  const Tensor future = at::arange(phi_k.size(1), at::TensorOptions(at::kLong).device(phi_k.device()))
                            .gt(index(rows.last_key).unsqueeze(-1));
  const Tensor weights = at::einsum("brhm,bshm->bhrs", {q, phi_k.to(at::kDouble)}).masked_fill(future, 0);
  const Tensor numerator = at::einsum("bhrs,bshe->brhe", {weights, value.to(at::kDouble)});
  const Tensor denominator = weights.sum(-1).transpose(1, 2) + q.sum(-1) * epsilon;
  return (numerator / denominator.unsqueeze(-1)).to(value.scalar_type());
}

}  // namespace

RandomMatrixDraws random_matrix_draws(int64_t rows, int64_t columns, int64_t seed, int64_t layer,
                                      int64_t redraw) {
  check<UsageError>(rows >= 1 && columns >= 1, "a projection needs at least 1 row and column, found {} x {}",
                    rows, columns);
  PhiloxStream stream(static_cast<uint64_t>(seed), static_cast<uint32_t>(layer), kStreamPurpose,
                      static_cast<uint32_t>(redraw));
  const auto normals = [&](at::IntArrayRef shape) {
    Tensor tensor = at::empty(shape, at::kFloat);
    float* values = tensor.mutable_data_ptr<float>();
    for (int64_t i = 0; i < tensor.numel(); ++i) values[i] = static_cast<float>(stream.normal());
    return tensor;
  };
  RandomMatrixDraws draws;
  draws.blocks = normals({(rows + columns - 1) / columns, columns, columns});
  draws.rows = normals({rows, columns});
  return draws;
}

Tensor gaussian_orthogonal_random_matrix(const RandomMatrixDraws& draws, int64_t rows, int64_t columns,
                                         int64_t scaling) {
  check<UsageError>(rows >= 1, "a projection needs at least 1 row, found {}", rows);
  check<UsageError>(scaling == 0 || scaling == 1,
                    "row scaling must be 0 (norms of Gaussian rows) or 1 (sqrt of the columns), found {}",
                    scaling);
  check<UsageError>(draws.blocks.dim() == 3 && draws.blocks.size(2) == columns,
                    "a projection with {} columns needs Gaussian blocks [N, {}, {}], found [{}]", columns,
                    columns, columns, fmt::join(draws.blocks.sizes(), ", "));
  const Tensor directions = ops::uncorrected_orthogonal_rows(draws.blocks, rows);
  if (scaling == 1) return directions * std::sqrt(static_cast<double>(columns));
  check<UsageError>(draws.rows.defined() && draws.rows.dim() == 2 && draws.rows.size(0) == rows,
                    "row scaling 0 needs {} Gaussian rows beside the blocks", rows);
  return directions * draws.rows.to(directions.scalar_type()).norm(2, 1, /*keepdim=*/true);
}

int64_t default_features(int64_t head_size) {
  check<UsageError>(head_size >= 1, "head size must be at least 1, found {}", head_size);
  const double size = static_cast<double>(head_size);
  return static_cast<int64_t>(size * std::log(size));
}

Tensor softmax_kernel(const Tensor& x, const Tensor& projection, bool is_query, bool normalize,
                      double epsilon) {
  check<UsageError>(projection.defined() && projection.dim() == 2,
                    "softmax features need a projection [M, D], found {}",
                    projection.defined() ? "another shape" : "none");
  const Tensor scaled = x * input_scale(x, normalize);
  const Tensor u = ops::project(scaled, projection);
  // The maximum is over u, not over u - |x|^2 / 2: the features of long inputs lie far below 1 and epsilon.
  const Tensor shift =
      is_query ? u.detach().amax({-1}, /*keepdim=*/true) : u.detach().amax({1, 3}, /*keepdim=*/true);
  const double ratio = 1 / std::sqrt(static_cast<double>(projection.size(0)));
  return (at::exp(u - ops::half_square(scaled) - shift) + epsilon) * ratio;
}

Tensor generalized_kernel(const Tensor& x, const std::optional<Tensor>& projection, const std::string& kernel,
                          double epsilon, bool normalize) {
  return ops::activation(kernel, ops::project(x * input_scale(x, normalize), projection)) + epsilon;
}

// Sums are taken in double: where epsilon is most of every feature, gradients are small differences of large
// sums, of which float32 leaves noise.
Tensor linear_attention(const Tensor& phi_q, const Tensor& phi_k, const Tensor& value) {
  const ops::AttentionSums sums = ops::attention_sums(phi_q.to(at::kDouble), phi_k.to(at::kDouble),
                                                      value.to(at::kDouble), /*causal=*/false);
  return (sums.numerator / sums.denominator).to(value.scalar_type());
}

Tensor causal_linear_attention(const Tensor& phi_q, const Tensor& phi_k, const Tensor& value, double epsilon,
                               int64_t chunks) {
  check<UsageError>(chunks >= 1, "causal attention needs at least 1 chunk, found {}", chunks);
  const int64_t queries = phi_q.size(1), keys = phi_k.size(1), rows = std::min(queries, keys);
  if (queries != keys && std::max(queries, keys) > chunks) {
    return paired_causal_attention(phi_q, phi_k, value, pair_pieces(queries, keys, chunks), epsilon);
  }
  const Tensor q = phi_q.narrow(1, 0, rows), k = phi_k.narrow(1, 0, rows), v = value.narrow(1, 0, rows);
  if (float_sums_overflow(k, v))
    return overflowing_causal_attention(q.to(at::kFloat), k.to(at::kFloat), v, epsilon);
  const Tensor precise_q = q.to(at::kDouble);
  const ops::AttentionSums sums =
      ops::attention_sums(precise_q, k.to(at::kDouble), v.to(at::kDouble), /*causal=*/true);
  const Tensor denominator = sums.denominator + precise_q.sum(-1, /*keepdim=*/true) * epsilon;
  return (sums.numerator / denominator).to(value.scalar_type());
}

namespace {

struct Features {
  Tensor query, key;
};

Features map_features(const Tensor& query, const Tensor& key, const Tensor& projection,
                      const FastAttentionOptions& options) {
  if (options.no_projection) return {query.softmax(-1), options.causal ? key.exp() : key.softmax(1)};
  if (options.generalized) {
    check<UsageError>(projection.defined(), "generalised attention needs a projection, found none");
    return {generalized_kernel(query, projection, options.kernel),
            generalized_kernel(key, projection, options.kernel)};
  }
  return {softmax_kernel(query, projection, /*is_query=*/true),
          softmax_kernel(key, projection, /*is_query=*/false)};
}

}  // namespace

Tensor fast_attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& projection,
                      const FastAttentionOptions& options) {
  // Features of float32 inputs are taken in double, as the sums are, unless they overflow in float32: then as
  // they do there.
  Features phi;
  if (query.scalar_type() == at::kFloat) {
    phi = map_features(query.to(at::kDouble), key.to(at::kDouble), projection, options);
  }
  if (!phi.query.defined() || !float_holds(phi.query) || !float_holds(phi.key)) {
    phi = map_features(query, key, projection, options);
  }
  return options.causal ? causal_linear_attention(phi.query, phi.key, value)
                        : linear_attention(phi.query, phi.key, value);
}

Tensor rotate_pairs(const Tensor& x, const Tensor& table) {
  const Tensor rows = table.dim() == 3 && table.size(0) == 1 ? table[0] : table;
  const int64_t tokens = x.size(1), size = x.size(3);
  check<UsageError>(size % 2 == 0, "rotary positions need an even head size, found {}", size);
  check<UsageError>(rows.dim() == 2 && rows.size(0) == tokens && rows.size(1) == size,
                    "the rotary table of {} tokens and head size {} must be [{}, {}], found [{}]", tokens,
                    size, tokens, size, fmt::join(table.sizes(), ", "));
  // [T, 1, D / 2], broadcast over heads.
  const Tensor angles = rows.to(x.scalar_type()).unsqueeze(1);
  const Tensor sine = angles.narrow(-1, 0, size / 2), cosine = angles.narrow(-1, size / 2, size / 2);
  const Tensor pairs = x.unflatten(-1, {size / 2, 2});
  const Tensor first = pairs.select(-1, 0), second = pairs.select(-1, 1);
  return at::stack({first * cosine - second * sine, second * cosine + first * sine}, -1).flatten(-2);
}

}  // namespace performer::references::performer_pytorch
