// SPDX-License-Identifier: Apache-2.0
// bfloat16 inputs in every kernel table: those that multiply in bfloat16 (avx512bf16) and those that convert.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/definition.h"

namespace performer::kernels::test {
namespace {

class EveryTableInHalf : public ::testing::TestWithParam<const FavorKernels*> {};
INSTANTIATE_TEST_SUITE_P(Targets, EveryTableInHalf, ::testing::ValuesIn(available_favor_kernels()),
                         [](const auto& info) { return info.param->name; });

float half(double x) {
  return bfloat16_to_float(float_to_bfloat16(static_cast<float>(x)));
}

// The output as a plain bfloat16 program computes it, which rounds after each operation (sums inside a matrix
// product are float32): logits, features, states, numerators, denominators, quotients. Bidirectional softmax
// features of one head, with the usual shifts: of each query by its own largest logit, of all keys by theirs.
std::vector<double> plain_bfloat16(const Problem& problem) {
  const Spec& s = problem.spec;
  const float scale = half(std::pow(static_cast<double>(s.d), -0.25));
  const auto logits = [&](const Buffer& x, int64_t row, bool key) {
    std::vector<float> u(static_cast<size_t>(s.m));
    float squares = 0;
    for (int64_t i = 0; i < s.d; ++i) squares += std::pow(half(x.at(row, i) * scale), 2.0f);
    for (int64_t f = 0; f < s.m; ++f) {
      for (int64_t i = 0; i < s.d; ++i)
        u[f] += half(problem.projection[static_cast<size_t>(f * s.d + i)]) * half(x.at(row, i) * scale);
      u[f] = half(u[f]);
      if (key) u[f] = half(u[f] - half(half(squares) / 2));
    }
    return u;
  };
  std::vector<std::vector<float>> uk;
  float most = -1e30f;
  for (int64_t j = 0; j < s.keys; ++j) {
    uk.push_back(logits(problem.k, j, true));
    for (float u : uk.back()) most = std::max(most, u);
  }
  std::vector<float> sum(static_cast<size_t>(s.m)), state(static_cast<size_t>(s.m * s.e));
  for (int64_t f = 0; f < s.m; ++f) {
    for (int64_t j = 0; j < s.keys; ++j) {
      const float phi = half(std::exp(half(uk[j][f] - most)));
      sum[f] += phi;
      for (int64_t c = 0; c < s.e; ++c) state[f * s.e + c] += phi * static_cast<float>(problem.v.at(j, c));
    }
    sum[f] = half(sum[f]);
    for (int64_t c = 0; c < s.e; ++c) state[f * s.e + c] = half(state[f * s.e + c]);
  }
  std::vector<double> out;
  for (int64_t i = 0; i < s.queries; ++i) {
    const auto u = logits(problem.q, i, false);
    const float shift = *std::max_element(u.begin(), u.end());
    std::vector<float> row(static_cast<size_t>(s.e));
    float total = 0;
    for (int64_t f = 0; f < s.m; ++f) {
      const float phi = half(std::exp(half(u[f] - shift)));
      total += phi * sum[f];
      for (int64_t c = 0; c < s.e; ++c) row[c] += phi * state[f * s.e + c];
    }
    for (float x : row) out.push_back(half(half(x) / half(total)));
  }
  return out;
}

TEST_P(EveryTableInHalf, ErrsAtMostTwiceAsMuchAsPlainBfloat16) {
  for (const auto& [d, m] : {std::pair<int64_t, int64_t>{16, 32}, {64, 256}, {24, 48}, {33, 50}}) {
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      const Problem problem({.queries = 80,
                             .keys = 80,
                             .heads = 1,
                             .d = d,
                             .e = 32,
                             .m = m,
                             .type = DataType::bfloat16,
                             .seed = seed});
      const auto exact = quadratic<double>(problem).out;
      const double plain = difference(plain_bfloat16(problem), exact);
      const double got = difference(run(*GetParam(), problem, false).out, exact);
      EXPECT_LE(got, 2 * plain) << GetParam()->name << " " << problem.spec.text();
    }
  }
}

TEST_P(EveryTableInHalf, EveryShapeClass) {
  for (const bool causal : {false, true}) {
    for (const bool exponential : {true, false}) {
      Spec s{.heads = 2, .d = 16, .e = 24, .m = 40, .causal = causal, .type = DataType::bfloat16};
      if (!exponential) s.family = Family::elementwise, s.epsilon = 1e-3;
      for (const int64_t length : {0, 1, 2, 15, 16, 17, 31, 47, 48, 49, 63, 64, 65, 70, 129}) {
        s.queries = s.keys = length;
        check_against_definition(*GetParam(), s);
      }
      s.queries = s.keys = 70;
      for (const int64_t d : {1, 3, 24, 80}) {
        for (const int64_t e : {1, 5, 33}) {
          Spec odd = s;
          odd.d = d, odd.e = e, odd.m = 19;
          check_against_definition(*GetParam(), odd);
        }
      }
      Spec masked = s;
      masked.batch = 2, masked.mask = masked.offset = true;
      check_against_definition(*GetParam(), masked);
      Spec packed = s;
      packed.cu = {0, 0, 5, 5, 70, 71, 140, 140};
      check_against_definition(*GetParam(), packed);
      for (const int64_t chunk : {1, 7, 16, 48, 100, 256}) {
        Spec chunked = s;
        chunked.chunk = chunk;
        check_against_definition(*GetParam(), chunked);
      }
    }
  }
}

TEST_P(EveryTableInHalf, FiniteForInputsOfAThousand) {
  for (const bool causal : {false, true}) {
    const Spec s{.queries = 130,
                 .keys = 130,
                 .d = 64,
                 .e = 16,
                 .m = 64,
                 .causal = causal,
                 .deviation = 1000,
                 .type = DataType::bfloat16};
    const Answer answer = run(*GetParam(), Problem(s), true);
    for (const auto* part : {&answer.out, &answer.dq, &answer.dk, &answer.dv}) {
      for (double value : *part) ASSERT_TRUE(std::isfinite(value)) << GetParam()->name << " " << s.text();
    }
    EXPECT_LE(largest(answer.out), 1.02 * largest(Problem(s).v.values()));
  }
}

TEST_P(EveryTableInHalf, ThreadsChangeNothing) {
  const Problem problem(
      {.heads = 3, .causal = true, .cu = {0, 40, 41, 200, 203}, .type = DataType::bfloat16});
  ThreadExecutor threads(3);
  const Answer one = run(*GetParam(), problem, true), three = run(*GetParam(), problem, true, &threads);
  EXPECT_EQ(one.out, three.out);
  EXPECT_EQ(one.dk, three.dk);
}

// The forward pass's state stands for the keys' sums of a bidirectional backward pass, in every type.
TEST_P(EveryTableInHalf, BackwardFromTheKeptStateIsTheSame) {
  for (const DataType type : {DataType::float32, DataType::bfloat16, DataType::float16}) {
    for (const bool exponential : {true, false}) {
      Spec s{.batch = 2, .queries = 75, .keys = 90, .d = 16, .e = 10, .m = 20, .mask = true, .type = type};
      if (!exponential) s.family = Family::elementwise, s.epsilon = 1e-3;
      const Problem problem(s);
      const Answer summed = run(*GetParam(), problem, true),
                   kept = run(*GetParam(), problem, true, nullptr, true);
      const double unit = type == DataType::float32 ? 1e-5 : type == DataType::bfloat16 ? 0.02 : 2e-3;
      for (const auto& [a, b] :
           {std::pair{&summed.dq, &kept.dq}, {&summed.dk, &kept.dk}, {&summed.dv, &kept.dv}})
        EXPECT_LE(difference(*a, *b), unit * std::max(1.0, largest(*a)))
            << GetParam()->name << " " << s.text();
    }
  }
}

}  // namespace
}  // namespace performer::kernels::test
