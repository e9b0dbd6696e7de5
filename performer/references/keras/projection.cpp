// SPDX-License-Identifier: Apache-2.0
#include "performer/references/keras/projection.h"

#include <ATen/ATen.h>

#include <bit>
#include <cmath>
#include <numbers>
#include <vector>

#include "performer/base/error.h"
#include "performer/base/philox.h"
#include "performer/ops/composed.h"

namespace performer::references::keras {
namespace {

using at::Tensor;
using Words = std::array<uint32_t, 4>;

// Words of the stateless generator of `seed`. The seed is a counter under a fixed key; the block it gives is
// key and upper counter of the stream.
class StatelessWords {
 public:
  explicit StatelessWords(Seed seed) {
    const auto first = static_cast<uint64_t>(seed[0]), second = static_cast<uint64_t>(seed[1]);
    mixed_ = philox4x32({static_cast<uint32_t>(first), static_cast<uint32_t>(first >> 32),
                         static_cast<uint32_t>(second), static_cast<uint32_t>(second >> 32)},
                        {0x3ec8f720, 0x02461e29});
  }
  Words block(uint32_t index) const {  // callers stay below 2^32 blocks
    return philox4x32({index, 0, mixed_[2], mixed_[3]}, {mixed_[0], mixed_[1]});
  }

 private:
  Words mixed_;
};

float unit_float(uint32_t word) {  // [0, 1): the low 23 bits as a mantissa
  return std::bit_cast<float>((127u << 23) | (word & 0x7fffffu)) - 1.0f;
}

void box_muller(uint32_t first, uint32_t second, float* out) {
  const float u = std::max(unit_float(first), 1e-7f);
  const auto angle = static_cast<float>(2 * std::numbers::pi * unit_float(second));  // rounded once
  const float radius = std::sqrt(-2.0f * std::log(u));
  out[0] = std::sin(angle) * radius;
  out[1] = std::cos(angle) * radius;
}

void check_sizes(int64_t rows, int64_t size) {
  check<UsageError>(rows >= 1 && size >= 1,
                    "a projection needs at least one row and one column, found {} and {}", rows, size);
}

}  // namespace

Tensor stateless_normal(int64_t rows, int64_t columns, Seed seed) {
  const StatelessWords words(seed);
  const int64_t count = rows * columns;
  std::vector<float> values(static_cast<size_t>((count + 3) / 4 * 4));
  for (size_t i = 0; i < values.size(); i += 4) {
    const Words block = words.block(static_cast<uint32_t>(i / 4));
    box_muller(block[0], block[1], &values[i]);
    box_muller(block[2], block[3], &values[i + 2]);
  }
  return at::tensor(values).narrow(0, 0, count).view({rows, columns});
}

Seed next_seed(Seed seed) {
  const Words block = StatelessWords(seed).block(0);
  return {static_cast<int32_t>(block[0]), static_cast<int32_t>(block[1])};
}

// In double: a QR decomposition magnifies the rounding of its steps by the condition of the block.
Tensor projection_from_draws(const Tensor& blocks, const Tensor& norms) {
  const Tensor rows = ops::uncorrected_orthogonal_rows(blocks.to(at::kDouble), norms.size(0));
  return (rows * norms.to(at::kDouble).unsqueeze(-1)).to(blocks.scalar_type());
}

Tensor projection_from_seed(int64_t rows, int64_t size, Seed seed) {
  check_sizes(rows, size);
  std::vector<Tensor> blocks;
  for (int64_t i = 0; i * size < rows; ++i) {
    blocks.push_back(stateless_normal(size, size, seed));
    seed = next_seed(seed);
  }
  const Tensor norms = stateless_normal(rows, size, seed).square().sum(-1).sqrt();
  return projection_from_draws(at::stack(blocks), norms);
}

Tensor redrawn_norms(int64_t rows, int64_t size) {
  return stateless_normal(rows, size, {0, 1}).square().sum(-1).sqrt();
}

Tensor redrawn_projection(int64_t rows, int64_t size, int64_t seed, int64_t index) {
  check_sizes(rows, size);
  const int64_t count = (rows + size - 1) / size;
  Tensor blocks = at::empty({count, size, size}, at::kDouble);
  PhiloxStream stream(static_cast<uint64_t>(seed), static_cast<uint32_t>(index));
  double* values = blocks.mutable_data_ptr<double>();
  for (int64_t i = 0; i < blocks.numel(); ++i) values[i] = stream.normal();
  return projection_from_draws(blocks.to(at::kFloat), redrawn_norms(rows, size));
}

}  // namespace performer::references::keras
