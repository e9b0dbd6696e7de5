// SPDX-License-Identifier: Apache-2.0
// The backend "composed", chosen by name on the CPU, against the double reference and the kernels.
#include <ATen/record_function.h>
#include <fmt/format.h>
#include <gmock/gmock.h>

#include "tests/ops/inputs.h"

namespace performer::ops::test {
namespace {

using ::testing::HasSubstr;

// A call with everything: masks, an initial state, an own chunk, packed segments of which some are empty.
struct Case {
  bool causal = false, packed = false, masked = false, stateful = false;
  int64_t chunk = 0;
  std::string text() const {
    return std::string(causal ? "causal " : "bidirectional ") + (packed ? "packed " : "") +
           (masked ? "masked " : "") + (stateful ? "stateful " : "") + std::to_string(chunk);
  }
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (int bits = 0; bits < 16; ++bits) {
    Case c{(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0, 0};
    c.chunk = bits % 3 == 0   ? 0
              : bits % 3 == 1 ? 7
                              : 32;  // 3 does not divide 16: every setting meets every chunk
    cases.push_back(c);
  }
  return cases;
}

State random_state(int64_t sequences, int64_t heads, int64_t features, int64_t e, const FeatureMap& map,
                   at::ScalarType type) {
  State state = empty_state(sequences, heads, features, e, map.family, at::TensorOptions(type));
  state.kv.normal_();
  state.key_sum.uniform_(1, 2);
  if (map.family == "exponential") state.log_scale.normal_();
  return state;
}

AttentionInputs call_of(const Case& c, const FeatureMap& map, double deviation, at::ScalarType type) {
  const int64_t d = 6, e = 5, heads = 2, tokens = 45;
  AttentionInputs in = random_call(c.packed ? 1 : 2, tokens, tokens, heads, d, e, deviation, type);
  in.causal = c.causal;
  in.chunk = c.chunk;
  int64_t sequences = 2;
  if (c.packed) {
    in.cu_query = at::tensor(std::vector<int64_t>{0, 0, 9, 9, 41, 45, 45}, at::kLong);
    sequences = 6;
    if (!c.causal) in.cu_key = at::tensor(std::vector<int64_t>{0, 4, 4, 20, 21, 30, 45}, at::kLong);
  }
  if (c.masked) {
    in.key_mask = at::rand({in.query.size(0), tokens}).lt(0.6);
    in.key_mask->slice(1, 0, 5).fill_(false);  // the first rows of a causal call see nothing
    in.query_mask = at::rand({in.query.size(0), tokens}).lt(0.8);
  }
  if (c.stateful) in.initial = random_state(sequences, heads, feature_count_of(map, d), e, map, type);
  in.return_state = true;
  return in;
}

struct Results {
  Tensor out;
  State state;
  std::vector<Tensor> gradients;
};

Results attend(AttentionInputs in, const FeatureMap& map, const char* backend) {
  in.backend = backend;
  std::vector<Tensor> leaves;
  for (Tensor* x : {&in.query, &in.key, &in.value}) {
    *x = x->detach().clone().requires_grad_(true);
    leaves.push_back(*x);
  }
  if (in.initial.has_value()) {
    for (Tensor* x : {&in.initial->kv, &in.initial->key_sum}) {
      *x = x->detach().clone().requires_grad_(true);
      leaves.push_back(*x);
    }
  }
  auto [out, state] = favor_attention(in, map);
  const auto weight = [](const Tensor& x) {
    return at::linspace(-1, 1, x.numel(), at::kDouble).view(x.sizes()).cos().to(x.scalar_type());
  };
  // In the scale of the sums, which the backends agree in up to rounding.
  const Tensor loss = (out * weight(out)).sum() + (state.kv * weight(state.kv)).sum() +
                      (state.key_sum * weight(state.key_sum)).sum();
  return {out, state, torch::autograd::grad({loss}, leaves)};
}

TEST(ComposedBackend, AgreesWithTheDoubleReference) {
  for (const FeatureMap& map : some_maps(2, 6, 10)) {
    for (const Case& c : all_cases()) {
      SCOPED_TRACE(map.family + " " + c.text());
      const AttentionInputs in = call_of(c, map, 0.9, at::kDouble);
      const Results expected = attend(in, map, "cpu"), got = attend(in, map, "composed");
      ASSERT_LT(gap(got.out, expected.out), 1e-11);
      ASSERT_LT(gap(got.state.kv, expected.state.kv), 1e-11);
      ASSERT_LT(gap(got.state.key_sum, expected.state.key_sum), 1e-11);
      ASSERT_LT(gap(got.state.log_scale, expected.state.log_scale), 1e-11);
      ASSERT_EQ(got.gradients.size(), expected.gradients.size());
      for (size_t i = 0; i < got.gradients.size(); ++i)
        ASSERT_LT(gap(got.gradients[i], expected.gradients[i]), 1e-10) << "gradient " << i;
    }
  }
}

// Several chunks of the backend's own size, several blocks of a chunk, and lengths around powers of two.
TEST(ComposedBackend, LongAndOddLengths) {
  for (const FeatureMap& map : {softmax_features(2, 8, 16), elementwise_features("relu", 1e-3)}) {
    for (const int64_t tokens : {1, 2, 3, 31, 33, 127, 128, 129, 300, 700}) {
      for (const bool causal : {false, true}) {
        AttentionInputs in = random_call(1, tokens, tokens, 2, 8, 4, 1, at::kDouble);
        in.causal = causal;
        in.return_state = true;
        const Results expected = attend(in, map, "cpu");
        for (const int64_t chunk : {0, 256}) {
          SCOPED_TRACE(fmt::format("{} {} causal={} chunk={}", map.family, tokens, causal, chunk));
          in.chunk = chunk;
          const Results got = attend(in, map, "composed");
          EXPECT_LT(gap(got.out, expected.out), 1e-11);
          for (size_t i = 0; i < 3; ++i) EXPECT_LT(gap(got.gradients[i], expected.gradients[i]), 1e-10);
        }
      }
    }
  }
}

TEST(ComposedBackend, AsExactAsTheKernelsInFloat) {
  for (const FeatureMap& map : some_maps(2, 6, 10)) {
    for (const bool causal : {false, true}) {
      const Case c{.causal = causal, .masked = true, .stateful = true};
      const AttentionInputs exact_in = call_of(c, map, 0.9, at::kDouble);
      AttentionInputs in = exact_in;
      for (Tensor* x :
           {&in.query, &in.key, &in.value, &in.initial->kv, &in.initial->key_sum, &in.initial->log_scale})
        *x = x->to(at::kFloat);
      const Results exact = attend(exact_in, map, "cpu"), kernels = attend(in, map, "cpu"),
                    got = attend(in, map, "composed");
      EXPECT_LT(gap(got.out, exact.out), 2 * gap(kernels.out, exact.out) + 2e-6);
      for (size_t i = 0; i < got.gradients.size(); ++i) {
        EXPECT_LT(gap(got.gradients[i], exact.gradients[i]),
                  2 * gap(kernels.gradients[i], exact.gradients[i]) + 2e-5)
            << map.family << " gradient " << i;
      }
    }
  }
}

// At a deviation of 100 features differ by factors of e^1000 and more: a shift over a whole chunk divides 0
// by 0.
TEST(ComposedBackend, ExtremeInputsInFloatAndDouble) {
  for (const auto& map : {softmax_features(2, 16, 32), elementwise_features("relu", 1e-3)}) {
    for (const bool causal : {false, true}) {
      for (const double deviation : {10.0, 100.0, 1000.0}) {
        AttentionInputs in = random_call(1, 150, 150, 2, 16, 4, deviation, at::kDouble);
        in.causal = causal;
        in.return_state = true;
        const Results expected = attend(in, map, "cpu"), got = attend(in, map, "composed");
        EXPECT_LT(gap(got.out, expected.out), 1e-9) << deviation;
        for (size_t i = 0; i < 3; ++i) {
          const double size = expected.gradients[i].abs().max().item<double>();
          EXPECT_LT(gap(got.gradients[i], expected.gradients[i]), 1e-9 * std::max(1.0, size)) << deviation;
        }
        for (Tensor* x : {&in.query, &in.key, &in.value}) *x = x->to(at::kFloat);
        const Results single = attend(in, map, "composed");
        EXPECT_TRUE(single.out.isfinite().all().item<bool>()) << deviation;
        EXPECT_LE(single.out.abs().max().item<double>(), in.value.abs().max().item<double>() * 1.0001);
        for (const Tensor& gradient : single.gradients) EXPECT_TRUE(gradient.isfinite().all().item<bool>());
      }
    }
  }
}

TEST(ComposedBackend, GradcheckInDouble) {
  for (const FeatureMap& map : some_maps(1, 3, 5)) {
    for (const bool causal : {false, true}) {
      SCOPED_TRACE(map.family + (causal ? " causal" : " bidirectional"));
      const AttentionInputs in = random_call(1, 5, 5, 1, 3, 2, 0.8, at::kDouble);
      const State initial = random_state(1, 1, feature_count_of(map, 3), 2, map, at::kDouble);
      const Tensor weight = at::randn({1, 5, 1, 2}, at::kDouble);
      expect_gradients({in.query, in.key, in.value, initial.kv, initial.key_sum}, [&](const auto& x) {
        AttentionInputs call{x[0], x[1], x[2]};
        call.causal = causal;
        call.chunk = 2;
        call.initial = State{x[3], x[4], initial.log_scale};
        call.return_state = true;
        call.backend = "composed";
        const auto [out, state] = favor_attention(call, map);
        // The true sums, so that the scale of the representation plays no part.
        const Tensor factor = state.log_scale.exp();
        return (out * weight).sum() + (state.kv * factor.unsqueeze(-1)).sum().sin() +
               (state.key_sum * factor).sum().sin();
      });
    }
  }
}

TEST(ComposedBackend, HalfPrecisionInputs) {
  const FeatureMap map = softmax_features(2, 8, 16);
  AttentionInputs in = random_call(1, 40, 40, 2, 8, 4, 1, at::kBFloat16);
  in.causal = in.return_state = true;
  const Results expected = attend(in, map, "cpu"), got = attend(in, map, "composed");
  EXPECT_EQ(got.out.scalar_type(), at::kBFloat16);
  EXPECT_EQ(got.state.kv.scalar_type(), at::kFloat);
  EXPECT_LT(gap(got.out, expected.out), 0.02);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(got.gradients[i].scalar_type(), at::kBFloat16);
    // The kernels may multiply in bfloat16: an error of 2^-8 in each of the few large terms of a sum.
    const double largest = std::max(1.0, expected.gradients[i].abs().max().to(at::kDouble).item<double>());
    EXPECT_LT(gap(got.gradients[i], expected.gradients[i]), 0.02 * largest);
  }
}

TEST(ComposedBackend, StepsEqualTheFullPass) {
  for (const FeatureMap& map : some_maps(2, 6, 10)) {
    AttentionInputs in = random_call(2, 20, 20, 2, 6, 5);
    in.causal = true;
    const Tensor full = std::get<0>(favor_attention(in, map));
    State state = empty_state(2, 2, feature_count_of(map, 6), 5, map.family, in.query.options());
    const Tensor same = state.kv;
    for (int64_t t = 0; t < 20; ++t) {
      const auto token = [&](const Tensor& x) { return x.select(1, t); };
      const Tensor out = favor_step(token(in.query), token(in.key), token(in.value), state, map, "composed");
      ASSERT_LT(gap(out, token(full)), 2e-5) << map.family << t;
    }
    EXPECT_TRUE(same.is_same(state.kv));
  }
}

// Every tensor that an operator returns is looked at.
TEST(ComposedBackend, NothingOfTheSizeOfAllTokensTimesFeatures) {
  const int64_t tokens = 2048, features = 128, d = 4;
  AttentionInputs in = random_call(1, tokens, tokens, 1, d, d);
  in.backend = "composed";
  const FeatureMap map = softmax_features(1, d, features);
  const at::NoGradGuard no_grad;
  struct Counter {
    static int64_t& largest() {
      static int64_t value = 0;
      return value;
    }
  };
  Counter::largest() = 0;
  const auto handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback(
          [](const at::RecordFunction&) -> std::unique_ptr<at::ObserverContext> { return nullptr; },
          [](const at::RecordFunction& function, at::ObserverContext*) {
            for (const c10::IValue& output : function.outputs()) {
              if (output.isTensor() && output.toTensor().defined())
                Counter::largest() = std::max(Counter::largest(), output.toTensor().numel());
            }
          })
          .needsOutputs(true));
  for (const bool causal : {false, true}) {
    in.causal = causal;
    favor_attention(in, map);
  }
  at::removeCallback(handle);
  EXPECT_GE(Counter::largest(), 128 * features);  // the callback saw chunks of 128 tokens
  EXPECT_LE(Counter::largest(), tokens * features / 8);
}

TEST(ComposedBackend, UnknownNamesAreErrors) {
  AttentionInputs in = random_call(1, 3, 3, 1, 4, 4);
  in.backend = "cuda-graph";
  EXPECT_THAT(message_of([&] { favor_attention(in, elementwise_features("relu", 0)); }),
              ::testing::AllOf(HasSubstr("unknown backend 'cuda-graph'"), HasSubstr("cpu, composed")));
  State state = empty_state(1, 1, 4, 4, "relu", in.query.options());
  const Tensor token = at::zeros({1, 1, 4});
  EXPECT_THAT(
      message_of([&] { favor_step(token, token, token, state, elementwise_features("relu", 0), "fast"); }),
      HasSubstr("unknown backend 'fast'"));
  EXPECT_THAT(
      message_of([&] { favor_attention(random_call(1, 3, 3, 1, 4, 4), elementwise_features("rellu", 0)); }),
      ::testing::AllOf(HasSubstr("rellu"), HasSubstr("relu, elu+1")));
}

}  // namespace
}  // namespace performer::ops::test
