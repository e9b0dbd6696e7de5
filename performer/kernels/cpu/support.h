// SPDX-License-Identifier: Apache-2.0
// What the vector kernels share across targets: everything that must not be compiled once a target.
#pragma once

#include <cstdint>

#include "performer/base/executor.h"
#include "performer/kernels/favor.h"

namespace performer::kernels::cpu {

// A single element: for arguments that the vector forms leave out.
float ElementFunction(Function function, float u);
inline constexpr float kLeakySlopeFloat = 0.01f;  // kLeakySlope of kernels/function.h

// Calls work(context, sequence, head, worker's scratch) for every (sequence, head), handing them out one by
// one so that segments of uneven length balance.
using HeadWork = void (*)(const void* context, int64_t sequence, int64_t head, void* scratch);
void ForEachHead(const Shape& shape, Executor& executor, HeadWork work, const void* context, void* workspace,
                 int64_t scratch_bytes);

// Hands out aligned pieces of a worker's scratch memory; with a null base it only measures.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<char*>(base)) {}
  float* floats(int64_t count) {
    const int64_t at = used_;
    used_ += (count * static_cast<int64_t>(sizeof(float)) + kAlignment - 1) / kAlignment * kAlignment;
    return base_ == nullptr ? nullptr : reinterpret_cast<float*>(base_ + at);
  }
  int64_t used() const { return used_; }
  static constexpr int64_t kAlignment = 128;
  // The first aligned place at `offset` bytes behind `base` or after it.
  static void* aligned(void* base, int64_t offset) {
    const auto start = reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(offset);
    return reinterpret_cast<void*>((start + kAlignment - 1) / kAlignment * kAlignment);
  }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace performer::kernels::cpu
