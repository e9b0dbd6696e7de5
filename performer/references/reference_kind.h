// SPDX-License-Identifier: Apache-2.0
// Attention kinds that reproduce a reference system: what a model that was trained there continues with, and
// what a comparison is made against. A kind computes the reference's own numbers with the reference's
// defaults; its epsilons, shifts, guards and masks are those of the system. Each system's folder has its rows
// in kinds.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace performer::references {

// What a mask of keys does: it is refused, as the reference has none; or the values of masked keys are zero,
// but the keys stay in the denominator and in maxima; or the features of masked keys are zero.
enum class KeyMask : uint8_t { none, values, features };

// A checked call: query [B, T, H, D], key [B, S, H, D], value [B, S, H, E].
struct ReferenceCall {
  at::Tensor query, key, value;  // with KeyMask::values, values are masked already
  std::optional<at::Tensor> projection = {};
  bool causal = false;
  std::optional<at::Tensor> key_mask = {};  // bool [B, S], true keeps; only with KeyMask::features
};

// A projection that is wanted, named by (seed, layer, redraw).
struct ReferenceDraw {
  int64_t heads, features, head_size;
  int64_t seed, layer, redraw;
};

struct ReferenceKind {
  std::string name;
  std::string summary;                // the system, the call, and what it computes
  std::string instead;                // the kind of ours that a new model should use
  bool projected = false;             // draws a projection
  bool projection_optional = false;   // works with and without one
  bool projection_each_head = false;  // it is [heads, rows, head_size], else [rows, head_size] for all heads
  bool causal = true, bidirectional = true;
  // Causal outputs do not depend on later tokens. Where false, the largest feature of the whole sequence
  // reaches the past through an epsilon or a guard.
  bool prefix_invariant = true;
  KeyMask key_mask = KeyMask::none;

  // The reference's default number of features for a head size; empty where its default has no projection.
  std::function<int64_t(int64_t head_size)> features = {};
  // The projection, float32, made of our counter-based generator's Gaussians as the reference makes it; empty
  // where there never is one.
  std::function<at::Tensor(const ReferenceDraw&)> draw = {};
  std::function<at::Tensor(const ReferenceCall&)> attend = {};
};

// Throws UsageError for sizes below 1, and for features of a kind that has no projection. `features` 0 asks
// for the default number; undefined where that is none.
at::Tensor draw_projection(const ReferenceKind& kind, ReferenceDraw draw);
// -> [B, T, H, E]; a key mask is bool [B, S], true keeps. Differentiable. Throws UsageError for shapes that
// do not fit, a projection that is missing or has no use, and for a mask or a direction that the reference
// does not have.
at::Tensor attend(const ReferenceKind& kind, const ReferenceCall& call);

// Rows of several systems: blocks of orthogonal rows by a QR decomposition whose signs are not corrected,
// times the lengths of Gaussian rows; one projection for all heads.
at::Tensor uncorrected_rows(const ReferenceDraw& draw);

// Rows to fill in: an approximation of softmax, whose shift by the whole sequence reaches the past through an
// epsilon; and a function of single features.
ReferenceKind softmax_row(const std::string& name, const std::string& summary);
ReferenceKind function_row(const std::string& name, const std::string& summary, const std::string& instead);

// All rows, system by system, and the one of a name. Throws UsageError naming the known ones for another.
const std::vector<ReferenceKind>& reference_kinds();
const ReferenceKind& find_reference_kind(const std::string& name);

namespace jax {
std::vector<ReferenceKind> kinds();
}
namespace tensorflow {
std::vector<ReferenceKind> kinds();
}
namespace trax {
std::vector<ReferenceKind> kinds();
}
namespace keras {
std::vector<ReferenceKind> kinds();
}
namespace performer_pytorch {
std::vector<ReferenceKind> kinds();
}
namespace fast_transformers {
std::vector<ReferenceKind> kinds();
}
namespace slim {
std::vector<ReferenceKind> kinds();
}
namespace darkformer {
std::vector<ReferenceKind> kinds();
}

}  // namespace performer::references
