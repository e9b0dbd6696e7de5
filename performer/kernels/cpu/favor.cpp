// SPDX-License-Identifier: Apache-2.0
// The vector kernels, compiled once for every CPU target by Highway; dispatch.cpp chooses among the tables.
#include "performer/kernels/cpu/tables.h"

// Vector arrays need a size known at compile time, which SVE and RVV do not have.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "performer/kernels/cpu/favor.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h

#include "performer/kernels/cpu/entries-inl.h"

#if HWY_ONCE
namespace performer::kernels::cpu {

HWY_EXPORT(Entries);

int64_t built_targets() {
  return HWY_TARGETS;
}

EntryPoints entries_for(int64_t target) {
  // Highway chooses among the supported targets: leaving it one makes the choice.
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  const EntryPoints entries = HWY_DYNAMIC_DISPATCH(Entries)();
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return entries;
}

}  // namespace performer::kernels::cpu
#endif
