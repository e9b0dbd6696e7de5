// SPDX-License-Identifier: Apache-2.0
#include "performer/kernels/dropout.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "performer/kernels/cpu/dropout.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

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

void Dropout(const float* input, float* output, int64_t begin, int64_t end, uint64_t key, int32_t threshold,
             float scale, int64_t shift) {
  const hn::ScalableTag<float> df;
  const hn::ScalableTag<uint32_t> du;
  const hn::ScalableTag<int32_t> di;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto low = hn::Set(du, static_cast<uint32_t>(key));
  const auto limit = hn::Set(di, threshold - 1);
  // `count` elements from i on, all in one block of 2^32: the key's second half takes the block's number in.
  const auto kept = [&](int64_t i) HWY_ATTR {
    const auto high =
        hn::Set(du, static_cast<uint32_t>(key >> 32) + static_cast<uint32_t>(i >> 32) * 0x9e3779b9u);
    const auto hash = Mix(hn::Add(Mix(hn::Add(hn::Iota(du, static_cast<uint32_t>(i)), low)), high));
    return hn::RebindMask(df, hn::Gt(hn::BitCast(di, hn::ShiftRight<1>(hash)), limit));
  };
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes) {
    const auto x = hn::Mul(hn::LoadU(df, input + i), hn::Set(df, scale));
    hn::StoreU(hn::IfThenElseZero(kept(i + shift), x), df, output + i);
  }
  if (i == end) return;
  HWY_ALIGN float rest[hn::MaxLanes(df)] = {};
  for (int64_t k = i; k < end; ++k) rest[k - i] = input[k] * scale;
  hn::Store(hn::IfThenElseZero(kept(i + shift), hn::Load(df, rest)), df, rest);
  for (int64_t k = i; k < end; ++k) output[k] = rest[k - i];
}

}  // namespace HWY_NAMESPACE
}  // namespace performer::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace performer::kernels {

HWY_EXPORT(Dropout);

namespace {

// SplitMix64's finaliser: without it the masks of neighbouring keys would be shifted copies of each other.
uint64_t scramble(uint64_t key) {
  key = (key ^ key >> 30) * 0xbf58476d1ce4e5b9;
  key = (key ^ key >> 27) * 0x94d049bb133111eb;
  return key ^ key >> 31;
}

}  // namespace

void dropout(const float* input, float* output, int64_t begin, int64_t end, uint64_t key, double probability,
             int64_t shift) {
  const auto threshold = static_cast<int32_t>(probability * 0x1p31);
  HWY_DYNAMIC_DISPATCH(Dropout)
  (input, output, begin, end, scramble(key), threshold, static_cast<float>(1 / (1 - probability)), shift);
}

}  // namespace performer::kernels
#endif
