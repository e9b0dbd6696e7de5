// SPDX-License-Identifier: Apache-2.0
// Speed of the attention kernels on one core. Each case is held against the double reference first, then
// timed, and reported as a share of what this core does in plain fused multiply-adds, measured in the same
// run:
//
//   cmake --preset kernels-only -DPERFORMER_BUILD_BENCHMARKS=ON && cmake --build --preset kernels-only
//   build/kernels-only/bin/favor_bench             # every CPU target that runs here
//   build/kernels-only/bin/favor_bench --benchmark_filter=avx512
#include <benchmark/benchmark.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "performer/base/philox.h"
#include "performer/kernels/favor.h"
#include "performer/kernels/projection.h"

namespace performer::kernels {
namespace {

struct Case {
  const char* name;
  int64_t tokens, head_size, features;  // features 0: none, the inputs are the features
  bool causal;
};
constexpr Case kCases[] = {{"relu_d32_causal", 4096, 32, 0, true},
                           {"relu_d64_causal", 4096, 64, 0, true},
                           {"softmax_d64_m256_causal", 4096, 64, 256, true},
                           {"softmax_d64_m256_bidirectional", 4096, 64, 256, false}};

// Multiply-adds that the method needs, times two: features of both sides, state update, read; causal passes
// also handle the half-filled triangle of each chunk of 64. Exponentials and rescaling are not counted.
double flops(const Case& c) {
  const double m = static_cast<double>(c.features > 0 ? c.features : c.head_size),
               d = static_cast<double>(c.head_size);
  const double projection = c.features > 0 ? 2 * m * d : 0, triangle = c.causal ? 32 * (m + d) : 0;
  return 2 * static_cast<double>(c.tokens) * (projection + 2 * m * d + triangle);
}

class Problem {
 public:
  explicit Problem(const Case& c) : size_(c.tokens * c.head_size) {
    PhiloxStream random(1);
    for (auto* buffer : {&q_, &k_, &v_, &g_}) {
      buffer->resize(static_cast<size_t>(size_));
      for (float& x : *buffer) x = static_cast<float>(random.normal());
    }
    for (auto* buffer : {&out_, &dq_, &dk_, &dv_}) buffer->resize(static_cast<size_t>(size_));
    normalizer_.resize(static_cast<size_t>(c.tokens));
    AttentionForward& p = backward_.forward;
    p.shape.query_tokens = p.shape.key_tokens = c.tokens;
    p.shape.head_size = p.shape.value_size = c.head_size;
    p.shape.features = c.features > 0 ? c.features : c.head_size;
    p.causal = c.causal;
    if (c.features > 0) {
      projection_ = draw_projection(ProjectionKind::orthogonal, RowNorm::chi, c.features, c.head_size, {});
      p.map.projection = projection_.data();
      p.map.scale = std::pow(static_cast<double>(c.head_size), -0.25);
    } else {
      p.map.family = Family::elementwise;
      p.map.epsilon = 1e-3;
    }
    const auto view = [&](std::vector<float>& data) {
      return View{data.data(), DataType::float32, size_, c.head_size, c.head_size};
    };
    p.query = view(q_), p.key = view(k_), p.value = view(v_), p.out = view(out_);
    p.normalizer = normalizer_.data();
    backward_.grad_out = view(g_);
    backward_.grad_query = view(dq_), backward_.grad_key = view(dk_), backward_.grad_value = view(dv_);
  }

  void forward(const FavorKernels& kernels) {
    SerialExecutor serial;
    kernels.forward(backward_.forward, serial, scratch(kernels));
  }
  void backward(const FavorKernels& kernels) {
    SerialExecutor serial;
    kernels.backward(backward_, serial, scratch(kernels));
  }
  std::vector<float> results() const {
    std::vector<float> all = out_;
    for (const auto* part : {&dq_, &dk_, &dv_}) all.insert(all.end(), part->begin(), part->end());
    return all;
  }

 private:
  void* scratch(const FavorKernels& kernels) {
    const int64_t bytes =
        std::max(kernels.workspace(backward_.forward, false), kernels.workspace(backward_.forward, true));
    scratch_.resize(static_cast<size_t>(bytes + 1));
    return scratch_.data();
  }
  int64_t size_;
  std::vector<float> q_, k_, v_, g_, out_, dq_, dk_, dv_, normalizer_, projection_;
  std::vector<char> scratch_;
  AttentionBackward backward_;
};

// Fails the program when a kernel is wrong: a wrong result needs no timing.
void verify(const FavorKernels& kernels, const Case& whole) {
  Case c = whole;
  c.tokens = 300;
  Problem fast(c), exact(c);
  fast.forward(kernels), fast.backward(kernels);
  exact.forward(favor_reference()), exact.backward(favor_reference());
  const auto got = fast.results(), expected = exact.results();
  float most = 0, error = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    most = std::max(most, std::abs(expected[i]));
    error = std::max(error, std::abs(got[i] - expected[i]));
  }
  if (!(error <= 2e-5f * most)) {
    std::fprintf(stderr, "favor_bench: %s is wrong on %s: error %g of %g\n", kernels.name.c_str(), c.name,
                 error, most);
    std::exit(1);
  }
}

// Multiply-adds a second of this core in registers, by the widest vectors the compiler may use in a function
// of its own.
#if defined(__x86_64__)
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
float spin(float* sums, int64_t rounds) {
  for (int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < 192; ++i) sums[i] = sums[i] * 0.999f + 0.001f;
  }
  return sums[0];
}

double peak_flops() {
  static const double peak = [] {
    alignas(64) float sums[192] = {};
    double best = 0;
    for (int attempt = 0; attempt < 20; ++attempt) {
      const int64_t rounds = 100000;
      const auto start = std::chrono::steady_clock::now();
      benchmark::DoNotOptimize(spin(sums, rounds));
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      best = std::max(best, 2.0 * 192 * static_cast<double>(rounds) / seconds);
    }
    return best;
  }();
  return peak;
}

void run(benchmark::State& state, const FavorKernels* kernels, const Case& c, bool backward) {
  Problem problem(c);
  problem.forward(*kernels);
  for (auto _ : state) {
    if (backward)
      problem.backward(*kernels);
    else
      problem.forward(*kernels);
  }
  // The backward pass computes features and sums again and three gradients: about three times the forward
  // pass.
  const double work = flops(c) * (backward ? 3 : 1) * static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(work / 1e9, benchmark::Counter::kIsRate);
  state.counters["of_peak"] = benchmark::Counter(work / peak_flops(), benchmark::Counter::kIsRate);
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(c.tokens * state.iterations()), benchmark::Counter::kIsRate);
}

}  // namespace
}  // namespace performer::kernels

int main(int argc, char** argv) {
  using namespace performer::kernels;
  for (const FavorKernels* kernels : available_favor_kernels()) {
    if (kernels == &favor_reference()) continue;
    for (const Case& c : kCases) {
      verify(*kernels, c);
      for (const bool backward : {false, true}) {
        const std::string name = kernels->name + "/" + c.name + (backward ? "/backward" : "/forward");
        benchmark::RegisterBenchmark(name.c_str(),
                                     [=](benchmark::State& state) { run(state, kernels, c, backward); });
      }
    }
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
