// SPDX-License-Identifier: Apache-2.0
// The entry points of favor.cpp that dispatch.cpp chooses from.
#pragma once

#include <cstdint>

#include "performer/kernels/favor.h"

namespace performer::kernels::cpu {

struct EntryPoints {
  int64_t (*workspace)(const AttentionForward&, bool backward);
  void (*forward)(const AttentionForward&, Executor&, void*);
  void (*backward)(const AttentionBackward&, Executor&, void*);
  void (*step)(const AttentionStep&, Executor&, void*);
  int64_t (*step_workspace)(const AttentionStep&);
};

int64_t built_targets();                  // Highway's target bits in this build
EntryPoints entries_for(int64_t target);  // of one target bit that is built and supported; not thread-safe

// AVX-512 with BF16 dot products, a target that Highway 1.0 does not know.
struct Bfloat16Target {
  bool built = false, supported = false;  // by this build; by the CPU and its system
  EntryPoints entries = {};
};
Bfloat16Target bfloat16_target();

}  // namespace performer::kernels::cpu
