// SPDX-License-Identifier: Apache-2.0
// Multi-head attention in the form of performer-pytorch 1.1.4: global heads with linear attention beside
// local heads with windowed softmax attention, for self- and cross-attention.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>

#include <cstdint>
#include <optional>
#include <string>

namespace performer::references::performer_pytorch {

struct PerformerAttentionOptions {
  int64_t dim = 512, heads = 8;
  int64_t dim_head = 64;    // 0: dim / heads
  int64_t local_heads = 0;  // the last heads; the others are global
  int64_t local_window_size = 256;
  int64_t features = 0;  // M of the global heads; 0: int(d ln d)
  // The projection is replaced in every (interval + 1)-th forward call in training mode; 0: in each,
  // negative: never. A module whose forward runs twice a step (recomputation, reversible layers) needs a
  // negative value and redraw() between steps.
  int64_t redraw_interval = 1000;
  bool causal = false;
  bool generalized = false;    // features f(W x) + 1e-3 instead of positive softmax features
  bool no_projection = false;  // features are softmaxes ("efficient attention"): no random features
  bool qkv_bias = false, out_bias = true;
  bool cross = false;           // keys and values from a context; needs local_heads = 0
  std::string kernel = "relu";  // f of `generalized`: a name of ops::activation
  double dropout = 0;           // of the output, and of the attention weights of local heads
  int64_t seed = 0, layer = 0;  // name the random projection, together with the redraw index
};

struct PerformerAttentionInputs {
  at::Tensor x;  // [B, T, dim]
  // Rotary table [T, D] or [1, T, D]: sines in the first half of the columns, cosines in the second, of the
  // D/2 angles of each token. It turns neighbouring pairs of the global heads' queries and keys; local heads
  // have their own positions, and cross-attention has none, so that a table is not used there.
  std::optional<at::Tensor> positions = {};
  std::optional<at::Tensor> context = {};       // [B, S, dim], cross-attention only
  std::optional<at::Tensor> mask = {};          // bool [B, T], true keeps
  std::optional<at::Tensor> context_mask = {};  // bool [B, S], true keeps
};

// performer-pytorch 1.1.4 and local-attention 1.11.2, questionable behaviour included: one projection [M, D]
// for all heads whose QR signs are left alone, feature epsilons, masks that only set the values of global
// heads to zero, `mask` without effect in cross-attention, a causal form cut to the shorter of queries and
// keys. In self-attention the global heads prefer `context_mask` to `mask`.
//
// State: to_q, to_k, to_v, to_out (weight, bias), fast_attention.projection_matrix, and with local heads
// local_attn.rel_pos.inv_freq. With redraw_interval >= 0 also fast_attention.calls_since_last_redraw and
// fast_attention.redraws, so that training resumes exactly; the reference counts once for a whole stack
// instead.
//
// Errors: UsageError for impossible options and for inputs that contradict them.
class PerformerAttentionImpl : public torch::nn::Module {
 public:
  explicit PerformerAttentionImpl(PerformerAttentionOptions options);

  // -> [B, T, dim]; causal with a shorter context: [B, S, dim].
  at::Tensor forward(const PerformerAttentionInputs& inputs);

  // Replaces the projection in place by draw number `index` (a fresh module has number 0): the same on every
  // machine. No effect without a projection or after fix_projection().
  void redraw(int64_t index);
  // No redraws from now on, automatic or not.
  void fix_projection() { fixed_ = true; }
  bool projection_fixed() const { return fixed_; }

  const PerformerAttentionOptions& options() const { return options_; }

 private:
  struct Heads {
    at::Tensor query, key, value;                    // [B, T or S, H, D]
    Heads part(int64_t first, int64_t count) const;  // of the heads
  };
  void check_inputs(const PerformerAttentionInputs& inputs) const;
  Heads project(const PerformerAttentionInputs& inputs);
  at::Tensor attend_global(const Heads& heads, const PerformerAttentionInputs& inputs) const;
  at::Tensor attend_local(const Heads& heads, const PerformerAttentionInputs& inputs) const;
  at::Tensor draw(int64_t index) const;  // [M, D]
  void count_training_forward();

  PerformerAttentionOptions options_;  // with the defaults resolved
  int64_t global_heads_ = 0;
  bool fixed_ = false;
  torch::nn::Linear to_q_{nullptr}, to_k_{nullptr}, to_v_{nullptr}, to_out_{nullptr};
  at::Tensor projection_;       // buffer [M, D]
  at::Tensor rates_;            // buffer [D/2]: angles of local heads per position; undefined without them
  at::Tensor calls_, redraws_;  // scalar buffers, undefined unless redraws are automatic
};
TORCH_MODULE(PerformerAttention);

}  // namespace performer::references::performer_pytorch
