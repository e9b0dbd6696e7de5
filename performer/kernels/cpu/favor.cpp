// SPDX-License-Identifier: Apache-2.0
// The vector kernels, compiled once for every CPU target by Highway; dispatch.cpp chooses among the tables.
#include "performer/kernels/cpu/tables.h"

// Vector arrays need a size known at compile time, which SVE and RVV do not have.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "performer/kernels/cpu/favor.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h

#include "performer/kernels/cpu/backward-inl.h"
#include "performer/kernels/cpu/forward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace HWY_NAMESPACE {

int64_t Workspace(const AttentionForward& p, bool backward) {
  Scratch measure(nullptr);
  if (backward) {
    AttentionBackward b;
    b.forward = p;
    BackwardHead measured(b, 0, 0, measure);
  } else {
    ForwardHead measured(p, 0, 0, measure);
  }
  return measure.used() + Scratch::kAlignment;
}

int64_t StepWorkspace(const AttentionStep& p) {
  return StepHead::Floats(p.shape) * static_cast<int64_t>(sizeof(float)) + Scratch::kAlignment;
}

void RunForwardHead(const void* context, int64_t sequence, int64_t head, void* memory) {
  Scratch scratch(memory);
  ForwardHead(*static_cast<const AttentionForward*>(context), sequence, head, scratch).Run();
}
void RunBackwardHead(const void* context, int64_t sequence, int64_t head, void* memory) {
  Scratch scratch(memory);
  BackwardHead(*static_cast<const AttentionBackward*>(context), sequence, head, scratch).Run();
}
void RunStepHead(const void* context, int64_t sequence, int64_t head, void* memory) {
  StepHead::Run(*static_cast<const AttentionStep*>(context), sequence, head, static_cast<float*>(memory));
}

void Forward(const AttentionForward& p, Executor& executor, void* workspace) {
  cpu::ForEachHead(p.shape, executor, RunForwardHead, &p, workspace, Workspace(p, false));
}
void Backward(const AttentionBackward& b, Executor& executor, void* workspace) {
  cpu::ForEachHead(b.forward.shape, executor, RunBackwardHead, &b, workspace, Workspace(b.forward, true));
}
void Step(const AttentionStep& p, Executor& executor, void* workspace) {
  cpu::ForEachHead(p.shape, executor, RunStepHead, &p, workspace, StepWorkspace(p));
}

cpu::EntryPoints Entries() {
  return {Workspace, Forward, Backward, Step, StepWorkspace};
}

}  // namespace HWY_NAMESPACE
}  // namespace performer::kernels
HWY_AFTER_NAMESPACE();

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
