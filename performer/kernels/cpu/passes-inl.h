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

inline Pass ForwardPass(const AttentionForward& p) {
#ifdef PERFORMER_BFLOAT16
  if (InHalf(p)) return PassOf<ForwardHead<Half>>(p);
#endif
  return PassOf<ForwardHead<Single>>(p);
}
inline Pass BackwardPass(const AttentionBackward& b) {
  const bool causal = b.forward.causal;
#ifdef PERFORMER_BFLOAT16
  if (InHalf(b.forward))
    return causal ? PassOf<CausalBackward<Half>>(b) : PassOf<BidirectionalBackward<Half>>(b);
#endif
  return causal ? PassOf<CausalBackward<Single>>(b) : PassOf<BidirectionalBackward<Single>>(b);
}

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
