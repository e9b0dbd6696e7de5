// SPDX-License-Identifier: Apache-2.0
#include "performer/kernels/cpu/support.h"

#include <algorithm>
#include <atomic>

#include "performer/kernels/function.h"

namespace performer::kernels::cpu {

static_assert(kLeakySlopeFloat == static_cast<float>(kLeakySlope));

float ElementFunction(Function function, float u) {
  return apply_function(function, u);
}

void ForEachHead(const Shape& shape, Executor& executor, HeadWork work, const void* context, void* workspace,
                 int64_t scratch_bytes) {
  const int64_t items = shape.batch * shape.heads;
  std::atomic<int64_t> next{0};
  executor.parallel_for(std::min<int64_t>(items, executor.workers()), [&](int64_t, int64_t, int worker) {
    // The workspace is allocated for any alignment; the first bytes of each share are given up to reach ours.
    void* scratch = Scratch::aligned(workspace, worker * scratch_bytes);
    for (int64_t item = next.fetch_add(1); item < items; item = next.fetch_add(1)) {
      work(context, item / shape.heads, item % shape.heads, scratch);
    }
  });
}

}  // namespace performer::kernels::cpu
