// SPDX-License-Identifier: Apache-2.0
// What the passes of the trigonometric family share: cosines and sines as rows of features, and the weights
// of keys.
//
// Here a weight is one number a key, w_j = exp(-eta |k_j|^2), whatever the feature. So features are cosines
// and sines as they are, and weights and scales meet rows, columns and whole states as single factors; every
// factor that is formed is at most 1. The formulas are those of kernels/reference/trigonometric.cpp.
#if defined(PERFORMER_KERNELS_CPU_TRIGONOMETRIC_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERFORMER_KERNELS_CPU_TRIGONOMETRIC_INL_H_
#undef PERFORMER_KERNELS_CPU_TRIGONOMETRIC_INL_H_
#else
#define PERFORMER_KERNELS_CPU_TRIGONOMETRIC_INL_H_
#endif

#include <cmath>
#include <limits>

#include "performer/kernels/cpu/head-inl.h"

PERFORMER_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace PERFORMER_TARGET {

// exp(x) for the log of a weight, at most 0 but for rounding.
HWY_INLINE Vec WeightOf(Vec x) {
  return ExpUnchecked(SmallerOf(hn::Zero(Tag()), x));
}
HWY_INLINE float WeightOf(float exponent) {
  return std::exp(exponent > 0 ? 0.0f : exponent);
}

// Cosines and sines of `m` arguments, padded, as a row of features: cosines from 0, sines from `sines` on,
// and zeros up to `padded`.
HWY_INLINE void WaveRow(const float* u, int64_t m, int64_t sines, int64_t padded, float* phi) {
  const Tag d;
  // From the end, since a last vector of cosines that is not full spills over the first sines.
  for (int64_t f = (m - 1) / kLanes * kLanes; f >= 0; f -= kLanes) {
    const Wave wave = SineAndCosine(hn::Load(d, u + f));
    hn::Store(wave.cosine, d, phi + f);
    if (f + kLanes <= m) {
      hn::StoreU(wave.sine, d, phi + sines + f);
    } else {
      HWY_ALIGN float rest[kLanes];
      hn::Store(wave.sine, d, rest);
      for (int64_t i = f; i < m; ++i) phi[sines + i] = rest[i - f];
    }
  }
  if (sines > m) phi[m] = 0;
  for (int64_t f = sines + m; f < padded; ++f) phi[f] = 0;
}

// The gradient of arguments from that of their cosines and sines: -sin times the one plus cos times the
// other, zero from `m` on. Rows may be read up to a vector beyond their end.
HWY_INLINE void RotateRow(const float* phi, const float* gradient, int64_t m, int64_t sines, int64_t padded,
                          float* result) {
  const Tag d;
  for (int64_t f = 0; f < m; f += kLanes) {
    const Vec of_sine = hn::Mul(hn::Load(d, phi + f), hn::LoadU(d, gradient + sines + f));
    const Vec of_cosine = hn::Mul(hn::LoadU(d, phi + sines + f), hn::Load(d, gradient + f));
    hn::Store(hn::Sub(of_sine, of_cosine), d, result + f);
  }
  for (int64_t f = m; f < padded; ++f) result[f] = 0;
}

// The log-weights of a chunk of keys, and what rows of a causal chunk see of them.
template <class Number>
struct KeyWeights {
  explicit KeyWeights(const Sizes<Number>& sizes, Scratch& scratch) : n(sizes) {
    log_weight = scratch.floats(n.cp);
    weight = scratch.floats(n.cp);
    largest = scratch.floats(n.cp);
  }

  // From the norms of the chunk's keys, of which dropped ones have -kEmptyLogScale.
  void Load(const float* key_norm) {
    const Tag d;
    for (int64_t j = 0; j < n.cp; j += kLanes)
      hn::Store(LargerOf(hn::Set(d, kEmptyLogScale), hn::Neg(hn::Load(d, key_norm + j))), d, log_weight + j);
  }
  // largest[i]: the larger of `before` and the log-weights up to i.
  void LoadLargest(float before) {
    for (int64_t i = 0; i < n.cp; ++i) largest[i] = before = HWY_MAX(before, log_weight[i]);
  }
  float Largest(float before) const { return HWY_MAX(before, MaxOf(log_weight, n.cp)); }
  // weight = keep exp(log-weight + shift)
  void Weigh(const float* keep, float shift) {
    const Tag d;
    for (int64_t j = 0; j < n.cp; j += kLanes) {
      const Vec w = WeightOf(hn::Add(hn::Load(d, log_weight + j), hn::Set(d, shift)));
      hn::Store(hn::Mul(w, hn::Load(d, keep + j)), d, weight + j);
    }
  }
  // seen = the weights of the keys that row i of a causal chunk sees, in units of its largest one, over
  // `padded` columns. Returns their sum.
  HWY_INLINE float Seen(int64_t i, const float* keep, int64_t padded, float* seen) const {
    const Tag d;
    const Vec shift = hn::Set(d, largest[i]);
    Vec sum = hn::Zero(d);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const auto count = static_cast<size_t>(HWY_MAX(0, HWY_MIN(i + 1 - j, kLanes)));
      const Vec w = hn::Mul(WeightOf(hn::Sub(hn::Load(d, log_weight + j), shift)), hn::Load(d, keep + j));
      const Vec kept = hn::IfThenElseZero(hn::FirstN(d, count), w);
      hn::Store(kept, d, seen + j);
      sum = hn::Add(sum, kept);
    }
    return SumOfLanes(sum);
  }

  Sizes<Number> n;
  float *log_weight, *weight, *largest;  // [Cp]
};

// What a row is divided by, and what its normalizer says.
struct FlooredDenominator {
  float divisor, normalizer;
};
// Of a row that sees keys whose weights have the sum `weights`, in a head of `m` frequencies.
HWY_INLINE FlooredDenominator Floored(float denominator, float weights, int64_t m) {
  const float floor = static_cast<float>(kTrigonometricFloor) * static_cast<float>(m) * weights;
  if (!(std::abs(denominator) < floor)) return {denominator, denominator};
  const float sign = denominator < 0 ? -1.0f : 1.0f;
  return {sign * floor, sign * std::numeric_limits<float>::infinity()};
}

// Calls whose heads are groups of the frequencies of one head (groups-inl.h). Denominators of groups may
// cancel each other, so a group does not divide: `out` and `normalizer` receive the sums themselves, and
// `weight_sums`, indexed as normalizers are, the sum of the weights that a row sees, 0 for a masked query.
struct WaveGroupsForward {
  AttentionForward call;
  float* weight_sums;
};
// The backward pass gets outputs and normalizers of the whole head, which has `frequencies`.
struct WaveGroupsBackward {
  AttentionBackward call;
  int64_t frequencies;
};

// The order of features in states of the contract, where sines follow the cosines at once.
template <class Number>
HWY_INLINE int64_t RowOfFeature(const Sizes<Number>& n, int64_t feature) {
  if (feature == 2 * n.m) return n.f;
  return feature < n.m ? feature : n.sines + feature - n.m;
}

}  // namespace PERFORMER_TARGET
}  // namespace performer::kernels
PERFORMER_AFTER_NAMESPACE();
#endif  // include guard
