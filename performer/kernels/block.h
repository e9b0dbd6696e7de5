// SPDX-License-Identifier: Apache-2.0
// What stands between the matrix products of a Transformer block, each in one pass over its tensors: bias,
// activation and dropout; bias, dropout and residual; layer norm; rotary positions.
//
// Matrices are dense, rows behind each other. Where a pass has a `type` it is float32 or bfloat16 and that of
// the tensors given as void*; arithmetic and everything else is in float32, and a result is rounded once.
// Calls take any part of the rows and allocate nothing, so that rows can be spread over threads. What is
// summed over rows is added to, for the caller to set to zero first.
#pragma once

#include <cstdint>

#include "performer/kernels/dropout.h"
#include "performer/kernels/favor.h"

namespace performer::kernels {

// Element (row, column) of the call is element mask_first + row * columns + column of the mask.
struct MaskedRows {
  int64_t rows = 0, columns = 0, mask_first = 0;
  DropoutMask mask;
};

enum class Activation : uint8_t {
  gelu_tanh,
  relu
};  // gelu_tanh: x/2 (1 + tanh(sqrt(2/pi)(x + 0.044715 x^3)))

// output = dropout(f(input + bias))
struct ActivationForward {
  MaskedRows at;
  Activation activation = Activation::gelu_tanh;
  DataType type = DataType::float32;
  const void* input = nullptr;
  const float* bias = nullptr;  // [columns]
  void* output = nullptr;
};
// input_gradient = dropout(output_gradient) f'(input + bias); bias_gradient += its sum over rows.
struct ActivationBackward {
  ActivationForward forward;  // without output
  const void* output_gradient = nullptr;
  void* input_gradient = nullptr;  // may be output_gradient
  float* bias_gradient = nullptr;  // [columns]
};
void activation_forward(const ActivationForward& pass);
void activation_backward(const ActivationBackward& pass);

// output = input + dropout(branch + bias)
struct BranchForward {
  MaskedRows at;
  DataType type = DataType::float32;
  const float* input = nullptr;
  const void* branch = nullptr;
  const float* bias = nullptr;  // [columns] or null
  float* output = nullptr;      // may be input
};
// branch_gradient = dropout(output_gradient); bias_gradient += its sum over rows. That of the input is
// output_gradient itself.
struct BranchBackward {
  MaskedRows at;
  DataType type = DataType::float32;
  const float* output_gradient = nullptr;
  void* branch_gradient = nullptr;
  float* bias_gradient = nullptr;  // [columns] or null
};
void branch_forward(const BranchForward& pass);
void branch_backward(const BranchBackward& pass);

// output = (input - mean) scale gain + bias, with mean and scale = 1 / sqrt(variance + epsilon) of each row.
struct NormForward {
  int64_t rows = 0, columns = 0;
  DataType type = DataType::float32;
  const float *input = nullptr, *gain = nullptr, *bias = nullptr;
  double epsilon = 0;
  void* output = nullptr;
  float *mean = nullptr, *scale = nullptr;  // [rows]
};
struct NormBackward {
  int64_t rows = 0, columns = 0;
  DataType type = DataType::float32;
  const float *input = nullptr, *gain = nullptr, *mean = nullptr, *scale = nullptr;
  const void* output_gradient = nullptr;
  float* input_gradient = nullptr;
  float *gain_gradient = nullptr, *bias_gradient = nullptr;  // [columns], added to
};
void norm_forward(const NormForward& pass);
void norm_backward(const NormBackward& pass);

// Turns the pairs (2i, 2i + 1) of each head of a row by table[row] (cosine and sine of each pair, as complex
// numbers lie in memory), or back when `backwards`. Rows begin input_stride and output_stride elements apart,
// heads lie behind each other. In place is allowed.
struct Rotation {
  int64_t rows = 0, heads = 0, head_size = 0;  // head_size is even
  DataType type = DataType::float32;
  const void* input = nullptr;
  void* output = nullptr;
  int64_t input_stride = 0, output_stride = 0;
  const float* table = nullptr;  // [rows, head_size]
  bool backwards = false;
};
void rotate(const Rotation& pass);

}  // namespace performer::kernels
