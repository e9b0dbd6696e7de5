// SPDX-License-Identifier: Apache-2.0
// From a Hadamard projection back to its factors.
//
// A block is A = diag(r) H D_3 H D_2 H D_1 with unknown lengths r and signs D_i. H H = d I, and rows of A
// have the length d^(3/2) r, so B = diag(r)^-1 A and G = H B / d = D_3 H D_2 H D_1 are known. With c = H d_2,
//   G_ij = d_3(i) c(i XOR j) d_1(j),   c whole and even numbers.
// The signs of G give those of all three up to changes that cancel in A: c(k) times (-1)^popcount(w AND k),
// any w, with d_1 and d_3 alike, and a sign of c with d_1 or d_3.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>

#include "performer/kernels/projection.h"

namespace performer::kernels {
namespace {

constexpr int64_t kLeastSize = 32, kMostSize = 256;
constexpr int64_t kStep = 8;  // columns that are compared together
// That a projection must serve for its factors to be looked for, which takes as long as products with some
// 100 of them.
constexpr int64_t kLeastTokens = 512;

// Rows of x[size, size] <- H x.
void transform_rows(float* x, int64_t size) {
  for (int64_t half = 1; half < size; half *= 2) {
    for (int64_t start = 0; start < size; start += 2 * half) {
      float *low = x + start * size, *high = low + half * size;
      for (int64_t i = 0; i < half * size; ++i) {
        const float a = low[i], b = high[i];
        low[i] = a + b;
        high[i] = a - b;
      }
    }
  }
}

class Block {
 public:
  Block(const float* rows, int64_t size, float* factors)
      : rows_(rows), size_(size), tolerance_(1e-6f * static_cast<float>(size)), factors_(factors) {}

  // Fills the factors [4, size]; false where the block has no such form.
  bool find() {
    if (!scale_rows() || !looks_whole()) return false;
    transform_rows(matrix_.data(), size_);
    return find_signs() && agrees() && set_middle();
  }

 private:
  float* diagonal(int64_t index) const { return factors_ + index * size_; }
  float at(int64_t i, int64_t j) const { return matrix_[static_cast<size_t>(i * size_ + j)]; }
  static float sign_of(float x) { return x < 0 ? -1.0f : 1.0f; }

  // matrix_ = B / d, and r.
  bool scale_rows() {
    matrix_.resize(static_cast<size_t>(size_ * size_));
    const double d = static_cast<double>(size_), root = std::sqrt(d);
    for (int64_t i = 0; i < size_; ++i) {
      const float* row = rows_ + i * size_;
      std::array<double, 4> parts{};  // independent sums
      for (int64_t j = 0; j < size_; j += 4) {
        for (size_t k = 0; k < 4; ++k) {
          const double x = row[j + static_cast<int64_t>(k)];
          parts[k] += x * x;
        }
      }
      const double length = std::sqrt(parts[0] + parts[1] + parts[2] + parts[3]);
      if (!(length > 0 && length < 1e30)) return false;
      diagonal(3)[i] = static_cast<float>(length / (d * root));
      const float factor = static_cast<float>(root / length);
      for (int64_t j = 0; j < size_; ++j) matrix_[static_cast<size_t>(i * size_ + j)] = row[j] * factor;
    }
    return true;
  }
  // Whether a few elements of G are whole: other matrices end here.
  bool looks_whole() const {
    for (int64_t j = 0; j < kStep; ++j) {
      float sum = 0;
      for (int64_t i = 0; i < size_; ++i) sum += at(i, j);
      if (std::abs(sum - std::nearbyint(sum)) > tolerance_) return false;
    }
    return true;
  }

