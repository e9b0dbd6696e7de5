// SPDX-License-Identifier: Apache-2.0
// The passes of block.h on every target against their definitions in double.
#include "performer/kernels/block.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "performer/kernels/element.h"
#include "tests/kernels/each_target.h"

namespace performer::kernels {
namespace {

constexpr int64_t kRows = 3;
constexpr int64_t kColumns[] = {1, 2, 3, 8, 15, 16, 17, 31, 33, 70, 1100};
constexpr int64_t kGuard = 40;  // elements behind an output that must stay as they are

// Values and what a kernel gets of them: float32, or bfloat16 that the values are rounded to.
struct Matrix {
  DataType type;
  std::vector<float> values;
  std::vector<uint16_t> halves;

  Matrix(DataType t, int64_t count, uint64_t seed) : type(t), values(static_cast<size_t>(count)) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(0, 2);
    for (float& value : values) {
      value = normal(random);
      if (type == DataType::bfloat16) value = bfloat16_to_float(float_to_bfloat16(value));
      halves.push_back(float_to_bfloat16(value));
    }
  }
  const void* data() const {
    return type == DataType::float32 ? static_cast<const void*>(values.data()) : halves.data();
  }
};

// NaN before a kernel writes it, and behind it.
struct Written {
  DataType type;
  int64_t count;
  std::vector<float> values;
  std::vector<uint16_t> halves;

