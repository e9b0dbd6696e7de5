// SPDX-License-Identifier: Apache-2.0
// The seams: initial and final states, single steps, and gradients that flow through states.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/kernels/problem.h"

namespace performer::kernels::test {
namespace {

class EveryState : public ::testing::TestWithParam<const FavorKernels*> {};
INSTANTIATE_TEST_SUITE_P(Targets, EveryState, ::testing::ValuesIn(available_favor_kernels()),
                         [](const auto& info) { return info.param->name; });

template <class T>
struct OwnState {
  std::vector<T> kv, key_sum, log_scale;
  explicit OwnState(const Problem& problem)
      : kv(problem.state_size() * problem.spec.e),
        key_sum(problem.state_size()),
        log_scale(problem.state_size(),
                  problem.spec.family == Family::elementwise ? T(0) : T(kEmptyLogScale)) {}
  State pointers() { return {kv.data(), key_sum.data(), log_scale.data()}; }
};

constexpr Family kFamilies[] = {Family::exponential, Family::elementwise, Family::trigonometric};

// Completes a spec for its family. Trigonometric denominators stay away from zero where rows are short.
Spec of_family(Family family, Spec s) {
  s.family = family;
  if (family == Family::trigonometric) s.norm_weight = -0.5, s.deviation = std::min(s.deviation, 0.4);
  return s;
}

// In the larger form the projection has factors, and rows beside them.
Spec spec_of(Family family, double deviation, bool hadamard = false) {
  Spec s{.batch = 2,
         .queries = 90,
         .keys = 90,
         .d = 12,
         .e = 10,
         .m = 20,
         .causal = true,
         .deviation = deviation};
  if (family == Family::elementwise) s.epsilon = 1e-3;
  if (hadamard) s.hadamard = true, s.d = 32, s.m = 35;
  return of_family(family, s);
}

// Advances views by `token` tokens.
void advance(View& view, const Buffer& buffer, int64_t token) {
  const int64_t bytes = buffer.view().type == DataType::float64 ? 8 : 4;
  view.data = static_cast<char*>(view.data) + token * view.token_stride * bytes;
}

// Holds what `pieces` writes to `out`, starting from an empty state, against one pass over the whole
// sequence: for all families, at ordinary and at large magnitudes.
template <class Pieces>
void expect_one_pass(const FavorKernels& kernels, Pieces&& pieces) {
  for (const Family family : kFamilies) {
    for (const auto& [deviation, hadamard] :
         {std::pair{1.0, false}, {20.0, false}, {1.0, true}, {20.0, true}}) {
      const Problem problem(spec_of(family, deviation, hadamard));
      const Spec& s = problem.spec;
      const auto whole = run(kernels, problem, false).out;
      Buffer out(s.batch, s.queries, s.heads, s.e, s.padding, s.type);
      OwnState<float> state(problem);
      pieces(problem, state.pointers(), out);
      EXPECT_LT(difference(out.values(), whole), 2e-5 * std::max(1.0, deviation))
          << kernels.name << " " << s.text();
    }
  }
}

// Lets the views of a pass or a step begin at `token`.
template <class Params>
void begin_at(Params& p, const Problem& problem, const Buffer& out, int64_t token) {
  advance(p.query, problem.q, token), advance(p.key, problem.k, token);
  advance(p.value, problem.v, token), advance(p.out, out, token);
}

TEST_P(EveryState, StateFedBackEqualsOnePass) {
  expect_one_pass(*GetParam(), [](const Problem& problem, State state, Buffer& out) {
    SerialExecutor serial;
    for (const auto& [begin, end] :
         {std::pair<int64_t, int64_t>{0, 1}, {1, 30}, {30, 30}, {30, 89}, {89, 90}}) {
      AttentionForward p = problem.params();
      p.shape.query_tokens = p.shape.key_tokens = end - begin;
      p.out = out.view();
      begin_at(p, problem, out, begin);
      p.initial = p.final = state;
      std::vector<char> scratch(static_cast<size_t>(GetParam()->workspace(p, false) + 1));
      GetParam()->forward(p, serial, scratch.data());
    }
  });
}

TEST_P(EveryState, StepsEqualOnePass) {
  expect_one_pass(*GetParam(), [](const Problem& problem, State state, Buffer& out) {
    SerialExecutor serial;
    for (int64_t t = 0; t < problem.spec.queries; ++t) {
      const AttentionForward f = problem.params();
      AttentionStep p{f.shape, f.map, f.query, f.key, f.value, out.view(), state};
      begin_at(p, problem, out, t);
      // Guard bytes behind the scratch memory show a step that takes more than it said.
      const auto bytes = static_cast<size_t>(GetParam()->step_workspace(p));
      std::vector<char> scratch(bytes + 64, 0x5a);
      GetParam()->step(p, serial, scratch.data());
      EXPECT_EQ(std::count(scratch.begin() + static_cast<int64_t>(bytes), scratch.end(), 0x5a), 64);
    }
  });
}

// A step needs a few rows of numbers for each worker; a pass needs whole chunks and a state.
TEST_P(EveryState, AStepNeedsAProjectionAndRows) {
  Spec spec = spec_of(Family::exponential, 1);
  spec.d = spec.e = 64, spec.m = 256;
  for (const int64_t chunk : {0, 1, 256}) {
    spec.chunk = chunk;
    const Problem problem(spec);
    const AttentionForward f = problem.params();
    const AttentionStep step{f.shape, f.map, f.query, f.key, f.value, f.out, {}};
    const int64_t bytes = GetParam()->step_workspace(step);
    // The projection, and rows of the two sequences.
    EXPECT_LE(bytes, (64 * 256 + 8 * (64 + 64 + 256)) * 4) << "chunk " << chunk;
  }
}

// sum(out * g) + sum(final true sums * h) of a causal pass with an initial state, as a function of
// everything.
struct StatefulGradients {
  std::vector<double> dq, dk, dv, dkv, dkey_sum;
};

template <class T>
StatefulGradients stateful_gradients(const FavorKernels& kernels, const Problem& problem,
                                     OwnState<T>& initial, OwnState<T>& grad_final) {
  const Spec& s = problem.spec;
  const bool scaled_sums = s.family != Family::elementwise;
  AttentionForward p = problem.params();
  Buffer out(s.batch, s.queries, s.heads, s.e, s.padding, s.type),
      dq(s.batch, s.queries, s.heads, s.d, 0, s.type), dk(s.batch, s.keys, s.heads, s.d, 0, s.type),
      dv(s.batch, s.keys, s.heads, s.e, 0, s.type);
  std::vector<T> normalizer(static_cast<size_t>(s.batch * s.queries * s.heads));
  OwnState<T> final(problem), grad_initial(problem);
  p.out = out.view();
  p.normalizer = normalizer.data();
  p.initial = initial.pointers();
  p.final = final.pointers();
  SerialExecutor serial;
  std::vector<char> scratch(
      static_cast<size_t>(std::max(kernels.workspace(p, false), kernels.workspace(p, true)) + 1));
  kernels.forward(p, serial, scratch.data());
  // The given gradient is of the true sums: in the scale of the final state it is exp(log_scale) times that.
  OwnState<T> scaled = grad_final;
  for (size_t f = 0; f < scaled.key_sum.size(); ++f) {
    const T factor = scaled_sums ? std::exp(final.log_scale[f]) : T(1);
    scaled.key_sum[f] *= factor;
    for (int64_t i = 0; i < s.e; ++i) scaled.kv[f * s.e + i] *= factor;
  }
  AttentionBackward b{
      p, problem.g.view(), dq.view(), dk.view(), dv.view(), scaled.pointers(), grad_initial.pointers()};
  kernels.backward(b, serial, scratch.data());
  return {dq.values(), dk.values(), dv.values(),
          std::vector<double>(grad_initial.kv.begin(), grad_initial.kv.end()),
          std::vector<double>(grad_initial.key_sum.begin(), grad_initial.key_sum.end())};
}

double stateful_loss(const Problem& problem, OwnState<double>& initial, const OwnState<double>& grad_final) {
  const Spec& s = problem.spec;
  const bool scaled_sums = s.family != Family::elementwise;
  AttentionForward p = problem.params();
  Buffer out(s.batch, s.queries, s.heads, s.e, s.padding, s.type);
  OwnState<double> final(problem);
  p.out = out.view();
  p.initial = initial.pointers();
  p.final = final.pointers();
  SerialExecutor serial;
  favor_reference().forward(p, serial, nullptr);
  double loss = 0;
  for (int64_t r = 0; r < out.rows(); ++r) {
    for (int64_t i = 0; i < s.e; ++i) loss += out.at(r, i) * problem.g.at(r, i);
  }
  for (size_t f = 0; f < final.key_sum.size(); ++f) {
    const double factor = scaled_sums ? std::exp(final.log_scale[f]) : 1;
    loss += factor * final.key_sum[f] * grad_final.key_sum[f];
    for (int64_t i = 0; i < s.e; ++i) loss += factor * final.kv[f * s.e + i] * grad_final.kv[f * s.e + i];
  }
  return loss;
}

template <class T>
void fill_states(PhiloxStream& random, Family family, OwnState<T>& initial, OwnState<T>& grad_final) {
  for (T& x : initial.kv) x = static_cast<T>(random.normal());
  for (T& x : initial.key_sum) x = static_cast<T>(1 + random.uniform());
  for (T& x : initial.log_scale) x = family == Family::exponential ? static_cast<T>(random.normal()) : T(0);
  if (family == Family::trigonometric)  // all log-scales of a state are equal
    std::fill(initial.log_scale.begin(), initial.log_scale.end(), T(0.3));
  for (T& x : grad_final.kv) x = static_cast<T>(0.1 * random.normal());
  for (T& x : grad_final.key_sum) x = static_cast<T>(0.1 * random.normal());
}

TEST(Reference, GradientsThroughStatesMatchFiniteDifferences) {
  for (const Family family : kFamilies) {
    Spec s{.queries = 5,
           .keys = 5,
           .heads = 1,
           .d = 3,
           .e = 2,
           .m = 4,
           .causal = true,
           .deviation = 0.7,
           .type = DataType::float64};
    s.function = Function::elu1;
    Problem problem(of_family(family, s));
    PhiloxStream random(5);
    OwnState<double> initial(problem), grad_final(problem);
    fill_states(random, family, initial, grad_final);
    const auto got = stateful_gradients<double>(favor_reference(), problem, initial, grad_final);
    const double step = 1e-6;
    const auto slope = [&](auto&& set, double at) {
      set(at + step);
      const double up = stateful_loss(problem, initial, grad_final);
      set(at - step);
      const double down = stateful_loss(problem, initial, grad_final);
      set(at);
      return (up - down) / (2 * step);
    };
    const auto check_buffer = [&](Buffer& x, const std::vector<double>& gradient) {
      for (int64_t r = 0; r < x.rows(); ++r) {
        for (int64_t i = 0; i < x.size(); ++i) {
          EXPECT_NEAR(gradient[r * x.size() + i],
                      slope([&](double value) { x.set(r, i, value); }, x.at(r, i)), 1e-7);
        }
      }
    };
    check_buffer(problem.q, got.dq);
    check_buffer(problem.k, got.dk);
    check_buffer(problem.v, got.dv);
    for (size_t i = 0; i < initial.kv.size(); ++i)
      EXPECT_NEAR(got.dkv[i], slope([&](double x) { initial.kv[i] = x; }, initial.kv[i]), 1e-7);
    for (size_t i = 0; i < initial.key_sum.size(); ++i) {
      EXPECT_NEAR(got.dkey_sum[i], slope([&](double x) { initial.key_sum[i] = x; }, initial.key_sum[i]),
                  1e-7);
    }
  }
}

TEST_P(EveryState, GradientsThroughStatesMatchTheReference) {
  for (size_t i = 0; i < 2 * std::size(kFamilies); ++i) {
    const Family family = kFamilies[i / 2];
    Spec s{.batch = 2, .queries = 75, .keys = 75, .d = 6, .e = 5, .m = 9, .causal = true, .deviation = 0.7};
    if (family == Family::elementwise) s.epsilon = 1e-3;
    if (i % 2 == 1) s.hadamard = true, s.d = 32, s.m = 35;
    Problem problem(of_family(family, s));
    PhiloxStream random(6);
    OwnState<float> initial(problem), grad_final(problem);
    fill_states(random, family, initial, grad_final);
    const auto got = stateful_gradients<float>(*GetParam(), problem, initial, grad_final);
    const auto expected = stateful_gradients<float>(favor_reference(), problem, initial, grad_final);
    const auto near = [&](const std::vector<double>& a, const std::vector<double>& b) {
      return difference(a, b) / std::max(1.0, largest(b));
    };
    EXPECT_LT(near(got.dq, expected.dq), 1e-5);
    EXPECT_LT(near(got.dk, expected.dk), 1e-5);
    EXPECT_LT(near(got.dv, expected.dv), 1e-5);
    EXPECT_LT(near(got.dkv, expected.dkv), 1e-5);
    EXPECT_LT(near(got.dkey_sum, expected.dkey_sum), 1e-5);
  }
}

}  // namespace
}  // namespace performer::kernels::test
