// SPDX-License-Identifier: Apache-2.0
// What sparse and low-rank kinds cost, measured: products of queries and keys against the formula of each
// kind, and memory of a training step, which must grow with the length and not with its square.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <functional>

#include "tests/hostile_draws.h"
#include "tests/nn/kind_properties.h"

namespace performer::nn::kind_costs_test {
namespace {

constexpr int64_t kHeads = 2, kSize = 16;

AttentionConfig configured(const std::string& kind, const std::function<void(AttentionConfig&)>& set) {
  AttentionConfig config;
  config.kind = kind;
  set(config);
  return config;
}

properties::Tokens random_tokens(int64_t tokens) {
  const auto draw = [&] { return at::randn({1, tokens, kHeads, kSize}).requires_grad_(); };
  at::Tensor query = draw(), key = draw(), value = draw();
  return {query, key, value};
}

thread_local double multiplications = 0;

// Multiplications of batched matrix products, those of calls within other operations included.
double multiplications_of(const std::function<void()>& work) {
  multiplications = 0;
  const auto handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback([](const at::RecordFunction& call) -> std::unique_ptr<at::ObserverContext> {
        if (std::string(call.name()) != "aten::bmm") return nullptr;
        const at::Tensor left = call.inputs()[0].toTensor(), right = call.inputs()[1].toTensor();
        multiplications += static_cast<double>(left.numel()) * static_cast<double>(right.size(2));
        return nullptr;
      }).needsInputs(true));
  work();
  at::removeCallback(handle);
  return multiplications;
}

// Pairs of queries and keys that a head works on in a sequence of T tokens, hidden ones included.
struct Formula {
  AttentionConfig config;
  bool causal;
  std::function<double(double)> pairs;
};

std::vector<Formula> formulas() {
  const auto strided = configured("sparse", [](auto& c) { c.set("stride", 32); });
  const auto fixed =
      configured("sparse", [](auto& c) { c.set("pattern", "fixed").set("stride", 32).set("summary", 4); });
  const auto global = configured(
      "global", [](auto& c) { c.set("window", 32).set("global_tokens", 8).set("random_blocks", 2); });
  const auto lsh = configured("lsh", [](auto& c) { c.set("rounds", 3).set("chunk", 32).set("buckets", 16); });
  return {
      {strided, false, [](double t) { return t * (3 * 32 + t / 32); }},
      {fixed, false, [](double t) { return t * (32 + 4 * t / 32); }},
      // Half of the blocks are before a query's own; they are read by 8 blocks at a time.
      {fixed, true, [](double t) { return t * (32 + 4 * (t / 32 + 8) / 2); }},
      {global, true, [](double t) { return t * (2 * 32 + 8 + 2 * 32); }},
      {global, false, [](double t) { return t * (3 * 32 + 2 * 8 + 2 * 32); }},
      {lsh, true, [](double t) { return t * 3 * 2 * 32; }},
      {lsh, false, [](double t) { return t * 3 * 3 * 32; }},
  };
}

TEST(KindCosts, ProductsAreThoseOfTheFormula) {
  torch::manual_seed(1);
  const hostile::OneThread one_thread;
  for (const Formula& formula : formulas()) {
    const auto attention = make_attention(formula.config, {kHeads, kSize, formula.causal, 0});
    for (const int64_t tokens : {1024, 4096}) {
      const properties::Tokens in = random_tokens(tokens);
      const double found = multiplications_of([&] { properties::run(*attention, in, formula.causal); });
      const double expected = formula.pairs(static_cast<double>(tokens)) * kHeads * (kSize + kSize);
      EXPECT_NEAR(found / expected, 1, 0.15) << formula.config.kind << " " << tokens << " " << formula.causal;
    }
  }
}

// Bytes that LibTorch has allocated on this thread, and the most there were.
class Meter : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
    now_ += size;
    peak_ = std::max(peak_, now_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  double peak() const { return static_cast<double>(peak_); }

 private:
  int64_t now_ = 0, peak_ = 0;
};

// The most memory of a forward and a backward pass.
double peak(const AttentionConfig& config, bool causal, int64_t tokens) {
  const auto attention = make_attention(config, {kHeads, kSize, causal, 0});
  const properties::Tokens in = random_tokens(tokens);
  const at::Tensor mask = at::arange(tokens).ne(3).unsqueeze(0);
  const auto meter = std::make_shared<Meter>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, meter);
  properties::run(*attention, in, causal, mask).square().sum().backward();
  return meter->peak();
}

TEST(KindCosts, MemoryGrowsWithTheLength) {
  torch::manual_seed(2);
  const hostile::OneThread one_thread;
  std::vector<std::pair<AttentionConfig, bool>> cases;
  for (const Formula& formula : formulas()) cases.emplace_back(formula.config, formula.causal);
  cases.emplace_back(configured("sparse", [](auto& c) { c.set("stride", 32); }), true);
  for (const char* reduce : {"learned", "mean", "convolution", "random"}) {
    const auto config = configured(
        "linformer", [&](auto& c) { c.set("length", 8192).set("rank", 64).set("reduce", reduce); });
    cases.emplace_back(config, false);
  }
  for (const auto& [config, causal] : cases) {
    const double ratio = peak(config, causal, 8192) / peak(config, causal, 4096);
    EXPECT_LT(ratio, 2.2) << config.kind << (causal ? ", causal" : ", bidirectional");
  }
  const auto exact = configured("exact", [](auto&) {});
  EXPECT_GT(peak(exact, true, 2048) / peak(exact, true, 1024), 3) << "the meter must see what is quadratic";
}

}  // namespace
}  // namespace performer::nn::kind_costs_test