  // c, d_1 and d_3. What is free makes c positive where it is largest, at the root, and d_1 at 0 and at a
  // basis of the distances from there.
  bool find_signs() {
    int64_t root = 0, left = 0;  // where c is largest; signs of c that are not known
    for (int64_t k = 0; k < size_; ++k) {
      c_[k] = std::nearbyint(std::abs(at(0, k)));
      if (c_[k] > c_[root]) root = k;
      if (c_[k] != 0) ++left;
    }
    std::vector<int64_t> found{root}, shifts;
    found.reserve(static_cast<size_t>(size_));
    known_[root] = true;
    for (int64_t j = 1; j < size_; j *= 2) extend_basis(root, j, shifts);
    for (int64_t j = 1; j < size_; ++j) extend_basis(root, j, shifts);
    float *d1 = diagonal(0), *d3 = diagonal(2);
    // The basis reaches nearly all of c; where it does not, all of d_1 that is known by then does.
    for (int round = 0; round < 2; ++round) {
      for (size_t next = 0; next < found.size(); ++next) {
        for (const int64_t j : shifts) learn(found[next], j, found);
      }
      shifts.clear();
      for (int64_t j = 0; j < size_; ++j) {
        if (find_shift(j)) shifts.push_back(j);
      }
      if (static_cast<int64_t>(found.size()) == left) break;
    }
    if (static_cast<int64_t>(found.size()) < left || static_cast<int64_t>(shifts.size()) < size_)
      return false;
    for (int64_t i = 0; i < size_; ++i) d3[i] = sign_of(at(i, i ^ root)) * d1[i ^ root];
    return true;
  }
  void extend_basis(int64_t root, int64_t j, std::vector<int64_t>& basis) {
    spanned_[0] = true;
    if (c_[root ^ j] == 0 || spanned_[j]) return;
    for (int64_t i = 0; i < size_; ++i) {
      if (spanned_[i]) spanned_[i ^ j] = true;
    }
    diagonal(0)[j] = 1;
    basis.push_back(j);
  }
  // The sign of c(i XOR j) from that of c(i): G_i0 G_ij = d_1(j) c(i) c(i XOR j).
  void learn(int64_t i, int64_t j, std::vector<int64_t>& found) {
    const int64_t k = i ^ j;
    if (known_[k] || c_[k] == 0) return;
    c_[k] *= sign_of(at(i, 0)) * sign_of(at(i, j)) * diagonal(0)[j] * sign_of(c_[i]);
    known_[k] = true;
    found.push_back(k);
  }
  // d_1(j) from any two of c that are j apart.
  bool find_shift(int64_t j) const {
    for (int64_t i = 0; i < size_; ++i) {
      const int64_t k = i ^ j;
      if (!known_[i] || !known_[k]) continue;
      diagonal(0)[j] = sign_of(at(i, 0)) * sign_of(at(i, j)) * sign_of(c_[i]) * sign_of(c_[k]);
      return true;
    }
    return false;
  }

  // Whether G is made of them, up to rounding.
  bool agrees() const {
    // c at k XOR low for the low bits of a row, so that columns run along with the memory.
    std::array<std::array<float, kMostSize>, kStep> turned;
    for (int64_t low = 0; low < kStep; ++low) {
      for (int64_t k = 0; k < size_; ++k) turned[low][k] = c_[k ^ low];
    }
    const float *d1 = diagonal(0), *d3 = diagonal(2);
    std::array<float, kStep> most{};  // one for each of the columns that are compared together
    for (int64_t i = 0; i < size_; ++i) {
      const float* row = matrix_.data() + i * size_;
      for (int64_t j = 0; j < size_; j += kStep) {
        const float* c = turned[i % kStep].data() + (j ^ (i - i % kStep));
        for (int64_t k = 0; k < kStep; ++k) {
          const float gap = std::abs(row[j + k] - d3[i] * d1[j + k] * c[k]);
          most[k] = gap > most[k] ? gap : most[k];
        }
      }
    }
    return *std::max_element(most.begin(), most.end()) <= tolerance_;
  }

  // d_2 = H c / d.
  bool set_middle() const {
    std::array<float, kMostSize> sum = c_;
    for (int64_t half = 1; half < size_; half *= 2) {
      for (int64_t k = 0; k < size_; ++k) {
        if ((k & half) != 0) continue;
        const float a = sum[k], b = sum[k + half];
        sum[k] = a + b;
        sum[k + half] = a - b;
      }
    }
    for (int64_t k = 0; k < size_; ++k) {
      if (std::abs(sum[k]) != static_cast<float>(size_)) return false;
      diagonal(1)[k] = sign_of(sum[k]);
    }
    return true;
  }

  const float* rows_;
  int64_t size_;
  float tolerance_;  // of G, whose elements are some sqrt(d)
  float* factors_;
  std::vector<float> matrix_;  // [size, size]: B / d, then G
  std::array<float, kMostSize> c_ = {};
  std::array<bool, kMostSize> known_ = {};    // of c(k): the sign
  std::array<bool, kMostSize> spanned_ = {};  // by the basis
};

}  // namespace

std::vector<float> hadamard_factors(const float* projection, int64_t features, int64_t head_size) {
  if (head_size < kLeastSize || head_size > kMostSize ||
      !std::has_single_bit(static_cast<uint64_t>(head_size)))
    return {};
  const int64_t blocks = features / head_size;
  std::vector<float> factors(static_cast<size_t>(blocks * 4 * head_size));
  for (int64_t b = 0; b < blocks; ++b) {
    Block block(projection + b * head_size * head_size, head_size, factors.data() + b * 4 * head_size);
    if (!block.find()) return {};
  }
  return factors;
}

std::vector<float> factors_for_tokens(const float* projections, int64_t matrices, int64_t features,
                                      int64_t head_size, int64_t tokens, Executor& executor) {
  const int64_t size = features / head_size * 4 * head_size;  // of a projection's factors
  if (matrices == 0 || size == 0 || tokens < kLeastTokens) return {};
  std::vector<float> factors(static_cast<size_t>(matrices * size));
  std::atomic<bool> all{true};
  executor.parallel_for(matrices, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end && all; ++i) {
      const std::vector<float> found =
          hadamard_factors(projections + i * features * head_size, features, head_size);
      if (found.empty()) all = false;
      std::copy(found.begin(), found.end(), factors.begin() + i * size);
    }
  });
  return all ? factors : std::vector<float>();
}

}  // namespace performer::kernels
