// SPDX-License-Identifier: Apache-2.0
// Projection matrices of the Keras KernelAttention layer: from a seed exactly as TensorFlow draws them, from
// given normal draws, and redrawn. None of them is Haar distributed: QR signs stay as LAPACK leaves them.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

namespace performer::references::keras {

// A seed of TensorFlow's stateless generators: two integers, int32 there.
using Seed = std::array<int64_t, 2>;

// N(0, 1) float32 [rows, columns] as tf.random.stateless_normal gives them on a CPU: Philox4x32-10 whose key
// and counter are one Philox block of the seed, 23 bits a uniform, Box-Muller in float32. To the bit where
// the C library's logf, sinf and cosf round as glibc's do.
at::Tensor stateless_normal(int64_t rows, int64_t columns, Seed seed);
// The seed of the next block: two int32 of tf.random.stateless_uniform over all integers.
Seed next_seed(Seed seed);

// [rows, D] from Gaussian blocks [N, D, D] (directions) and row lengths [rows], in the type of blocks.
at::Tensor projection_from_draws(const at::Tensor& blocks, const at::Tensor& norms);

// The layer's matrix [rows, D] for {seed, seed + 1}: as many blocks as needed, their seeds chained, lengths
// of fresh Gaussian rows from the last seed. The draws are TensorFlow's; its QR decomposition in float32 is
// the difference, about 1e-5 at D = 64. Throws UsageError unless rows >= 1 and size >= 1.
at::Tensor projection_from_seed(int64_t rows, int64_t size, Seed seed);

// What a training call with `redraw` uses: new directions, here from our counter-based generator by (seed,
// index), and the row lengths of seed {0, 1}, which in the reference never change.
at::Tensor redrawn_projection(int64_t rows, int64_t size, int64_t seed, int64_t index);
// Those lengths, [rows].
at::Tensor redrawn_norms(int64_t rows, int64_t size);

}  // namespace performer::references::keras
