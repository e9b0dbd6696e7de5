// SPDX-License-Identifier: Apache-2.0
// The entry points of one CPU target.
#if defined(PERFORMER_KERNELS_CPU_ENTRIES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_ENTRIES_INL_H_
#undef PERFORMER_KERNELS_CPU_ENTRIES_INL_H_
#else
#define PERFORMER_KERNELS_CPU_ENTRIES_INL_H_
#endif

#include "performer/kernels/cpu/groups-inl.h"
#include "performer/kernels/cpu/passes-inl.h"
#include "performer/kernels/cpu/step-inl.h"
#include "performer/kernels/cpu/tables.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

// The most scratch memory a worker needs for a pass over whole heads, or over groups of their features.
int64_t HeadBytes(const AttentionForward& p, int64_t groups, bool backward) {
  AttentionBackward b;
  AttentionForward& part = b.forward;
  part = p;
  part.shape.features /= groups;
  if (groups > 1) part.map = MapOfGroups(p.map, part.shape.features, p.shape.head_size);
  const int64_t bytes = backward ? BackwardPass(b).bytes : ForwardPass(part).bytes;
  if (groups == 1) return bytes;
  part.causal = false;  // groups sum up keys without causality, before any pass
  return std::max(bytes, ForwardPass(part).bytes);
}
int64_t Workspace(const AttentionForward& p, bool backward) {
  const int64_t groups = GroupsOf(p), bytes = HeadBytes(p, groups, backward);
  if (groups == 1) return bytes;
  AttentionBackward b;
  Scratch measure(nullptr);
  GroupedHead measured(p, backward ? &b : nullptr, groups, measure);
  return bytes + measure.used() + 2 * Scratch::kAlignment;
}
int64_t StepBytes(const AttentionStep& p, int64_t heads_at_once) {
  Scratch measure(nullptr);
  StepBlock measured(p, heads_at_once, measure);
  return measure.used() + Scratch::kAlignment;
}
// For any number of workers: one worker has the largest blocks.
int64_t StepWorkspace(const AttentionStep& p) {
  return StepBytes(p, StepBlock::HeadsAtOnce(p, 1));
}

struct StepCall {
  const AttentionStep& step;
  int64_t heads_at_once;
};
void RunStepBlock(const void* context, int64_t block, int64_t group, void* memory) {
  const StepCall& call = *static_cast<const StepCall*>(context);
  Scratch scratch(memory);
  StepBlock(call.step, call.heads_at_once, scratch).Run(block, group);
}

// Works on the heads one by one, with all workers on each; `work` gets a head's sequence and number. The
// memory behind the workers' shares holds what belongs to the head.
template <class Work>
void ForEachGroupedHead(const AttentionForward& p, const AttentionBackward* b, int64_t groups,
                        Executor& executor, void* workspace, const Work& work) {
  const int64_t shares = HeadBytes(p, groups, b != nullptr) * executor.workers();
  Scratch scratch(Scratch::aligned(workspace, shares));
  GroupedHead grouped(p, b, groups, scratch);
  for (int64_t n = 0; n < p.shape.batch; ++n) {
    for (int64_t h = 0; h < p.shape.heads; ++h) work(grouped, n, h);
  }
}

void Forward(const AttentionForward& p, Executor& executor, void* workspace) {
  if (const int64_t groups = GroupsOf(p); groups > 1) {
    return ForEachGroupedHead(
        p, nullptr, groups, executor, workspace,
        [&](GroupedHead& head, int64_t n, int64_t h) { head.Forward(n, h, executor, workspace); });
  }
  const Pass pass = ForwardPass(p);
  cpu::ForEachHead(p.shape, executor, pass.work, &p, workspace, pass.bytes);
}
void Backward(const AttentionBackward& b, Executor& executor, void* workspace) {
  if (const int64_t groups = GroupsOf(b.forward); groups > 1) {
    return ForEachGroupedHead(
        b.forward, &b, groups, executor, workspace,
        [&](GroupedHead& head, int64_t n, int64_t h) { head.Backward(n, h, executor, workspace); });
  }
  const Pass pass = BackwardPass(b);
  cpu::ForEachHead(b.forward.shape, executor, pass.work, &b, workspace, pass.bytes);
}
void Step(const AttentionStep& p, Executor& executor, void* workspace) {
  const StepCall call{p, StepBlock::HeadsAtOnce(p, executor.workers())};
  Shape blocks = p.shape;
  blocks.batch = (p.shape.batch + StepBlock::kSequences - 1) / StepBlock::kSequences;
  blocks.heads = (p.shape.heads + call.heads_at_once - 1) / call.heads_at_once;
  cpu::ForEachHead(blocks, executor, RunStepBlock, &call, workspace, StepBytes(p, call.heads_at_once));
}

cpu::EntryPoints Entries() {
  return {Workspace, Forward, Backward, Step, StepWorkspace};
}

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
