// SPDX-License-Identifier: Apache-2.0
// The entry points of one CPU target.
#if defined(PERFORMER_KERNELS_CPU_ENTRIES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_ENTRIES_INL_H_
#undef PERFORMER_KERNELS_CPU_ENTRIES_INL_H_
#else
#define PERFORMER_KERNELS_CPU_ENTRIES_INL_H_
#endif

#include "performer/kernels/cpu/backward_bidirectional-inl.h"
#include "performer/kernels/cpu/backward_causal-inl.h"
#include "performer/kernels/cpu/forward-inl.h"
#include "performer/kernels/cpu/step-inl.h"
#include "performer/kernels/cpu/tables.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

template <class HeadType, class Params>
int64_t Measure(const Params& params) {
  Scratch measure(nullptr);
  HeadType measured(params, 0, 0, measure);
  return measure.used() + Scratch::kAlignment;
}
template <class HeadType, class Params>
void RunHead(const void* context, int64_t sequence, int64_t head, void* memory) {
  Scratch scratch(memory);
  HeadType(*static_cast<const Params*>(context), sequence, head, scratch).Run();
}

// The work on one head of a pass: its scratch memory and its function.
struct Pass {
  int64_t bytes;
  cpu::HeadWork work;
};
template <class HeadType, class Params>
Pass PassOf(const Params& params) {
  return {Measure<HeadType>(params), RunHead<HeadType, Params>};
}

// Products in bfloat16 need inputs in bfloat16, and a projection: without one the inputs are the features.
bool InHalf(const AttentionForward& p) {
#ifdef PERFORMER_BFLOAT16
  return p.query.type == DataType::bfloat16 && p.key.type == DataType::bfloat16 &&
         p.value.type == DataType::bfloat16 && p.map.projection != nullptr;
#else
  (void)p;
  return false;
#endif
}

Pass ForwardPass(const AttentionForward& p) {
#ifdef PERFORMER_BFLOAT16
  if (InHalf(p)) return PassOf<ForwardHead<Half>>(p);
#endif
  return PassOf<ForwardHead<Single>>(p);
}
Pass BackwardPass(const AttentionBackward& b) {
  const bool causal = b.forward.causal;
#ifdef PERFORMER_BFLOAT16
  if (InHalf(b.forward))
    return causal ? PassOf<CausalBackward<Half>>(b) : PassOf<BidirectionalBackward<Half>>(b);
#endif
  return causal ? PassOf<CausalBackward<Single>>(b) : PassOf<BidirectionalBackward<Single>>(b);
}

int64_t Workspace(const AttentionForward& p, bool backward) {
  if (!backward) return ForwardPass(p).bytes;
  AttentionBackward b;
  b.forward = p;
  return BackwardPass(b).bytes;
}
int64_t StepWorkspace(const AttentionStep& p) {
  Scratch measure(nullptr);
  StepHead measured(p, measure);
  return measure.used() + Scratch::kAlignment;
}

void RunStepHead(const void* context, int64_t sequence, int64_t head, void* memory) {
  Scratch scratch(memory);
  StepHead(*static_cast<const AttentionStep*>(context), scratch).Run(sequence, head);
}

void Forward(const AttentionForward& p, Executor& executor, void* workspace) {
  const Pass pass = ForwardPass(p);
  cpu::ForEachHead(p.shape, executor, pass.work, &p, workspace, pass.bytes);
}
void Backward(const AttentionBackward& b, Executor& executor, void* workspace) {
  const Pass pass = BackwardPass(b);
  cpu::ForEachHead(b.forward.shape, executor, pass.work, &b, workspace, pass.bytes);
}
void Step(const AttentionStep& p, Executor& executor, void* workspace) {
  cpu::ForEachHead(p.shape, executor, RunStepHead, &p, workspace, StepWorkspace(p));
}

cpu::EntryPoints Entries() {
  return {Workspace, Forward, Backward, Step, StepWorkspace};
}

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
