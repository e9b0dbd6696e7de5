// SPDX-License-Identifier: Apache-2.0
// One token of each sequence of a batch: the state is read and written, which is what it costs.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "performer/bench/cases.h"
#include "performer/ops/executor.h"

namespace performer::bench {
namespace {

constexpr int kVerifiedSteps = 3;

struct Decoder {
  Decoder(const Request& request, const std::string& kind, const std::string& dtype)
      : map(kernel_map(kind, request.heads, request.head_size, request.features)) {
    const at::Generator generator = at::detail::createCPUGenerator(2);
    const auto random = [&] {
      return at::randn({request.batch, 1, request.heads, request.head_size}, generator)
          .to(scalar_type(dtype));
    };
    query = random(), key = random(), value = random();
    out = at::zeros_like(value);
    clear();
    step.shape.batch = request.batch, step.shape.heads = request.heads;
    step.shape.query_tokens = step.shape.key_tokens = 1;
    step.shape.head_size = step.shape.value_size = request.head_size;
    step.shape.features = map.rows;
    step.map = map.map;
    const auto view = [&](const at::Tensor& x) {
      return kernels::View{x.data_ptr(), data_type(dtype), x.stride(0), x.stride(1), x.stride(2)};
    };
    step.query = view(query), step.key = view(key), step.value = view(value), step.out = view(out);
    step.state = {kv.data_ptr(), key_sum.data_ptr(), log_scale.data_ptr()};
  }

  // The state of sequences without tokens.
  void clear() {
    const int64_t features = kernels::state_features(map.map.family, map.rows);
    const std::vector<int64_t> shape = {query.size(0), query.size(2), features};
    const bool scaled = map.map.family != kernels::Family::elementwise;
    if (!kv.defined()) {
      kv = at::empty({shape[0], shape[1], shape[2], value.size(3)}, at::kFloat);
      key_sum = at::empty(shape, at::kFloat);
      log_scale = at::empty(shape, at::kFloat);
    }
    kv.zero_();
    key_sum.zero_();
    log_scale.fill_(scaled ? kernels::kEmptyLogScale : 0.0F);
  }
  void run(const kernels::FavorKernels& target) {
    ops::TorchExecutor executor;
    const int64_t needed = target.step_workspace(step) * executor.workers() + 1;
    if (!scratch.defined() || scratch.numel() < needed) scratch = at::zeros({needed}, at::kChar);
    target.step(step, executor, scratch.data_ptr());
  }
  int64_t state_bytes() const { return (kv.numel() + 2 * key_sum.numel()) * 4; }
  // Log-scales of element-wise maps are written as 0 and not read.
  int64_t moved_bytes() const {
    const int64_t unread = map.map.family == kernels::Family::elementwise ? log_scale.numel() * 4 : 0;
    return 2 * state_bytes() - unread;
  }

  KernelMap map;
  at::Tensor query, key, value, out, kv, key_sum, log_scale, scratch;
  kernels::AttentionStep step;
};

// A few steps from an empty state, all sequences and heads, by the kernel and by the reference.
void verify_decoder(Decoder& decoder, const kernels::FavorKernels& target, Row& row) {
  std::vector<at::Tensor> found;
  decoder.clear();
  for (int i = 0; i < kVerifiedSteps; ++i) decoder.run(target);
  for (const at::Tensor* each : {&decoder.out, &decoder.kv, &decoder.key_sum}) found.push_back(each->clone());
  decoder.clear();
  for (int i = 0; i < kVerifiedSteps; ++i) decoder.run(kernels::favor_reference());
  row.verified_tokens = kVerifiedSteps;
  compare(row, found[0], decoder.out.to(at::kDouble), "outputs");
  compare(row, found[1], decoder.kv.to(at::kDouble), "states");
  compare(row, found[2], decoder.key_sum.to(at::kDouble), "sums of keys");
}

}  // namespace

std::vector<Case> decode_cases(const Request& request, const Machine& machine) {
  std::vector<Case> cases;
  for (const std::string& dtype : request.dtypes) {
    for (const std::string& kind : request.kinds) {
      const auto decoder = std::make_shared<Decoder>(request, kind, dtype);
      ops::TorchExecutor executor;
      const double limit = memory_bandwidth(decoder->state_bytes(), executor);
      const double sequences = static_cast<double>(request.batch * request.heads);
      const int64_t token_bytes = 4 * request.head_size * decoder->query.element_size();
      for (const kernels::FavorKernels* target : machine.targets) {
        Row row;
        row.op = "decode", row.kind = kind, row.direction = "causal", row.pass = "forward";
        row.dtype = dtype, row.target = target->name, row.length = 1;
        row.heads = request.heads, row.head_size = request.head_size, row.batch = request.batch;
        row.features = decoder->map.features, row.threads = at::get_num_threads();
        row.work = static_cast<double>(decoder->moved_bytes()) / sequences + static_cast<double>(token_bytes);
        row.limit = limit;
        row.extra_bytes = decoder->state_bytes();
        cases.push_back({row, [decoder, target](Row& out) { verify_decoder(*decoder, *target, out); },
                         [decoder, target] { decoder->run(*target); }});
      }
    }
  }
  return cases;
}

}  // namespace performer::bench
