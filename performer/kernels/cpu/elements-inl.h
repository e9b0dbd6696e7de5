// SPDX-License-Identifier: Apache-2.0
// Elements in float32 or bfloat16 as vectors of float32, and the factors of dropout. Compiled once a target.
#if defined(PERFORMER_KERNELS_CPU_ELEMENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_ELEMENTS_INL_H_
#undef PERFORMER_KERNELS_CPU_ELEMENTS_INL_H_
#else
#define PERFORMER_KERNELS_CPU_ELEMENTS_INL_H_
#endif

#include <hwy/highway.h>

#include "performer/kernels/cpu/mask_seed.h"

HWY_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace HWY_NAMESPACE {
namespace elements {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes, of which two vectors make a block of the mask.
using Float = hn::CappedTag<float, 16>;
using Bits = hn::Rebind<uint32_t, Float>;
using Half = hn::Rebind<uint16_t, Float>;
using Vector = hn::Vec<Float>;
constexpr int64_t kMost = hn::MaxLanes(Float());

HWY_INLINE int64_t Lanes() {
  return static_cast<int64_t>(hn::Lanes(Float()));
}

HWY_INLINE Vector Load(const float* from) {
  return hn::LoadU(Float(), from);
}
HWY_INLINE Vector Load(const uint16_t* from) {
  return hn::BitCast(Float(), hn::ShiftLeft<16>(hn::PromoteTo(Bits(), hn::LoadU(Half(), from))));
}
HWY_INLINE void Store(Vector v, float* to) {
  hn::StoreU(v, Float(), to);
}
// To nearest, ties to even; NaN stays NaN.
HWY_INLINE void Store(Vector v, uint16_t* to) {
  const Bits d;
  const auto bits = hn::BitCast(d, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(d, 0x7fffu))));
  const auto chosen = hn::IfThenElse(hn::RebindMask(d, hn::IsNaN(v)), hn::Set(d, 0x7fc0u), rounded);
  hn::StoreU(hn::DemoteTo(Half(), hn::BitCast(hn::RebindToSigned<Bits>(), chosen)), Half(), to);
}

// The first `count` elements, at most a vector; the other lanes are zero.
template <class T>
HWY_INLINE Vector LoadPart(const T* from, int64_t count) {
  if (count >= Lanes()) return Load(from);
  T part[kMost] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  return Load(part);
}
template <class T>
HWY_INLINE void StorePart(Vector v, T* to, int64_t count) {
  if (count >= Lanes()) return Store(v, to);
  T part[kMost];
  Store(v, part);
  for (int64_t i = 0; i < count; ++i) to[i] = part[i];
}

// The finaliser of MurmurHash3 (Appleby): a bijection of 32 bits in which every input bit reaches every
// output bit.
template <class V>
HWY_INLINE V Mix(V x) {
  const hn::DFromV<V> d;
  x = hn::Xor(x, hn::ShiftRight<16>(x));
  x = hn::Mul(x, hn::Set(d, 0x85ebca6bu));
  x = hn::Xor(x, hn::ShiftRight<13>(x));
  x = hn::Mul(x, hn::Set(d, 0xc2b2ae35u));
  return hn::Xor(x, hn::ShiftRight<16>(x));
}

constexpr int64_t kBlock = 32;    // elements whose fates are the halves of 16 hashes
constexpr int64_t kPiece = 1024;  // elements that Factors() is asked for at most

// 0 for each dropped element from `first` on, 1 / (1 - probability) for the others: `count` of them, or some
// more, in `buffer` of kPiece + 2 kBlock floats. Elements e and e + 16 of a block share a hash.
HWY_INLINE const float* Factors(const cpu::MaskSeed& mask, int64_t first, int64_t count, float* buffer) {
  const Bits d;
  const hn::RebindToSigned<Bits> ds;
  const auto low = hn::Set(d, mask.low);
  const auto limit = hn::Set(ds, mask.threshold - 1);
  const auto scale = hn::Set(Float(), mask.scale);
  const int64_t begin = first / kBlock * kBlock, lanes = Lanes();
  const auto keep = [&](auto bits, float* to) HWY_ATTR {
    const auto kept = hn::RebindMask(Float(), hn::Gt(hn::BitCast(ds, bits), limit));
    hn::StoreU(hn::IfThenElseZero(kept, scale), Float(), to);
  };
  for (int64_t e = begin; e < first + count; e += kBlock) {
    const uint64_t number = static_cast<uint64_t>(e) / 2;
    // Numbers have 63 bits: the key's second half takes the upper ones in.
    const auto high = hn::Set(d, mask.high + static_cast<uint32_t>(number >> 32) * 0x9e3779b9u);
    for (int64_t k = 0; k < kBlock / 2; k += lanes) {
      const auto counter =
          hn::Add(hn::Iota(d, static_cast<uint32_t>(number) + static_cast<uint32_t>(k)), low);
      const auto hash = Mix(hn::Add(Mix(counter), high));
      keep(hn::And(hash, hn::Set(d, 0xffffu)), buffer + (e - begin) + k);
      keep(hn::ShiftRight<16>(hash), buffer + (e - begin) + kBlock / 2 + k);
    }
  }
  return buffer + (first - begin);
}

}  // namespace elements
}  // namespace HWY_NAMESPACE
}  // namespace performer::kernels
HWY_AFTER_NAMESPACE();
#endif  // include guard
