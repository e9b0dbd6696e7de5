// SPDX-License-Identifier: Apache-2.0
#include "performer/kernels/projection.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "performer/base/error.h"

namespace performer::kernels {

namespace {

constexpr const char* kKindNames[] = {"orthogonal", "iid", "hadamard", "givens", "simplex"};
constexpr uint32_t kRowNorms = 0xFFFF;

double norm(const double* row, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += row[i] * row[i];
  return std::sqrt(sum);
}

// Unit rows of one block.
std::vector<double> directions(ProjectionKind kind, int64_t size, const ProjectionKey& key, uint32_t block) {
  switch (kind) {
    case ProjectionKind::hadamard:
      return hadamard_rows(size, key, block);
    case ProjectionKind::givens:
      return givens_orthogonal(size, key, block);
    case ProjectionKind::simplex:
      return simplex_directions(size, key, block);
    default:
      return haar_orthogonal(size, key, block);
  }
}

}  // namespace

ProjectionKind projection_kind_from_name(const std::string& name) {
  for (size_t i = 0; i < std::size(kKindNames); ++i) {
    if (name == kKindNames[i]) return static_cast<ProjectionKind>(i);
  }
  throw UsageError(fmt::format("unknown projection '{}'; known: {}", name, fmt::join(kKindNames, ", ")));
}

RowNorm row_norm_from_name(const std::string& name) {
  if (name == "chi") return RowNorm::chi;
  if (name == "sqrt-d") return RowNorm::sqrt_d;
  throw UsageError(fmt::format("unknown row norm '{}'; known: chi, sqrt-d", name));
}

// One stream a purpose: blocks of directions, then the row norms, never share values. Heads and redraws are
// 16 and 32 bits of the name; a layer has its own word.
PhiloxStream projection_stream(const ProjectionKey& key, uint32_t purpose) {
  return PhiloxStream(key.seed, key.layer, key.head << 16 | purpose, key.redraw);
}

std::vector<double> haar_orthogonal(int64_t size, const ProjectionKey& key, uint32_t block) {
  PhiloxStream random = projection_stream(key, block);
  const int64_t n = size;
  std::vector<double> a(n * n), q(n * n, 0.0), v(n);
  for (double& value : a) value = random.normal();
  for (int64_t i = 0; i < n; ++i) q[i * n + i] = 1;
  // Householder QR of `a`; q collects H_1 H_2 ... H_n. Reflection k maps the column onto -sign(x_k)|x| e_k,
  // so R_kk = -sign(x_k)|x|; moving that sign into column k of Q makes Q unique, and so Haar (Mezzadri 2007).
  std::vector<double> signs(n);
  for (int64_t k = 0; k < n; ++k) {
    double length = 0;
    for (int64_t i = k; i < n; ++i) length += a[i * n + k] * a[i * n + k];
    length = std::sqrt(length);
    const double pivot = a[k * n + k];
    const double r = pivot >= 0 ? -length : length;
    signs[k] = r >= 0 ? 1 : -1;
    for (int64_t i = k; i < n; ++i) v[i] = a[i * n + k];
    v[k] -= r;
    double vv = 0;
    for (int64_t i = k; i < n; ++i) vv += v[i] * v[i];
    if (vv == 0) continue;
    for (int64_t j = k; j < n; ++j) {  // a <- H a
      double dot = 0;
      for (int64_t i = k; i < n; ++i) dot += v[i] * a[i * n + j];
      for (int64_t i = k; i < n; ++i) a[i * n + j] -= 2 * dot / vv * v[i];
    }
    for (int64_t row = 0; row < n; ++row) {  // q <- q H
      double dot = 0;
      for (int64_t i = k; i < n; ++i) dot += q[row * n + i] * v[i];
      for (int64_t i = k; i < n; ++i) q[row * n + i] -= 2 * dot / vv * v[i];
    }
  }
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t k = 0; k < n; ++k) q[row * n + k] *= signs[k];
  }
  return q;
}

std::vector<float> draw_projection(ProjectionKind kind, RowNorm row_norm, int64_t features, int64_t head_size,
                                   const ProjectionKey& key) {
  check<UsageError>(features >= 1 && head_size >= 1,
                    "a projection needs at least 1 feature and head size 1, found {} x {}", features,
                    head_size);
  const double root = std::sqrt(static_cast<double>(head_size));
  std::vector<float> projection(features * head_size);
  std::vector<double> row(head_size), block;
  uint32_t blocks = 0;
  size_t used = 0;  // elements of `block` that are rows already
  PhiloxStream lengths = projection_stream(key, kRowNorms);
  PhiloxStream rows = projection_stream(key, 0);  // iid rows; unused by the other kinds
  for (int64_t f = 0; f < features; ++f) {
    if (kind == ProjectionKind::iid) {
      for (double& value : row) value = rows.normal();
    } else {
      if (used == block.size()) block = directions(kind, head_size, key, blocks++), used = 0;
      std::copy_n(block.begin() + static_cast<int64_t>(used), head_size, row.begin());
      used += row.size();
    }
    double factor = 1;
    if (row_norm == RowNorm::sqrt_d) {
      factor = root / norm(row.data(), head_size);
    } else if (kind != ProjectionKind::iid) {
      double sum = 0;
      for (int64_t i = 0; i < head_size; ++i) {
        const double value = lengths.normal();
        sum += value * value;
      }
      factor = std::sqrt(sum);  // directions have length 1
    }
    for (int64_t i = 0; i < head_size; ++i)
      projection[f * head_size + i] = static_cast<float>(factor * row[i]);
  }
  return projection;
}

}  // namespace performer::kernels
