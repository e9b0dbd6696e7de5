// SPDX-License-Identifier: Apache-2.0
// The `Performer` of performer-pytorch: blocks of linear attention and feed-forward parts, plain or
// reversible, with cross-attention blocks between them for decoders.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <string>
#include <vector>

#include "performer/references/performer_pytorch/attention.h"
#include "performer/references/performer_pytorch/feed_forward.h"
#include "performer/references/performer_pytorch/norms.h"

namespace performer::references::performer_pytorch {

struct PerformerStackOptions {
  int64_t dim = 512, depth = 6, heads = 8;
  int64_t dim_head = 64;                   // 0: dim / heads
  std::vector<int64_t> local_heads = {0};  // with windowed softmax: one number for all layers or one a layer
  int64_t local_window_size = 256;
  bool causal = false;
  int64_t features = 0;  // M; 0: int(d ln d)
  bool generalized = false;
  std::string kernel = "relu";  // of `generalized`
  bool no_projection = false;
  bool qkv_bias = true, out_bias = true;
  std::string norm = "layer-norm";  // scale-norm, rezero: see BranchNorm
  int64_t ff_mult = 4, ff_chunks = 1;
  bool ff_glu = false;
  double ff_dropout = 0, attn_dropout = 0;
  bool shift_tokens = false;  // nn::shift_tokens before every branch but those of cross-attention blocks
  bool cross_attend = false;  // after each block one that attends to a context
  bool reversible = false;    // two streams, both starting as x; the result is their sum
  // Random projections are replaced in every (interval + 1)-th forward call of the whole stack in training
  // mode; negative: never. With auto_redraw false only redraw() replaces them: for data-parallel training,
  // and when several forward calls make one optimizer step.
  int64_t redraw_interval = 1000;
  bool auto_redraw = true;
  int64_t seed = 0;  // names the projections, together with layer and redraw index
};

// Throws UsageError naming the option for impossible values and combinations.
void validate(const PerformerStackOptions& options);

// What a stack reads: x [B, T, dim], mask and, with cross_attend, context [B, S, dim] and context_mask.
using PerformerStackInputs = PerformerAttentionInputs;

// Attention and a feed-forward part with residuals: x + after(attention(before(x))), then the same with the
// feed-forward part. A mask reaches the token shift of the attention branch only, as in the reference.
class PerformerBlockImpl : public torch::nn::Module {
 public:
  // `layer` names the projection; `local_heads` of a cross-attention block are 0.
  PerformerBlockImpl(const PerformerStackOptions& options, int64_t layer, int64_t local_heads, bool cross);

  // The two branches, without their residuals: [B, T, dim] -> same.
  at::Tensor attend(const at::Tensor& x, const PerformerStackInputs& with);
  at::Tensor transform(const at::Tensor& x);

  void redraw(int64_t index) { attention_->redraw(index); }
  bool cross() const { return cross_; }

 private:
  bool cross_;
  std::vector<int64_t> shifts_;  // none without shift_tokens
  BranchNorm attention_norm_{nullptr}, feed_forward_norm_{nullptr};
  PerformerAttention attention_{nullptr};
  FeedForward feed_forward_{nullptr};
};
TORCH_MODULE(PerformerBlock);

// How far the redraws are; part of what a resumed training needs besides parameters and buffers.
struct RedrawState {
  int64_t calls = 0;  // forward calls in training mode since the last redraw
  int64_t index = 0;  // of the projections in use
};

// Blocks are submodules blocks_0, blocks_1, ...; with cross_attend every second one is a cross-attention
// block.
class PerformerStackImpl : public torch::nn::Module {
 public:
  explicit PerformerStackImpl(const PerformerStackOptions& options);

  // [B, T, dim]. Throws UsageError for inputs that do not fit the options.
  at::Tensor forward(const PerformerStackInputs& inputs);

  // Replaces all projections by draw number `index`, now; no effect after fix_projections().
  void redraw(int64_t index);
  void fix_projections() { fixed_ = true; }
  RedrawState redraw_state() const { return redraws_; }
  void set_redraw_state(RedrawState state) { redraws_ = state; }  // of the imported or resumed projections

  // Reversible stacks: reconstruct activations in the backward pass (the default; memory does not grow with
  // depth) or keep them (about a third less work). The function computed is the same.
  void set_reconstruct(bool on) { reconstruct_ = on; }

  const PerformerStackOptions& options() const { return options_; }

 private:
  void check_inputs(const PerformerStackInputs& inputs) const;
  void count_training_call();
  at::Tensor forward_reversible(const PerformerStackInputs& inputs);

  PerformerStackOptions options_;
  std::vector<PerformerBlock> blocks_;
  RedrawState redraws_;
  bool fixed_ = false, reconstruct_ = true;
};
TORCH_MODULE(PerformerStack);

}  // namespace performer::references::performer_pytorch