  Written(DataType t, int64_t n) : type(t), count(n) {
    values.assign(static_cast<size_t>(n + kGuard), std::nanf(""));
    halves.assign(static_cast<size_t>(n + kGuard), 0x7fc0);
  }
  void* data() { return type == DataType::float32 ? static_cast<void*>(values.data()) : halves.data(); }
  double operator[](int64_t i) const {
    const auto at = static_cast<size_t>(i);
    return type == DataType::float32 ? values[at] : bfloat16_to_float(halves[at]);
  }
  void expect(const std::vector<double>& expected, double tolerance, const std::string& what) const {
    double largest = 1;
    for (const double each : expected) largest = std::max(largest, std::abs(each));
    for (int64_t i = 0; i < count; ++i)
      ASSERT_NEAR((*this)[i], expected[static_cast<size_t>(i)], tolerance * largest) << what << " " << i;
    for (int64_t i = count; i < count + kGuard; ++i) ASSERT_TRUE(std::isnan((*this)[i])) << what;
  }
};

// The factors of dropout for the elements of a mask from `first` on.
std::vector<double> factors(const DropoutMask& mask, int64_t first, int64_t count) {
  std::vector<float> ones(static_cast<size_t>(count), 1.0f);
  if (mask.probability > 0) dropout(ones.data(), ones.data(), 0, count, mask, first);
  return {ones.begin(), ones.end()};
}

struct Setting {
  std::string name;
  DataType type;
  double tolerance;
  int64_t columns;
  MaskedRows at;
};

// All targets, types and widths, with and without dropout.
void for_all(const std::function<void(const Setting&)>& body) {
  for_each_target([&](const char* target) {
    for (const DataType type : {DataType::float32, DataType::bfloat16}) {
      for (const int64_t columns : kColumns) {
        for (const double p : {0.0, 0.3}) {
          const double tolerance = type == DataType::float32 ? 3e-6 : 0x1p-8;
          body({std::string(target) + (type == DataType::float32 ? ", float32, " : ", bfloat16, ") +
                    std::to_string(columns) + " columns",
                type,
                tolerance,
                columns,
                {kRows, columns, 12345, {77, p}}});
        }
      }
    }
  });
}

double gelu_tanh(double x) {
  return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double gelu_tanh_slope(double x) {
  const double inner = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x), t = std::tanh(inner);
  return (1 + t) / 2 + x / 2 * (1 - t * t) * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

TEST(BlockKernels, ActivationForwardAndBackward) {
  for_all([](const Setting& s) {
    for (const Activation activation : {Activation::gelu_tanh, Activation::relu}) {
      const int64_t n = kRows * s.columns;
      const bool gelu = activation == Activation::gelu_tanh;
      const Matrix x(s.type, n, 1), g(s.type, n, 2), bias(DataType::float32, s.columns, 3);
      const std::vector<double> kept = factors(s.at.mask, s.at.mask_first, n);
      std::vector<double> y, dx, db(static_cast<size_t>(s.columns), 5);
      for (int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>(i), column = static_cast<size_t>(i % s.columns);
        const double u = double{x.values[at]} + bias.values[column];
        y.push_back(kept[at] * (gelu ? gelu_tanh(u) : std::max(u, 0.0)));
        dx.push_back(g.values[at] * kept[at] * (gelu ? gelu_tanh_slope(u) : u > 0));
        db[column] += dx.back();
      }
      Written output(s.type, n), gradient(s.type, n), sums(DataType::float32, s.columns);
      std::fill_n(sums.values.begin(), s.columns, 5.0f);
      const ActivationForward pass{s.at, activation, s.type, x.data(), bias.values.data(), output.data()};
      activation_forward(pass);
      output.expect(y, s.tolerance, s.name);
      activation_backward({pass, g.data(), gradient.data(), sums.values.data()});
      gradient.expect(dx, s.tolerance, s.name + ", gradient");
      sums.expect(db, 1e-5, s.name + ", bias");
    }
  });
}

TEST(BlockKernels, BranchForwardAndBackward) {
  for_all([](const Setting& s) {
    const int64_t n = kRows * s.columns;
    const Matrix x(DataType::float32, n, 1), branch(s.type, n, 2), bias(DataType::float32, s.columns, 3);
    const std::vector<double> kept = factors(s.at.mask, s.at.mask_first, n);
    for (const bool biased : {true, false}) {
      std::vector<double> y, db(static_cast<size_t>(s.columns), 5), dbranch;
      for (int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>(i), column = static_cast<size_t>(i % s.columns);
        y.push_back(x.values[at] + kept[at] * (branch.values[at] + (biased ? bias.values[column] : 0)));
        dbranch.push_back(kept[at] * x.values[at]);
        db[column] += dbranch.back();
      }
      Written output(DataType::float32, n), gradient(s.type, n), sums(DataType::float32, s.columns);
      std::fill_n(sums.values.begin(), s.columns, 5.0f);
      branch_forward({s.at, s.type, x.values.data(), branch.data(), biased ? bias.values.data() : nullptr,
                      output.values.data()});
      output.expect(y, 3e-6, s.name);
      branch_backward(
          {s.at, s.type, x.values.data(), gradient.data(), biased ? sums.values.data() : nullptr});
      gradient.expect(dbranch, s.tolerance, s.name + ", gradient");
      if (biased) sums.expect(db, 1e-5, s.name + ", bias");
    }
  });
}

TEST(BlockKernels, NormForwardAndBackward) {
  for_all([](const Setting& s) {
    if (s.columns == 1) return;  // nothing is left of a row of one
    const int64_t n = kRows * s.columns;
    const Matrix x(DataType::float32, n, 1), gain(DataType::float32, s.columns, 2),
        bias(DataType::float32, s.columns, 3), g(s.type, n, 4);
    std::vector<double> y, dx, dgain(static_cast<size_t>(s.columns), 5), dbias = dgain;
    for (int64_t row = 0; row < kRows; ++row) {
      const float *values = &x.values[static_cast<size_t>(row * s.columns)],
                  *gradient = &g.values[static_cast<size_t>(row * s.columns)];
      double mean = 0, variance = 0, sum = 0, along = 0;
      for (int64_t i = 0; i < s.columns; ++i) mean += values[i] / static_cast<double>(s.columns);
      for (int64_t i = 0; i < s.columns; ++i)
        variance += (values[i] - mean) * (values[i] - mean) / static_cast<double>(s.columns);
      const double scale = 1 / std::sqrt(variance + 0.01);
      for (int64_t i = 0; i < s.columns; ++i) {
        const auto at = static_cast<size_t>(i);
        const double unit = (values[i] - mean) * scale, h = double{gradient[i]} * gain.values[at];
        y.push_back(unit * gain.values[at] + bias.values[at]);
        sum += h / static_cast<double>(s.columns);
        along += h * unit / static_cast<double>(s.columns);
        dgain[at] += gradient[i] * unit;
        dbias[at] += gradient[i];
      }
      for (int64_t i = 0; i < s.columns; ++i) {
        const double unit = (values[i] - mean) * scale;
        dx.push_back(scale * (gradient[i] * gain.values[static_cast<size_t>(i)] - sum - unit * along));
      }
    }
    Written output(s.type, n), gradient(DataType::float32, n), sums(DataType::float32, 2 * s.columns),
        moments(DataType::float32, 2 * kRows);
    std::fill_n(sums.values.begin(), 2 * s.columns, 5.0f);
    float *mean = moments.values.data(), *scale = mean + kRows;
    norm_forward({kRows, s.columns, s.type, x.values.data(), gain.values.data(), bias.values.data(), 0.01,
                  output.data(), mean, scale});
    output.expect(y, s.tolerance, s.name);
    norm_backward({kRows, s.columns, s.type, x.values.data(), gain.values.data(), mean, scale, g.data(),
                   gradient.values.data(), sums.values.data(), sums.values.data() + s.columns});
    gradient.expect(dx, 1e-5, s.name + ", gradient");
    dgain.insert(dgain.end(), dbias.begin(), dbias.end());
    sums.expect(dgain, 1e-5, s.name + ", gain and bias");
  });
}

TEST(BlockKernels, RotationAndBack) {
  for_each_target([](const char* target) {
    for (const DataType type : {DataType::float32, DataType::bfloat16}) {
      for (const int64_t size : {2, 6, 16, 24, 64, 80}) {
        const int64_t heads = 3, stride = heads * size, n = kRows * stride;
        const Matrix x(type, n, 1);
        std::vector<float> table(static_cast<size_t>(kRows * size));
        for (size_t i = 0; i < table.size(); i += 2) {
          table[i] = static_cast<float>(std::cos(0.1 * static_cast<double>(i)));
          table[i + 1] = static_cast<float>(std::sin(0.1 * static_cast<double>(i)));
        }
        for (const bool backwards : {false, true}) {
          std::vector<double> expected(x.values.size());
          for (size_t i = 0; i < expected.size(); i += 2) {
            const size_t row = i / static_cast<size_t>(stride);
            const size_t at = row * static_cast<size_t>(size) + i % static_cast<size_t>(size);
            const double c = table[at], s = backwards ? -table[at + 1] : table[at + 1];
            expected[i] = x.values[i] * c - x.values[i + 1] * s;
            expected[i + 1] = x.values[i + 1] * c + x.values[i] * s;
          }
          Written output(type, n);
          rotate(
              {kRows, heads, size, type, x.data(), output.data(), stride, stride, table.data(), backwards});
          output.expect(expected, type == DataType::float32 ? 1e-6 : 0x1p-8,
                        std::string(target) + ", head size " + std::to_string(size));
        }
      }
    }
  });
}

}  // namespace
}  // namespace performer::kernels
