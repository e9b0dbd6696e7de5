// SPDX-License-Identifier: Apache-2.0
// google-research's performer/fast_attention/jax as it computes, composed of LibTorch operations: feature
// creators, projections and the two factories of attentions, and the release of 2020 (fast_self_attention),
// which differs in one maximum. Differentiable by LibTorch. For models that continue from weights trained
// there; new models use ops::favor_attention, whose projections are Haar-distributed and whose features need
// neither epsilon nor guard.
//
// Where the reference's numbers are not what its paper describes: QR signs are not corrected (FAVOR+ is
// biased), the shift of keys is taken over the whole sequence, so that epsilon lets the future reach the
// past, denominators jump by twice the stabiliser where they are small, and redraws depend on the data.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "performer/references/jax/random.h"

namespace performer::references::jax {

// Projections.

// What a projection [rows, D] is made of: the Gaussians of each orthogonal block [N, D, D], N D >= rows, and
// those [rows, D] whose lengths its rows get (only with scaling 0).
struct GaussianDraw {
  at::Tensor blocks, row_norms;
};

struct ProjectionOptions {
  int64_t rows = 256;      // nb_features
  int64_t columns = 64;    // qkv_dim
  bool orthogonal = true;  // ortho_features; otherwise iid N(0, 1)
  int64_t scaling = 0;     // ortho_scaling: 0 lengths of Gaussian rows, 1 all sqrt(D); any other is refused
};

// Names a draw of this project's own counter-based generator.
struct DrawName {
  int64_t seed = 0, layer = 0, head = 0, redraw = 0;
};

// Q transposed of a Householder QR of each block, signs as LAPACK leaves them, stacked, cut to `rows` and
// scaled: [rows, D] in the type of the draw. Throws UsageError for another scaling, or when the draw is too
// small.
at::Tensor orthogonal_projection(const GaussianDraw& draw, int64_t rows, int64_t scaling = 0);

// Gaussians of the counter-based generator (float64): the same on every machine.
GaussianDraw draw_gaussians(int64_t rows, int64_t columns, const DrawName& name);
// [rows, columns] float32 from them: what the reference would make of these Gaussians.
at::Tensor draw_projection(const ProjectionOptions& options, const DrawName& name);
// [rows, columns] float32 as the reference's matrix classes draw it from a key of JAX's generator
// (get_2d_array): the directions from a chain of split keys, the lengths from the unsplit one.
at::Tensor draw_jax_projection(const ProjectionOptions& options, JaxKey key);
// The same as its attentions draw it from a seed (draw_weights). Without redraws they all use seed 0.
at::Tensor draw_jax_projection(const ProjectionOptions& options, int32_t seed);

// The reference's data-dependent seed: ceil(sum(query) 1e7) in float32, converted to int32 with saturation.
// So every sum beyond 214.7 gives one and the same matrix, and rounding decides the others.
float redraw_sum(const at::Tensor& query);  // sum(query) 1e7, the value before ceil
int32_t redraw_seed(const at::Tensor& query);

// Features of data [batch..., attention axes..., D] -> [batch..., attention axes..., features].

// Over what the largest u of the keys is taken: the features and attention axes of each batch entry and head,
// or the whole tensor, other sequences of the batch included, as the release of 2020 does.
enum class KeyShift : uint8_t { sequence, tensor };

struct PositiveFeatureOptions {
  bool is_query = true;
  int64_t attention_axes = 1;  // how many dimensions before the last one are attended over
  bool normalize_data = true;  // x = data D^(-1/4) for the kernel exp(q k / sqrt(D)); otherwise exp(q k)
  double epsilon = 1e-4;       // eps; the factory passes its stabiliser
  KeyShift key_shift = KeyShift::sequence;
};
// (exp(u - |x|^2/2 - shift) + epsilon) / sqrt(M), u = W x; shift is max u over the features of a query, over
// all keys for keys. The gradient goes through the maximum, ties sharing it equally.
at::Tensor positive_features(const at::Tensor& data, const at::Tensor& projection,
                             const PositiveFeatureOptions& options);

// [cos u, sin u] exp(|x|^2/2 - max |x|^2/2 over the attention axes) / sqrt(M): 2M features for queries and
// keys alike.
at::Tensor trigonometric_features(const at::Tensor& data, const at::Tensor& projection,
                                  int64_t attention_axes = 1, bool normalize_data = true);

// f(W x) + epsilon, or f(x) + epsilon without a projection: no 1/sqrt(M). `function` is a name of
// ops::activation; the reference registers relu, gelu, sigmoid, tanh, abs, exp, sin, cos, identity, requ and
// elu+1 ("shiftedelu").
at::Tensor generalized_features(const at::Tensor& data, const std::optional<at::Tensor>& projection,
                                const std::string& function = "relu", double epsilon = 1e-3,
                                bool normalize_data = false);

// Attention.

struct Attended {
  at::Tensor output;       // as `query`, with the values' last dimension
  at::Tensor denominator;  // [batch, axes not attended over..., heads, attention axes...], before the guard
};

// FastAttentionviaLowRankDecomposition: attention of any features. The bias, masks, dropout and type that the
// reference's call accepts and ignores do not exist here.
class FastAttention {
 public:
  // Features of data [batch..., attention axes..., D]; `projection` may be undefined.
  using Features = std::function<at::Tensor(const at::Tensor& data, const at::Tensor& projection,
                                            bool is_query, int64_t attention_axes)>;
  struct Options {
    bool renormalize = true;      // renormalize_attention: divide by the denominator
    double stabilizer = 0;        // numerical_stabilizer s: R becomes R + 2s where |R| <= s
    bool unidirectional = false;  // causal; one attention axis, as many keys as queries
    int64_t chunk = 64;           // tokens at a time when causal (lax_scan_unroll, 1 there): rounding only
  };

