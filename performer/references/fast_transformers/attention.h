// SPDX-License-Identifier: Apache-2.0
// Feature maps and linear attention as pytorch-fast-transformers 0.4.0 computes them, questionable behaviour
// included (Katharopoulos et al., arXiv 2006.16236; random features of Performers, arXiv 2009.14794). For
// numbers that must agree with that library; the project's own form of the same ideas is
// performer/ops/feature_maps.h. Letters: N batch, L queries, S keys, H heads, D head size, M features,
// E values.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <optional>
#include <string>

#include "performer/base/fields.h"
#include "performer/base/philox.h"

namespace performer::references::fast_transformers {

// Columns of random directions as fast-transformers draws them, from recorded Gaussian blocks [B, D, D]:
// column j of a block is column j of Q (Householder QR, signs as LAPACK leaves them, so not Haar) times the
// length of ROW j of the same block, so direction and length are not independent. -> [D, columns], in the
// type of the blocks. Throws c10::ValueError when B D < columns.
at::Tensor orthogonal_random_matrix(const at::Tensor& normal_blocks, int64_t columns);
// The same from the values of `stream`; -> [rows, columns] float32.
at::Tensor orthogonal_random_matrix(int64_t rows, int64_t columns, PhiloxStream& stream);

struct FeatureMapOptions {
  std::string map = "elu";
  std::string function = "relu";
  int64_t n_dims = 0;
  double softmax_temp = 0;
  std::string draw = "auto";
  bool stabilize = false;
  double smoothing = 1;
  int64_t redraw = 1;
  bool deterministic_eval = false;
  bool keep_schedule = false;
  int64_t seed = 0;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("map", self.map,
          "elu (elu(x) + 1), activation (`function` of x), favor, random-fourier, smoothed-random-fourier or "
          "generalized",
          Choices{"elu", "activation", "favor", "random-fourier", "smoothed-random-fourier", "generalized"});
    visit("function", self.function, "element-wise function of the maps activation and generalized");
    visit("n_dims", self.n_dims, "features of a random map; 0: the head size");
    visit("softmax_temp", self.softmax_temp,
          "temperature t: random maps see sqrt(t) x; 0: 1 / sqrt(head size), for generalized 1");
    visit("draw", self.draw,
          "orthogonal, iid, or auto: orthogonal for favor and generalized, iid for the Fourier maps",
          Choices{"auto", "orthogonal", "iid"});
    visit("stabilize", self.stabilize,
          "favor: adds max |x|^2 over the second dimension to the exponents' offset");
    visit("smoothing", self.smoothing, "constant feature that smoothed-random-fourier appends");
    visit("redraw", self.redraw,
          "calls of new_feature_map() between two draws; 0: the first draw stays for ever");
    visit("deterministic_eval", self.deterministic_eval, "never draw in evaluation mode");
    visit("keep_schedule", self.keep_schedule,
          "save the number of calls with the weights. fast-transformers does not, so that its first call "
          "after loading replaces "
          "the loaded projection");
    visit("seed", self.seed, "names the draws, together with layer and draw number");
  }
};

// One feature map with its random projection, the buffer `omega` [D, n_dims / 2] (generalized: [D, n_dims]).
// For x scaled by sqrt(t), u = x omega and n the number of features asked for:
//
//   map                      features                                                  how many
//   elu                      elu(x) + 1                                                D
//   activation               f(x), no epsilon                                          D
//   favor                    exp(u - |x|^2/2 - ln(n)/2), exp(-u - |x|^2/2 - ln(n)/2)   2 floor(n/2)
//   random-fourier           sqrt(2/n) [cos u, sin u]: kernel exp(-t |x - y|^2 / 2)    2 floor(n/2)
//   smoothed-random-fourier  random-fourier of n - 1 features, and the constant s      2 floor((n-1)/2) + 1
//   generalized              f(u), no epsilon and no 1/sqrt(n)                         n
//
// Kept from the library: generalized scales x only if t is not 1. Factors use n where it is odd and n - 1
// features exist, so that smoothed maps of even n (the default) have the self-kernel (n - 2) / (n - 1) + s^2.
// A request that leaves no pair of features leaves none (smoothed: the constant alone, but a request for 1 is
// the default). `stabilize` of favor subtracts max |x|^2, twice the half square, so that features shrink
// instead of staying near 1; it sees padded tokens too, and takes its maximum over dimension 1 of any shape:
// tokens of [N, L, H, D], but heads of the recurrent [N, H, D].
class FeatureMapImpl : public torch::nn::Module {
 public:
  // `layer` names the draws, beside the seed. Throws UsageError for unknown names and impossible sizes.
  FeatureMapImpl(const FeatureMapOptions& options, int64_t query_dimensions, int64_t layer = 0);

