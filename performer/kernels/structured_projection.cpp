// SPDX-License-Identifier: Apache-2.0
// Blocks of directions other than Haar-distributed orthogonal ones.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

#include "performer/kernels/projection.h"

namespace performer::kernels {
namespace {

int64_t ceil_log2(int64_t n) {
  int64_t bits = 0;
  while ((int64_t{1} << bits) < n) ++bits;
  return bits;
}

double random_sign(PhiloxStream& random) {
  return random.next() >> 31 != 0 ? 1.0 : -1.0;
}

// Fisher-Yates: every order is equally likely.
void shuffle(std::vector<int64_t>& order, PhiloxStream& random) {
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
}

// x <- H x without normalisation; the length of x is a power of two.
void walsh_hadamard(std::vector<double>& x) {
  for (size_t half = 1; half < x.size(); half *= 2) {
    for (size_t start = 0; start < x.size(); start += 2 * half) {
      for (size_t i = start; i < start + half; ++i) {
        const double a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
}

}  // namespace

std::vector<double> givens_orthogonal(int64_t size, const ProjectionKey& key, uint32_t block) {
  PhiloxStream random = projection_stream(key, block);
  const int64_t n = size;
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::vector<double> q(n * n, 0.0);
  shuffle(order, random);
  for (int64_t i = 0; i < n; ++i) q[i * n + order[i]] = random_sign(random);
  // What a row's fourth moment exceeds Haar's by starts at n/3 of it and shrinks to 3/4 a round; this leaves
  // below 1 %.
  const int64_t rounds = n == 1 ? 0 : (5 * ceil_log2(n) + 1) / 2 + 12;
  for (int64_t round = 0; round < rounds; ++round) {
    shuffle(order, random);
    for (int64_t pair = 0; pair + 1 < n; pair += 2) {  // distinct indices by construction
      const double angle = 2 * std::numbers::pi * random.uniform();
      const double c = std::cos(angle), s = std::sin(angle);
      double *a = q.data() + order[pair], *b = q.data() + order[pair + 1];
      for (int64_t row = 0; row < n;
           ++row, a += n, b += n) {  // q <- q G: columns order[pair], order[pair + 1]
        const double x = *a, y = *b;
        *a = c * x - s * y;
        *b = s * x + c * y;
      }
    }
  }
  return q;
}

std::vector<double> hadamard_rows(int64_t size, const ProjectionKey& key, uint32_t block) {
  PhiloxStream random = projection_stream(key, block);
  const int64_t n = int64_t{1} << ceil_log2(size);
  std::vector<double> signs(3 * n), column(n), rows(n * size);
  for (double& sign : signs) sign = random_sign(random);
  for (int64_t j = 0; j < size; ++j) {  // column j of (H D_3)(H D_2)(H D_1)
    std::fill(column.begin(), column.end(), 0.0);
    column[j] = 1;
    for (int64_t factor = 0; factor < 3; ++factor) {
      for (int64_t i = 0; i < n; ++i) column[i] *= signs[factor * n + i];
      walsh_hadamard(column);
    }
    for (int64_t i = 0; i < n; ++i) rows[i * size + j] = column[i];
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    double squares = 0;
    for (int64_t j = 0; j < size; ++j) squares += rows[i * size + j] * rows[i * size + j];
    if (squares == 0) continue;  // sums of whole numbers: exactly zero or at least 1
    for (int64_t j = 0; j < size; ++j) rows[kept * size + j] = rows[i * size + j] / std::sqrt(squares);
    ++kept;
  }
  rows.resize(kept * size);
  return rows;
}

std::vector<double> simplex_directions(int64_t size, const ProjectionKey& key, uint32_t block) {
  std::vector<double> q = haar_orthogonal(size, key, block);
  if (size == 1) return q;
  // The vertices e_i minus their mean, turned: rows of Q minus the mean row.
  const double scale = std::sqrt(static_cast<double>(size) / static_cast<double>(size - 1));
  for (int64_t j = 0; j < size; ++j) {
    double mean = 0;
    for (int64_t i = 0; i < size; ++i) mean += q[i * size + j];
    mean /= static_cast<double>(size);
    for (int64_t i = 0; i < size; ++i) q[i * size + j] = scale * (q[i * size + j] - mean);
  }
  return q;
}

}  // namespace performer::kernels
