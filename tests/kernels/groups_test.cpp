// SPDX-License-Identifier: Apache-2.0
// A single long head, whose features the vector kernels cut into groups, against the same head among others,
// which stay whole; and inputs that are not numbers.
#include <gtest/gtest.h>

#include <limits>

#include "tests/kernels/problem.h"

namespace performer::kernels::test {
namespace {

class EveryTableGrouped : public ::testing::TestWithParam<const FavorKernels*> {};
INSTANTIATE_TEST_SUITE_P(Targets, EveryTableGrouped, ::testing::ValuesIn(available_favor_kernels()),
                         [](const auto& info) { return info.param->name; });

constexpr int64_t kD = 16, kE = 24, kM = 64;

// A pass over `heads` heads that all read the same queries, keys and values. Results are those of head 0.
struct SharedHeads {
  int64_t heads, tokens;
  DataType type;
  std::vector<float> out, dq, dk, dv, state, grad_initial;

  static int64_t bytes(DataType type) { return type == DataType::float32 ? 4 : 2; }

  SharedHeads(const FavorKernels& kernels, int64_t head_count, int64_t length, DataType data_type,
              bool causal, Family family, bool stateful, Executor& executor, float constant = 3)
      : heads(head_count), tokens(length), type(data_type) {
    const int64_t rows = state_features(family, kM);
    PhiloxStream random(11);
    const auto fill = [&](int64_t size) {
      std::vector<char> data(static_cast<size_t>(size * bytes(type)));
      const View view{data.data(), type};
      for (int64_t i = 0; i < size; ++i) store(view, i, random.normal());
      return data;
    };
    auto q = fill(tokens * kD), k = fill(tokens * kD), v = fill(tokens * kE), g = fill(tokens * kE);
    std::vector<float> one(kM * kD), projection;
    for (float& x : one) x = static_cast<float>(random.normal());
    for (int64_t h = 0; h < heads; ++h) projection.insert(projection.end(), one.begin(), one.end());
    std::vector<char> key_mask(static_cast<size_t>(tokens)), query_mask(key_mask.size());
    for (char& kept : key_mask) kept = random.uniform() < 0.8;
    for (char& kept : query_mask) kept = random.uniform() < 0.9;
    const auto shared = [&](std::vector<char>& data, int64_t size) {
      return View{data.data(), type, 0, size, 0};
    };
    std::vector<std::vector<float>> results;
    for (int64_t size : {kE, kD, kD, kE}) results.emplace_back(static_cast<size_t>(heads * tokens * size));
    const auto own = [&](size_t i, int64_t size) {
      return View{results[i].data(), DataType::float32, 0, size, tokens * size};
    };
    const auto state_of = [&](float sum) {
      std::vector<float> parts(static_cast<size_t>(heads * rows * (kE + 2)), 0.0f);
      std::fill_n(parts.begin() + heads * rows * kE, heads * rows, sum);
      return parts;
    };
    const auto pointers = [&](std::vector<float>& parts) {
      return State{parts.data(), parts.data() + heads * rows * kE, parts.data() + heads * rows * (kE + 1)};
    };
    auto initial = state_of(3), final_state = state_of(0), grad_final = state_of(0.01f), grad = state_of(0);
    for (int64_t h = 0; h < heads; ++h) initial[heads * rows * kE + h * rows + rows - 1] = constant;
    AttentionBackward b;
    AttentionForward& p = b.forward;
    p.shape.query_tokens = p.shape.key_tokens = tokens;
    p.shape.heads = heads, p.shape.head_size = kD, p.shape.value_size = kE, p.shape.features = kM;
    p.map.projection = projection.data();
    p.map.projection_head_stride = kM * kD;
    p.map.family = family;
    if (family == Family::exponential) p.map.scale = 0.5;
    if (family == Family::elementwise) p.map.epsilon = 1e-3;
    if (family == Family::trigonometric) p.map.scale = 0.2, p.map.norm_weight = -0.5;
    p.causal = causal;
    p.query = shared(q, kD), p.key = shared(k, kD), p.value = shared(v, kE), p.out = own(0, kE);
    p.key_mask = reinterpret_cast<const bool*>(key_mask.data());
    p.query_mask = reinterpret_cast<const bool*>(query_mask.data());
    std::vector<float> normalizer(static_cast<size_t>(heads * tokens));
    p.normalizer = normalizer.data();
    if (stateful) p.initial = pointers(initial), p.final = pointers(final_state);
    std::vector<char> scratch(static_cast<size_t>(
        std::max(kernels.workspace(p, false), kernels.workspace(p, true)) * executor.workers() + 1));
    kernels.forward(p, executor, scratch.data());
    b.grad_out = shared(g, kE);
    b.grad_query = own(1, kD), b.grad_key = own(2, kD), b.grad_value = own(3, kE);
    if (stateful) {
      b.grad_final = pointers(grad_final), b.grad_initial = pointers(grad);
      p.final.kv = p.final.key_sum = nullptr;
    }
    kernels.backward(b, executor, scratch.data());
    for (auto [to, i, size] : {std::tuple{&out, 0, kE}, {&dq, 1, kD}, {&dk, 2, kD}, {&dv, 3, kE}})
      to->assign(results[i].begin(), results[i].begin() + tokens * size);
    const auto head_0 = [&](const std::vector<float>& parts) {
      std::vector<float> one_head(parts.begin(), parts.begin() + rows * kE);
      for (const int64_t part : {kE, kE + 1})
        one_head.insert(one_head.end(), parts.begin() + heads * rows * part,
                        parts.begin() + heads * rows * part + rows);
      return one_head;
    };
    state = head_0(final_state);
    grad_initial = head_0(grad);
  }
};

double gap(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0, size = 1;
  for (size_t i = 0; i < a.size(); ++i) {
    most = std::max(most, std::isfinite(a[i]) ? std::abs(static_cast<double>(a[i]) - b[i]) : 1e30);
    size = std::max<double>(size, std::abs(b[i]));
  }
  return most / size;
}

constexpr Family kEveryFamily[] = {Family::exponential, Family::elementwise, Family::trigonometric};

void expect_same(const SharedHeads& alone, const SharedHeads& four, double bound, const std::string& text) {
  EXPECT_LE(gap(alone.out, four.out), bound) << text;
  EXPECT_LE(gap(alone.dq, four.dq), bound) << text;
  EXPECT_LE(gap(alone.dk, four.dk), bound) << text;
  EXPECT_LE(gap(alone.dv, four.dv), bound) << text;
  EXPECT_LE(gap(alone.state, four.state), bound) << text;
  EXPECT_LE(gap(alone.grad_initial, four.grad_initial), bound) << text;
}

TEST_P(EveryTableGrouped, LongHeadIsTheSameAloneAndAmongOthers) {
  SerialExecutor serial;
  const bool quick = GetParam() != &favor_reference();
  for (const DataType type : {DataType::float32, DataType::bfloat16}) {
    for (const bool causal : {false, true}) {
      for (const Family family : kEveryFamily) {
        for (const bool stateful : {false, true}) {
          // Longer than a window of the groups, in one case of each kind.
          const int64_t tokens = quick && stateful ? 4500 : 600;
          const SharedHeads alone(*GetParam(), 1, tokens, type, causal, family, stateful, serial);
          const SharedHeads four(*GetParam(), 4, tokens, type, causal, family, stateful, serial);
          const double bound = type == DataType::float32 ? 2e-4 : 0.05;
          const std::string text =
              fmt::format("{} causal {} family {} state {} type {}", GetParam()->name, causal,
                          static_cast<int>(family), stateful, static_cast<int>(type));
          expect_same(alone, four, bound, text);
        }
      }
    }
  }
}

TEST_P(EveryTableGrouped, ThreadsChangeNothing) {
  SerialExecutor serial;
  ThreadExecutor three(3);
  for (const Family family : kEveryFamily) {
    for (const bool causal : {false, true}) {
      const SharedHeads one(*GetParam(), 1, 700, DataType::float32, causal, family, true, serial);
      const SharedHeads many(*GetParam(), 1, 700, DataType::float32, causal, family, true, three);
      EXPECT_EQ(one.out, many.out) << GetParam()->name;
      EXPECT_EQ(one.dq, many.dq) << GetParam()->name;
      EXPECT_EQ(one.dk, many.dk) << GetParam()->name;
      EXPECT_EQ(one.dv, many.dv) << GetParam()->name;
      EXPECT_EQ(one.state, many.state) << GetParam()->name;
      EXPECT_EQ(one.grad_initial, many.grad_initial) << GetParam()->name;
    }
  }
}

// Trigonometric denominators are floored by the whole head, not by its groups. The constant of the initial
// state is so large that the floor, 64 * 1e-4 of it, stands for the denominators of some rows and not of
// others; the reference divides each row as its own denominator says.
TEST_P(EveryTableGrouped, TheFloorIsThatOfTheWholeHead) {
  SerialExecutor serial;
  for (const bool causal : {false, true}) {
    const auto with = [&](const FavorKernels& kernels, float constant) {
      return SharedHeads(kernels, 1, 600, DataType::float32, causal, Family::trigonometric, true, serial,
                         constant);
    };
    const SharedHeads found = with(*GetParam(), 2e6f), expected = with(favor_reference(), 2e6f);
    expect_same(found, expected, 2e-4, fmt::format("{} causal {}", GetParam()->name, causal));
    int64_t same = 0;
    const SharedHeads without = with(favor_reference(), 3);
    for (int64_t i = 0; i < expected.tokens; ++i)
      same += std::abs(expected.out[i * kE] - without.out[i * kE]) < 1e-6 * std::abs(without.out[i * kE]);
    EXPECT_GT(same, 100) << "rows above the floor";
    EXPECT_LT(same, 550) << "and at it";
  }
}

// An input that is not a number is seen in the outputs that depend on it, and is never taken for a small one.
TEST_P(EveryTableGrouped, NotANumberIsNotHidden) {
  for (const DataType type : {DataType::float32, DataType::bfloat16}) {
    for (const bool causal : {false, true}) {
      for (const int part : {0, 1, 2}) {
        Problem problem({.queries = 70, .keys = 70, .heads = 1, .causal = causal, .type = type});
        Buffer& buffer = part == 0 ? problem.q : part == 1 ? problem.k : problem.v;
        for (int64_t i = 0; i < buffer.size(); ++i) buffer.set(20, i, std::nan(""));
        const auto out = run(*GetParam(), problem, false).out;
        EXPECT_TRUE(std::isnan(out[20 * 8])) << GetParam()->name << " causal " << causal << " part " << part;
      }
    }
  }
}

}  // namespace
}  // namespace performer::kernels::test
