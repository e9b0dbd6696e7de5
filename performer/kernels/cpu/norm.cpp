// SPDX-License-Identifier: Apache-2.0
// Layer norm and rotary positions.
#include <algorithm>
#include <cmath>

#include "performer/kernels/block.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "performer/kernels/cpu/norm.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "performer/kernels/cpu/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace performer::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using elements::Float;
using elements::Lanes;
using elements::LoadPart;
using elements::StorePart;
using elements::Vector;

HWY_INLINE float Sum(Vector v) {
  return hn::GetLane(hn::SumOfLanes(Float(), v));
}

// The first `count` lanes, the others zero.
HWY_INLINE Vector Only(Vector v, int64_t count) {
  return hn::IfThenElseZero(hn::FirstN(Float(), static_cast<size_t>(count)), v);
}

template <class T>
void NormRows(const NormForward& pass) {
  const int64_t lanes = Lanes(), columns = pass.columns;
  const float share = 1 / static_cast<float>(columns);
  auto* output = static_cast<T*>(pass.output);
  for (int64_t row = 0; row < pass.rows; ++row) {
    const float* x = pass.input + row * columns;
    Vector sum = hn::Zero(Float()), squares = sum;
    for (int64_t i = 0; i < columns; i += lanes) sum = hn::Add(sum, LoadPart(x + i, columns - i));
    const float mean = Sum(sum) * share;
    const Vector center = hn::Set(Float(), mean);
    for (int64_t i = 0; i < columns; i += lanes) {
      const Vector d = Only(hn::Sub(LoadPart(x + i, columns - i), center), std::min(lanes, columns - i));
      squares = hn::MulAdd(d, d, squares);
    }
    const float scale = 1 / std::sqrt(Sum(squares) * share + static_cast<float>(pass.epsilon));
    const Vector factor = hn::Set(Float(), scale);
    for (int64_t i = 0; i < columns; i += lanes) {
      const int64_t count = columns - i;
      const Vector unit = hn::Mul(hn::Sub(LoadPart(x + i, count), center), factor);
      StorePart(hn::MulAdd(unit, LoadPart(pass.gain + i, count), LoadPart(pass.bias + i, count)),
                output + row * columns + i, count);
    }
    pass.mean[row] = mean;
    pass.scale[row] = scale;
  }
}

template <class T>
void NormRowsBackward(const NormBackward& pass) {
  const int64_t lanes = Lanes(), columns = pass.columns;
  const float share = 1 / static_cast<float>(columns);
  for (int64_t row = 0; row < pass.rows; ++row) {
    const float* x = pass.input + row * columns;
    const T* gradient = static_cast<const T*>(pass.output_gradient) + row * columns;
    const Vector center = hn::Set(Float(), pass.mean[row]), factor = hn::Set(Float(), pass.scale[row]);
    // With u the unit row and h = gradient gain: scale (h - mean(h) - u mean(h u)).
    Vector sum = hn::Zero(Float()), product = sum;
    for (int64_t i = 0; i < columns; i += lanes) {
      const int64_t count = columns - i;
      const Vector g = LoadPart(gradient + i, count);
      const Vector unit = hn::Mul(hn::Sub(LoadPart(x + i, count), center), factor);
      const Vector h = hn::Mul(g, LoadPart(pass.gain + i, count));  // lanes behind the row are zero
      sum = hn::Add(sum, h);
      product = hn::MulAdd(h, unit, product);
      StorePart(hn::MulAdd(g, unit, LoadPart(pass.gain_gradient + i, count)), pass.gain_gradient + i, count);
      StorePart(hn::Add(g, LoadPart(pass.bias_gradient + i, count)), pass.bias_gradient + i, count);
    }
    const Vector mean = hn::Set(Float(), Sum(sum) * share), along = hn::Set(Float(), Sum(product) * share);
    for (int64_t i = 0; i < columns; i += lanes) {
      const int64_t count = columns - i;
      const Vector unit = hn::Mul(hn::Sub(LoadPart(x + i, count), center), factor);
      const Vector h = hn::Mul(LoadPart(gradient + i, count), LoadPart(pass.gain + i, count));
      const Vector rest = hn::Sub(hn::Sub(h, mean), hn::Mul(unit, along));
      StorePart(hn::Mul(rest, factor), pass.input_gradient + row * columns + i, count);
    }
  }
}

// One head: the pairs of x turned by the complex numbers of `table`, or by their conjugates.
template <class T>
HWY_INLINE void RotateHead(const T* x, const float* table, int64_t size, bool backwards, T* y) {
  const float sign = backwards ? -1.0f : 1.0f;
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const Vector signs = hn::Set(Float(), sign);
  for (; i + Lanes() <= size; i += Lanes()) {
    const Vector v = elements::Load(x + i), t = elements::Load(table + i);
    const Vector cosine = hn::DupEven(t), sine = hn::Mul(hn::DupOdd(t), signs);
    const Vector across = hn::Mul(hn::Shuffle2301(v), sine);
    elements::Store(hn::OddEven(hn::MulAdd(v, cosine, across), hn::MulSub(v, cosine, across)), y + i);
  }
#endif
  if (i == size) return;
  constexpr int64_t kPart = HWY_MAX(elements::kMost, 2);
  float pairs[kPart], turned[kPart];
  for (; i < size; i += kPart) {
    const int64_t count = std::min(size - i, kPart);
    for (int64_t k = 0; k < count; k += Lanes()) elements::Store(LoadPart(x + i + k, count - k), pairs + k);
    for (int64_t k = 0; k < count; k += 2) {
      const float cosine = table[i + k], sine = sign * table[i + k + 1];
      turned[k] = pairs[k] * cosine - pairs[k + 1] * sine;
      turned[k + 1] = pairs[k + 1] * cosine + pairs[k] * sine;
    }
    for (int64_t k = 0; k < count; k += Lanes()) StorePart(elements::Load(turned + k), y + i + k, count - k);
  }
}

template <class T>
void RotateRows(const Rotation& pass) {
  for (int64_t row = 0; row < pass.rows; ++row) {
    const T* from = static_cast<const T*>(pass.input) + row * pass.input_stride;
    T* to = static_cast<T*>(pass.output) + row * pass.output_stride;
    const float* table = pass.table + row * pass.head_size;
    for (int64_t head = 0; head < pass.heads; ++head) {
      const int64_t at = head * pass.head_size;
      RotateHead(from + at, table, pass.head_size, pass.backwards, to + at);
    }
  }
}

void ForwardNorm(const NormForward& pass) {
  pass.type == DataType::float32 ? NormRows<float>(pass) : NormRows<uint16_t>(pass);
}
void BackwardNorm(const NormBackward& pass) {
  pass.type == DataType::float32 ? NormRowsBackward<float>(pass) : NormRowsBackward<uint16_t>(pass);
}
void RotateAll(const Rotation& pass) {
  pass.type == DataType::float32 ? RotateRows<float>(pass) : RotateRows<uint16_t>(pass);
}

}  // namespace HWY_NAMESPACE
}  // namespace performer::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace performer::kernels {

HWY_EXPORT(ForwardNorm);
HWY_EXPORT(BackwardNorm);
HWY_EXPORT(RotateAll);

void norm_forward(const NormForward& pass) {
  HWY_DYNAMIC_DISPATCH(ForwardNorm)(pass);
}
void norm_backward(const NormBackward& pass) {
  HWY_DYNAMIC_DISPATCH(BackwardNorm)(pass);
}
void rotate(const Rotation& pass) {
  HWY_DYNAMIC_DISPATCH(RotateAll)(pass);
}

}  // namespace performer::kernels
#endif
