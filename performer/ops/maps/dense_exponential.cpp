// SPDX-License-Identifier: Apache-2.0
// Dense-exponential feature maps: oprf, sderf, aderf and saderf, tuned by second moments of queries and keys.
#include <ATen/ATen.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "performer/ops/favor/call.h"
#include "performer/ops/map_statistics.h"
#include "performer/ops/maps/row.h"

namespace performer::ops {
namespace {

using at::Tensor;

// aderf and saderf divide by second moments. This share of their mean over the coordinates is added to each,
// so that directions without data (fewer tokens than dimensions) get a bounded factor. The estimate stays
// unbiased whatever the factors are; only its variance depends on them.
constexpr double kMomentFloor = 1e-4;
// Below this trace there is no data to divide by.
constexpr double kNoMoment = 1e-30;

// E|q + k|^2 over all pairs, of moments [..., D, D] and means [..., D].
Tensor mean_square_of_sums(const Tensor& query_moment, const Tensor& key_moment, const Tensor& mean_product) {
  const auto trace = [](const Tensor& m) { return m.diagonal(0, -2, -1).sum(-1); };
  return (trace(query_moment) + trace(key_moment) + 2 * mean_product).clamp_min(0);
}

// Second moments that can be divided by: the identity where there are no data.
Tensor floored(const Tensor& moment) {
  const int64_t size = fixed_size(moment, -1);
  const Tensor identity = at::eye(size, moment.options());
  const Tensor mean = moment.diagonal(0, -2, -1).mean(-1).unsqueeze(-1).unsqueeze(-1);
  return at::where(mean * static_cast<double>(size) > kNoMoment, moment + kMomentFloor * mean * identity,
                   identity.expand_as(moment));
}

// Eigenvalues and eigenvectors of symmetric matrices. They are computed on the CPU wherever the matrices are:
// each library chooses the signs of eigenvectors in its own way, and a map whose signs differ makes other
// features of the same projection.
std::pair<Tensor, Tensor> eigenvectors(const Tensor& matrices) {
  const bool moves = !matrices.is_cpu() && !matrices.is_meta();
  const auto [values, vectors] = at::linalg_eigh(moves ? matrices.cpu() : matrices);
  return {values.to(matrices.device()), vectors.to(matrices.device())};
}

// Eigenvectors in columns times a function of the eigenvalues, and back.
Tensor spectral(const Tensor& vectors, const Tensor& values) {
  return at::matmul(vectors * values.unsqueeze(-2), vectors.transpose(-1, -2));
}

// The pair of matrices S and S^-T that minimises E|S q + S^-T k|^2: both sides then have the same diagonal
// second moment. S^T S is the geometric mean of the key's moment and the inverse of the query's.
std::pair<Tensor, Tensor> balancing_matrices(const Tensor& query_moment, const Tensor& key_moment) {
  // Rounding of the moments, which are sums in float32, may leave an eigenvalue below 0.
  const auto positive = [](const Tensor& x) { return x.clamp_min(x.amax(-1, true) * 1e-14); };
  const auto [found, vectors] = eigenvectors(floored(query_moment));
  const Tensor values = positive(found);
  const Tensor root = spectral(vectors, values.sqrt()), inverse_root = spectral(vectors, values.rsqrt());
  const auto [squares, turn] = eigenvectors(at::matmul(root, at::matmul(floored(key_moment), root)));
  const Tensor quarter = positive(squares).pow(0.25).unsqueeze(-1);
  const Tensor turned = turn.transpose(-1, -2);
  return {quarter * at::matmul(turned, inverse_root), at::matmul(turned, root) / quarter};
}

// What a map is tuned from, in double and without gradient.
struct Moments {
  Tensor projection;  // [H or 1, M, D]
  Tensor query_mean, key_mean, query_moment, key_moment;
};

// GERF features of one number A for all dimensions, of sides that have been balanced by the given transform.
DenseExponential one_a_for_all(const Moments& m, const Tensor& query_moment, const Tensor& key_moment) {
  // S q . S^-T k = q . k: no balance changes the product of the means.
  const Tensor mean_product = (m.query_mean * m.key_mean).sum(-1);
  const double size = static_cast<double>(fixed_size(m.projection, -1));
  const Tensor a = optimal_a(mean_square_of_sums(query_moment, key_moment, mean_product) / size);
  DenseExponential result;
  result.projection = (m.projection * (1 - 4 * a).sqrt().unsqueeze(-1).unsqueeze(-1)).to(at::kFloat);
  result.offset = (m.projection.square().sum(-1) * a.unsqueeze(-1)).to(at::kFloat);
  result.log_constant = (1 - 4 * a).log() * (size / 4);
  return result;
}

DenseExponential tune_oprf(const Moments& m) {
  return one_a_for_all(m, m.query_moment, m.key_moment);
}

DenseExponential tune_sderf(const Moments& m) {
  const Tensor cross = m.query_mean.unsqueeze(-1) * m.key_mean.unsqueeze(-2);
  const Tensor joint = m.query_moment + m.key_moment + cross + cross.transpose(-1, -2);
  const auto [values, vectors] = eigenvectors(joint);
  const Tensor a = optimal_a(values.clamp_min(0)), b = (1 - 4 * a).sqrt();
  DenseExponential result;
  result.projection = at::matmul(m.projection * b.unsqueeze(-2), vectors.transpose(-1, -2)).to(at::kFloat);
  result.offset = at::matmul(m.projection.square(), a.unsqueeze(-1)).squeeze(-1).to(at::kFloat);
  result.log_constant = (1 - 4 * a).log().sum(-1) / 4;
  return result;
}

DenseExponential tune_saderf(const Moments& m) {
  const auto diagonal = [](const Tensor& moment) { return floored(moment).diagonal(0, -2, -1); };
  const auto stretched = [](const Tensor& moment, const Tensor& f) {
    return moment * (f.unsqueeze(-1) * f.unsqueeze(-2));
  };
  const Tensor query_factor = (diagonal(m.key_moment) / diagonal(m.query_moment)).pow(0.25),
               key_factor = query_factor.reciprocal();
  DenseExponential result =
      one_a_for_all(m, stretched(m.query_moment, query_factor), stretched(m.key_moment, key_factor));
  result.query_factor = query_factor;
  result.key_factor = key_factor;
  return result;
}

DenseExponential tune_aderf(const Moments& m) {
  const auto turned = [](const Tensor& moment, const Tensor& s) {
    return at::matmul(s, at::matmul(moment, s.transpose(-1, -2)));
  };
  const auto [query_matrix, key_matrix] = balancing_matrices(m.query_moment, m.key_moment);
  DenseExponential result =
      one_a_for_all(m, turned(m.query_moment, query_matrix), turned(m.key_moment, key_matrix));
  result.query_matrix = query_matrix;
  result.key_matrix = key_matrix;
  return result;
}

using Tune = DenseExponential (*)(const Moments&);

DenseExponential tuned(Tune tune, const Tensor& projection, const MapStatistics& s) {
  const at::NoGradGuard no_grad;
  const auto exact = [](const Tensor& t) { return t.detach().to(at::kDouble); };
  return tune({exact(projection), exact(s.query_mean), exact(s.key_mean), exact(s.query_moment),
               exact(s.key_moment)});
}

void check_statistics(const MapProblem& problem) {
  const MapStatistics& s = problem.statistics;
  TORCH_CHECK_VALUE(
      s.defined() && s.key_mean.defined() && s.query_moment.defined() && s.key_moment.defined(),
      "feature map ", problem.options.map,
      " needs second moments of queries and keys: measure_statistics() gives them, frozen ones are "
      "needed for causal attention and streaming");
  const int64_t dims = s.query_mean.dim();
  const auto fits = [&](const Tensor& t, int64_t own) {
    return t.dim() == dims + own - 1 && (dims == 2 || dims == 3) &&
           fixed_size(t, 0) == fixed_size(s.query_mean, 0) && fixed_size(t, dims - 2) == problem.heads &&
           fixed_size(t, dims - 1) == problem.head_size && fixed_size(t, -1) == problem.head_size;
  };
  TORCH_CHECK_VALUE(
      fits(s.query_mean, 1) && fits(s.key_mean, 1) && fits(s.query_moment, 2) && fits(s.key_moment, 2),
      "feature map ", problem.options.map, " with ", problem.heads, " heads of size ", problem.head_size,
      " needs means [H, D] and second moments [H, D, D], or both with the sequences in front; found a mean "
      "of "
      "shape ",
      s.query_mean.sizes(), " and a moment of shape ", s.query_moment.sizes());
  for (const Tensor* moment : {&s.query_moment, &s.key_moment}) {
    if (at::isTensorSubclassLike(*moment))
      continue;  // while a model is traced there are no numbers to look at
    TORCH_CHECK_VALUE(
        moment->is_meta() || moment->isfinite().all().item<bool>(), "feature map ", problem.options.map,
        " needs second moments of queries and keys, and some are not finite: the inputs are NaN, "
        "or beyond 1e18, whose square float32 has no number for");
  }
}

template <Tune tune>
void prepare_tuned(PreparedMap& result, const MapProblem& problem) {
  prepare_projected(result, problem, problem.head_size);
  check_statistics(problem);
  const DenseExponential dense = tuned(tune, problem.weights.projection, problem.statistics);
  result.map.projection = dense.projection;
  result.map.offset = dense.offset;
  result.query_matrix = dense.query_matrix;
  result.key_matrix = dense.key_matrix;
  result.query_factor = dense.query_factor;
  result.key_factor = dense.key_factor;
  result.log_constant = dense.log_constant;
}

struct DenseMap {
  const char* name;
  Tune tune;
};
constexpr DenseMap kTunes[] = {
    {"oprf", tune_oprf}, {"sderf", tune_sderf}, {"aderf", tune_aderf}, {"saderf", tune_saderf}};

template <int which>
constexpr MapRow dense_row() {
  return {.name = kTunes[which].name,
          .traits = {.exponential = true, .projected = true, .statistics = true},
          .prepare = prepare_tuned<kTunes[which].tune>};
}

constexpr MapRow kDenseMaps[] = {dense_row<0>(), dense_row<1>(), dense_row<2>(), dense_row<3>()};

}  // namespace

std::span<const MapRow> dense_exponential_maps() {
  return kDenseMaps;
}

Tensor optimal_a(const Tensor& s) {
  return (1 - 2 * s - ((2 * s + 1).square() + 8 * s).sqrt()) / 16;
}

DenseExponential dense_exponential(const std::string& map, const Tensor& projection,
                                   const MapStatistics& statistics) {
  for (const DenseMap& dense : kTunes) {
    if (map == dense.name) return tuned(dense.tune, projection, statistics);
  }
  TORCH_CHECK_VALUE(false, "feature map ", map, " is not tuned by second moments");
}

}  // namespace performer::ops