  // x [..., D] -> [..., M] in the type of x.
  at::Tensor forward(const at::Tensor& x) const;

  // Attention calls this once a forward pass, recurrent attention once a sequence. Draws a new omega in the
  // first call and then in every `redraw`-th, counting the calls that `deterministic_eval` does not skip. A
  // draw is a function of (seed, layer, draw number). Tensors of earlier passes keep the omega they were
  // computed with.
  void new_feature_map();

  int64_t size() const;  // M
  int64_t n_dims() const {
    return n_dims_;
  }  // fast-transformers' own count: one less if smoothed, twice if generalized
  double softmax_temp() const { return softmax_temp_; }
  const at::Tensor& omega() const { return omega_; }  // undefined for elu and activation
  const FeatureMapOptions& options() const { return options_; }

 private:
  at::Tensor draw(int64_t number) const;

  FeatureMapOptions options_;
  int64_t query_dimensions_, layer_, n_dims_ = 0;
  double softmax_temp_ = 0;
  at::Tensor omega_, calls_;  // calls_: int64 scalar, a buffer only with keep_schedule
};
TORCH_MODULE(FeatureMap);

// sum_s (phi_q . phi_k) v / (sum_s phi_q . phi_k + eps): phi_q [N, L, H, M], phi_k [N, S, H, M], value [N, S,
// H, E] -> [N, L, H, E]. key_mask bool [N, S], true keeps, multiplies key features; a query without keys
// gives 0. Sums are in double: gradients are differences of nearly equal numbers where one key has all the
// weight, and sums in float32 leave little of them.
at::Tensor linear_attention(const at::Tensor& phi_q, const at::Tensor& phi_k, const at::Tensor& value,
                            const std::optional<at::Tensor>& key_mask = {}, double eps = 1e-6);

// The same over keys s <= l. Keys beyond the L-th are dropped, after the map. Throws UsageError when L > S
// (there the reference reads past the end of the values).
at::Tensor causal_linear_attention(const at::Tensor& phi_q, const at::Tensor& phi_k, const at::Tensor& value,
                                   const std::optional<at::Tensor>& key_mask = {}, double eps = 1e-6);

// out_l = sum_{s <= l} (q_l . k_s) v_s, no denominator: q, k [N, H, L, M], v [N, H, L, E] -> [N, H, L, E];
// float32 or float64 (half types are summed in float32). `chunk` tokens at a time; only q, k and v are kept
// for the backward pass, which sums again: forwards for dq, backwards for dk and dv. Nothing is recovered by
// subtraction. Differentiable once.
at::Tensor causal_dot_product(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              int64_t chunk = 64);

// Sums of recurrent attention. Self-attention: s [N, H, M, E]. Cross-attention: s [N, H, E, M], transposed,
// as in fast-transformers. z [N, H, M] in both.
struct LinearState {
  at::Tensor s, z;
  bool defined() const { return s.defined(); }
};

// One more token: phi_q, phi_k [N, H, M], value [N, H, E] -> [N, H, E] over all tokens so far. `state` is
// made when undefined, and updated in place unless gradients are recorded. Throws UsageError when the batch
// size has changed.
at::Tensor recurrent_linear_attention(const at::Tensor& phi_q, const at::Tensor& phi_k,
                                      const at::Tensor& value, LinearState& state, double eps = 1e-6);

// What recurrent cross-attention keeps of a memory: phi_k [N, S, H, M], value [N, S, H, E], key_mask as
// above.
LinearState cross_linear_summary(const at::Tensor& phi_k, const at::Tensor& value,
                                 const std::optional<at::Tensor>& key_mask = {});
// phi_q [N, H, M] -> [N, H, E].
at::Tensor recurrent_cross_linear_attention(const at::Tensor& phi_q, const LinearState& state,
                                            double eps = 1e-6);

}  // namespace performer::references::fast_transformers
