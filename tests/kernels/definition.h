// SPDX-License-Identifier: Apache-2.0
// Holds a kernel table to the quadratic definition in double, with a bound derived from the same computation
// in plain float: a kernel may err at most twice as much, plus a few units in the last place of the result.
#pragma once

#include "tests/kernels/problem.h"

namespace performer::kernels::test {

// What rounding alone may do. `plain` is the same computation in plain float, `size` that of the terms that
// are summed (which may cancel). A log-weight of size U is rounded to U/2 units, which is a relative error of
// the weight, wherever the exponent is split into the query's, the key's and a scale's part.
struct Bound {
  double unit, log_weight;
  double operator()(double plain_error, double size) const {
    return 2 * plain_error + (16 + log_weight / 2) * unit * size;
  }
};

inline void expect_close(const char* what, const std::vector<double>& got, const std::vector<double>& exact,
                         const std::vector<double>& plain, double terms, const Bound& bound,
                         const std::string& text) {
  EXPECT_LE(difference(got, exact), bound(difference(plain, exact), std::max(terms, largest(exact))))
      << what << " of " << text << ", largest value " << largest(exact);
}

// Largest |u| of any query plus that of any key.
inline double largest_log_weight(const Problem& problem) {
  if (problem.spec.family == Family::elementwise) return 0;
  double row = 1, norm_q = 0, norm_k = 0;
  for (size_t f = 0; f < problem.projection.size(); f += static_cast<size_t>(problem.spec.d)) {
    double sum = 0;
    for (int64_t i = 0; i < problem.spec.d; ++i) sum += std::pow(problem.projection[f + i], 2);
    row = std::max(row, std::sqrt(sum));
  }
  const auto norm = [&](const Buffer& x) {
    double most = 0;
    for (int64_t r = 0; r < x.rows(); ++r) {
      double sum = 0;
      for (int64_t i = 0; i < x.size(); ++i) sum += std::pow(problem.map().scale * x.at(r, i), 2);
      most = std::max(most, std::sqrt(sum));
    }
    return most;
  };
  norm_q = norm(problem.q), norm_k = norm(problem.k);
  return row * (norm_q + norm_k) + norm_k * norm_k / 2;
}

inline void check_against_definition(const FavorKernels& kernels, const Spec& spec) {
  const Problem problem(spec);
  const Answer exact = quadratic<double>(problem), plain = quadratic<float>(problem);
  const Answer got = run(kernels, problem, true);
  const double unit = spec.type == DataType::float32    ? 0x1p-23
                      : spec.type == DataType::bfloat16 ? 0x1p-8
                                                        : 0x1p-11;
  // The log-weights are float32 whatever the inputs are.
  const Bound bound{unit, largest_log_weight(problem) * 0x1p-23 / unit};
  const std::string text = kernels.name + " " + spec.text();
  double projection = 1;
  for (float x : problem.projection) projection = std::max<double>(projection, std::abs(x));
  const double pair = largest(problem.g.values()) * largest(problem.v.values());
  const double terms = pair * projection * problem.map().scale;
  expect_close("out", got.out, exact.out, plain.out, 0, bound, text);
  expect_close("dq", got.dq, exact.dq, plain.dq, terms, bound, text);
  expect_close("dk", got.dk, exact.dk, plain.dk, terms, bound, text);
  expect_close("dv", got.dv, exact.dv, plain.dv, 0, bound, text);
}

}  // namespace performer::kernels::test
