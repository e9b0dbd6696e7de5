// SPDX-License-Identifier: Apache-2.0
// Runs a check with each of the CPU targets that were built and can run here, one after the other.
#pragma once

#include <hwy/targets.h>

#include <cstdint>

namespace performer::kernels {

template <class Body>
void for_each_target(const Body& body) {
  for (int64_t left = hwy::SupportedTargets(); left != 0; left &= left - 1) {
    const int64_t target = left & -left;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    body(hwy::TargetName(target));
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace performer::kernels
