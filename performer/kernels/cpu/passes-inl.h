// SPDX-License-Identifier: Apache-2.0
// Which class works on a head in a pass, and how much scratch memory it needs.
#if defined(PERFORMER_KERNELS_CPU_PASSES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_PASSES_INL_H_
#undef PERFORMER_KERNELS_CPU_PASSES_INL_H_
#else
#define PERFORMER_KERNELS_CPU_PASSES_INL_H_
#endif

#include "performer/kernels/cpu/backward_bidirectional-inl.h"
#include "performer/kernels/cpu/backward_causal-inl.h"
#include "performer/kernels/cpu/forward-inl.h"
#include "performer/kernels/cpu/trigonometric_backward-inl.h"
#include "performer/kernels/cpu/trigonometric_forward-inl.h"

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
inline bool InHalf(const AttentionForward& p) {
#ifdef PERFORMER_BFLOAT16
  return p.query.type == DataType::bfloat16 && p.key.type == DataType::bfloat16 &&
         p.value.type == DataType::bfloat16 && p.map.projection != nullptr;
#else
  (void)p;
  return false;
#endif
}

template <class Number>
Pass ForwardPassIn(const AttentionForward& p) {
  if (p.map.family == Family::trigonometric) return PassOf<TrigonometricForward<Number>>(p);
  return PassOf<ForwardHead<Number>>(p);
}
template <class Number>
Pass BackwardPassIn(const AttentionBackward& b) {
  if (b.forward.map.family == Family::trigonometric) return PassOf<TrigonometricBackward<Number>>(b);
  return b.forward.causal ? PassOf<CausalBackward<Number>>(b) : PassOf<BidirectionalBackward<Number>>(b);
}

inline Pass ForwardPass(const AttentionForward& p) {
#ifdef PERFORMER_BFLOAT16
  if (InHalf(p)) return ForwardPassIn<Half>(p);
#endif
  return ForwardPassIn<Single>(p);
}
inline Pass BackwardPass(const AttentionBackward& b) {
#ifdef PERFORMER_BFLOAT16
  if (InHalf(b.forward)) return BackwardPassIn<Half>(b);
#endif
  return BackwardPassIn<Single>(b);
}

inline Pass ForwardPass(const WaveGroupsForward& groups) {
#ifdef PERFORMER_BFLOAT16
  if (InHalf(groups.call)) return PassOf<TrigonometricGroupForward<Half>>(groups);
#endif
  return PassOf<TrigonometricGroupForward<Single>>(groups);
}
inline Pass BackwardPass(const WaveGroupsBackward& groups) {
#ifdef PERFORMER_BFLOAT16
  if (InHalf(groups.call.forward)) return PassOf<TrigonometricGroupBackward<Half>>(groups);
#endif
  return PassOf<TrigonometricGroupBackward<Single>>(groups);
}

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
