// SPDX-License-Identifier: Apache-2.0
// What the processor can do at most, measured where the kernels are: multiply-adds a second that never leave
// registers, and bytes a second that are copied.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "performer/base/executor.h"

namespace performer::bench {

// A loop of independent chains of one instruction. Each round adds `expected` to every one of the
// accumulators, which begin with what `sums` holds and are written back to it, so that the result proves how
// many instructions were executed.
struct Spinner {
  std::string name;      // of the instruction, for people
  int64_t operations;    // floating point operations of one round: two for a multiply-add of two numbers
  int64_t accumulators;  // how many numbers
  float expected;        // what a round adds to each of them
  void (*run)(float* sums, int64_t rounds);
  bool (*usable)();  // whether processor and system have the instruction
};
// Widest first: single precision by fused multiply-adds, and products of bfloat16 with sums in fp32.
std::vector<Spinner> float_spinners();
std::vector<Spinner> bfloat16_spinners();

struct Limit {
  std::string name;
  double flops = 0;  // a second, of all threads together
};
// The best of several short attempts, all workers of the executor at once. Throws Error when a sum shows that
// another number of instructions was executed.
Limit measure(const Spinner& spinner, Executor& executor);
// Of the widest spinner that is usable.
Limit float_limit(Executor& executor);
// What the kernels can reach in bfloat16: tiles when one of `targets` uses them ("amx" in its name), dot
// products when one does ("bf16"), else fused multiply-adds after a conversion.
Limit bfloat16_limit(Executor& executor, const std::vector<std::string>& targets);

// Bytes read and written a second over `bytes` of memory, by copying them or by changing them in place,
// whichever is faster: the best of several attempts.
double memory_bandwidth(int64_t bytes, Executor& executor);

}  // namespace performer::bench
