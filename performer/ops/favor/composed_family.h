// SPDX-License-Identifier: Apache-2.0
// What the composed backend needs of a family of feature maps, written in LibTorch operations. Private to
// this layer. composed.cpp walks over the chunks of a sequence; the two families here do the arithmetic of a
// chunk.
//
// Letters as in ops/favor/call.h, and C: tokens of a chunk. All tensors have the heads in front:
// queries' and keys' arguments u [B, H, C, M], values [B, H, C, E]. Everything is computed in the type of
// sums.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "performer/kernels/favor.h"

namespace performer::ops::composed {

// The running sums of one side: the keys' kv and key_sum in a forward pass, the queries' sums of output
// gradients in a backward pass. True sums are exp(scale) times these; scale is 0 in the element-wise family.
struct Sums {
  at::Tensor kv, last, scale;  // [B, H, M, E], [B, H, M], [B, H, M]
};

// A part of the keys as a query sees it: sums over that part, times exp(-shift). The element-wise family has
// no shift.
struct Part {
  at::Tensor numerator, denominator, shift;  // [B, H, C, E], [B, H, C], [B, H, C]
};

// A chunk of queries in a backward pass.
struct Queries {
  at::Tensor u;           // [B, H, C, M]
  at::Tensor normalizer;  // [B, H, C], of the forward pass
  at::Tensor grad;        // [B, H, C, E]: g, the gradient of the outputs
  at::Tensor dot;         // [B, H, C]: g times the output
};

// A chunk of keys. `keep` is bool [B, 1, C], undefined when all are kept; masked keys do not exist.
struct Keys {
  at::Tensor u, value, keep;
};

// Gradients of u [B, H, C, M] of queries and keys, and of values [B, H, C, E].
struct ChunkGradients {
  at::Tensor query, key, value;
};

class Family {
 public:
  virtual ~Family() = default;

  // Adds keys to the sums; adds the output gradients of queries to their mirror.
  virtual void absorb(Sums& sums, const Keys& keys) const = 0;
  virtual void absorb(Sums& mirror, const Queries& queries) const = 0;

  // The whole of the sums as the queries u see it.
  virtual Part read(const at::Tensor& u, const Sums& sums) const = 0;
  // The chunk's own keys up to each query.
  virtual Part read_causal(const at::Tensor& u, const Keys& keys) const = 0;
  virtual Part merge(const Part& a, const Part& b) const = 0;
  // Output and normalizer; rows that see no key, and those where `keep` is false, have a zero output.
  virtual void finish(const Part& part, const at::Tensor& keep, at::Tensor& out,
                      at::Tensor& normalizer) const = 0;

  // The gradient of the queries' u that comes through the sums.
  virtual at::Tensor query_gradient(const Queries& queries, const Sums& sums) const = 0;
  // The gradients of the keys' u and of the values that come through the mirror.
  virtual ChunkGradients key_gradient(const Keys& keys, const Sums& mirror) const = 0;
  // All gradients that stay within a causal chunk.
  virtual ChunkGradients causal_gradient(const Queries& queries, const Keys& keys) const = 0;

  // The scale of sums that hold nothing.
  virtual double empty_scale() const = 0;
  // The gradient of the initial state, which is in the scale `initial_scale`, from the mirror of all queries.
  virtual at::Tensor initial_factor(const at::Tensor& initial_scale, const Sums& mirror) const = 0;
};

std::unique_ptr<Family> exponential_family();
// phi = g(u) + epsilon.
std::unique_ptr<Family> elementwise_family(kernels::Function function, double epsilon);

}  // namespace performer::ops::composed