  // `projection` undefined and no `redraw` for features without one. With `redraw` every call draws anew, by
  // draw_jax_projection(*redraw, redraw_seed(query)): the reference's default, in evaluation too.
  FastAttention(Features features, const Options& options, at::Tensor projection,
                std::optional<ProjectionOptions> redraw = {});

  // query [B, axes..., H, D], key [B, axes..., H, D], value [B, axes..., H, E] -> [B, axes..., H, E].
  // Attended over the dimensions in `axis`, by default all between batch and heads; queries and keys may
  // differ in their size. Throws UsageError naming the dimension that does not fit, and for a unidirectional
  // attention over several axes.
  at::Tensor operator()(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        const std::vector<int64_t>& axis = {}) const;
  Attended attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const std::vector<int64_t>& axis = {}) const;
  // The projection that attention of this query uses; undefined without one.
  at::Tensor projection_for(const at::Tensor& query) const;
  const Options& options() const { return options_; }

 private:
  Features features_;
  Options options_;
  at::Tensor projection_;
  std::optional<ProjectionOptions> redraw_;
};

// make_fast_softmax_attention, parameter by parameter.
struct SoftmaxAttentionOptions {
  int64_t head_size = 64;                   // qkv_dim
  bool renormalize = true;                  // renormalize_attention
  double stabilizer = 1e-6;                 // numerical_stabilizer: of the features and of the denominator
  int64_t features = 256;                   // nb_features
  bool orthogonal = true;                   // ortho_features
  int64_t scaling = 0;                      // ortho_scaling, 0 or 1
  bool redraw = true;                       // redraw_features
  bool unidirectional = false;              // unidirectional
  bool nonnegative = true;                  // nonnegative_features: positive ones, otherwise trigonometric
  int64_t chunk = 64;                       // lax_scan_unroll
  KeyShift key_shift = KeyShift::sequence;  // tensor: fast_self_attention of 2020
};
// A given projection [features, head_size] replaces the draw and is never redrawn.
FastAttention make_fast_softmax_attention(const SoftmaxAttentionOptions& options,
                                          const std::optional<at::Tensor>& projection = {});

// make_fast_generalized_attention, parameter by parameter.
struct GeneralizedAttentionOptions {
  int64_t head_size = 64;   // qkv_dim
  bool renormalize = true;  // renormalize_attention
  double stabilizer = 0;    // numerical_stabilizer: of the denominator; at 0 a zero denominator gives NaN
  int64_t features = 256;   // nb_features; ignored when deterministic
  std::string features_type = "deterministic";  // ortho, iid, or deterministic: no projection at all
  std::string function = "relu";                // kernel_fn, a name of ops::activation
  double epsilon = 1e-3;                        // kernel_epsilon
  bool redraw = false;                          // redraw_features
  bool unidirectional = false;                  // unidirectional
  int64_t chunk = 64;                           // lax_scan_unroll
};
// A given projection [features, head_size] makes the features those of `ortho` and `iid`, whatever
// features_type.
FastAttention make_fast_generalized_attention(const GeneralizedAttentionOptions& options,
                                              const std::optional<at::Tensor>& projection = {});

// The same attentions as operators, performer::fast_softmax_attention and
// performer::fast_generalized_attention, with the options of theirs that do not name a draw; for callers that
// go through the dispatcher, such as Python.
at::Tensor fast_softmax_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                  const at::Tensor& projection, const SoftmaxAttentionOptions& options,
                                  const std::vector<int64_t>& axis = {});
at::Tensor fast_generalized_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                      const std::optional<at::Tensor>& projection,
                                      const GeneralizedAttentionOptions& options,
                                      const std::vector<int64_t>& axis = {});

}  // namespace performer::references::jax
