// SPDX-License-Identifier: Apache-2.0
// Multi-head attention over any attention kind.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>

#include <functional>
#include <memory>

#include "performer/nn/attention/kind.h"
#include "performer/nn/config.h"
#include "performer/nn/sequence_batch.h"
#include "performer/ops/favor.h"

namespace performer::nn {

// Called with what attention sees in a forward pass: queries and keys [B, T, H, D] (normalised and turned by
// their positions; undefined for kinds that do not read them) and values.
using HeadsObserver =
    std::function<void(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value)>;

// What a layer attends to: its own sequence, or in a decoder the encoded source sequence.
enum class AttentionRole { self, cross };

// Queries, keys and values of each head, attention of a registered kind (performer/nn/attention/kind.h), and
// an output projection. Weights are Xavier-uniform, biases (an option) zero, as in protein_lm.
//
// attention.local_heads: that many heads, the last ones, use kind `local` instead. attention.begin_kernel:
// the other heads use exact attention for the first queries of each sequence (Keras KernelAttention's option
// of that name, where such queries also have an output projection of their own).
class MultiHeadAttentionImpl : public torch::nn::Module {
 public:
  // What attention sees: queries and keys [B, T, H, D], undefined for kinds that do not read them, and
  // values.
  struct Heads {
    at::Tensor query, key, value;
    Heads part(int64_t first, int64_t count) const;  // some of the heads
    Heads first_tokens(int64_t count) const;
  };

  // `layer` names the random projections, together with attention.seed. Cross-attention is bidirectional,
  // without positions, local heads and begin_kernel.
  // `shared` is for kinds whose layers share weights.
  MultiHeadAttentionImpl(const ModelConfig& model, const AttentionConfig& attention, int64_t layer,
                         AttentionRole role = AttentionRole::self,
                         const std::shared_ptr<SharedWeights>& shared = nullptr);

  // x [B, T, width] -> [B, T, width]; masks and segments from `batch`. Masked keys are not seen; masked rows
  // attend to nothing and give out(0).
  at::Tensor forward(const at::Tensor& x, const SequenceBatch& batch);
  // Cross-attention: x [B, T, width] reads context [B, S, width]; the masks, or the segments, of both.
  at::Tensor attend_to(const at::Tensor& x, const SequenceBatch& batch, const at::Tensor& context,
                       const SequenceBatch& context_batch);

  // Streaming of causal models: a cache of sequences without tokens, and one token of each, x [B, width],
  // positions [B] int64 -> [B, width], or T of them, x [B, T, width], positions [B, T] -> [B, T, width].
  // `rotary` as in SequenceBatch, of positions [B, 1] or [B, T]. No gradients.
  std::unique_ptr<Cache> begin(int64_t batch) const;
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, Cache& cache,
                  const at::Tensor& rotary = {}) const;
  // A long sequence of a bidirectional model, piece by piece (reads_pieces()): first each piece x [1, C,
  // width] adds its keys and values to `context`, which begins as null; then each reads all of them.
  // Positions [1, C]; `rotary` as in SequenceBatch. No gradients.
  bool reads_pieces() const;
  void take_in(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary,
               std::unique_ptr<Cache>& context) const;
  at::Tensor read_piece(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary,
                        const Cache& context) const;
  // The same where the sequence lies in slices on several ranks (has_state()): each piece adds its keys and
  // values to the state of the slice, undefined at first. Behind state_seen() of nn/sliced_attention.h the
  // pieces of a bidirectional model read what it gives, and those of a causal one go on from there by
  // forward_chunk(). No gradients.
  bool has_state() const;
  ops::State add_to_state(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary,
                          const ops::State& before) const;
  at::Tensor read_state(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary,
                        const ops::State& state) const;
  // Streaming of decoders: what cross-attention keeps of the context, and x [B, T, width] that reads it.
  std::unique_ptr<Cache> begin_cross(const at::Tensor& context, const SequenceBatch& context_batch) const;
  at::Tensor read(const at::Tensor& x, const Cache& cache) const;

  // Consecutive tokens of a batch, x [B, C, width] -> [B, C, width], with the masks and segments of these
  // tokens alone in `batch`. `initial` is the state that the chunk before left, undefined when no sequence
  // goes on from there: a state for each row, or when packed one, of the first segment. `final`, unless null,
  // becomes the state after the chunk, of each row or of the last segment. Causal models of kinds with
  // Capabilities::chunks, without local heads and begin_kernel. Differentiable in x and in kv and key_sum of
  // `initial`.
  at::Tensor forward_chunk(const at::Tensor& x, const SequenceBatch& batch, const ops::State& initial,
                           ops::State* final);

  // The step of forward() between the projections: [B, T, H, E], with the masks and segments of `batch`.
  at::Tensor attend(const Heads& heads, const SequenceBatch& batch);
  // Rows of the matrices that attend() applies to the values of each head, [B, H, R, T] (kind.h). Throws
  // UsageError unless the kind has Capabilities::rows.
  at::Tensor rows(const Heads& heads, const SequenceBatch& batch, const RowRange& range);

  // Replaces random projections in place by draw number `index`.
  void redraw(int64_t index);
  // Called after every optimizer step.
  void after_step();
  // Parameters of other layers that this one reads.
  std::vector<at::Tensor> borrowed() const;
  void observe(HeadsObserver observer) { observer_ = std::move(observer); }
  const AttentionConfig& config() const { return attention_; }

 private:
  struct StreamCache;
  bool causal() const { return role_ == AttentionRole::self && model_.objective == "causal"; }
  int64_t global_heads() const { return model_.heads - local_heads_; }
  void make_kinds(int64_t layer, const std::shared_ptr<SharedWeights>& shared);
  at::Tensor split(const at::Tensor& flat) const { return flat.unflatten(-1, {-1, head_size_}); }
  // Keys or values [..., kv_heads, D], once for each query head that they serve: [..., H, D].
  at::Tensor for_all_heads(const at::Tensor& shared) const;
  at::Tensor project_out(const at::Tensor& heads) const;  // [..., H, D] -> [..., width]
  Heads project(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary) const;
  // Of tokens [B, T, width], normalised, not yet turned by their positions: [B, T, H, D].
  at::Tensor queries_of(const at::Tensor& x) const;
  at::Tensor keys_of(const at::Tensor& x) const;
  // The same turned by their positions, keys and values for each head that they serve.
  at::Tensor turned_queries(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary) const;
  at::Tensor turned_keys(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary) const;
  at::Tensor values_of(const at::Tensor& x) const;
  at::Tensor project_at_once(const at::Tensor& x) const;  // [B, T, width] -> [B, T, 3 H D]
  // What turns queries and keys by their positions; undefined without rotary positions.
  at::Tensor turns(const at::Tensor& positions, const at::Tensor& rotary, at::ScalarType type) const;
  ops::AttentionInputs inputs_of(const Heads& heads, const SequenceBatch& batch) const;
  // The global heads of the next tokens; `one` by one where that is asked.
  at::Tensor attend_next(const Heads& heads, StreamCache& cache, bool one) const;
  at::Tensor attend_exactly_first(const at::Tensor& out, const ops::AttentionInputs& inputs);

  ModelConfig model_;
  AttentionConfig attention_;
  AttentionRole role_;
  int64_t head_size_, kv_heads_, local_heads_ = 0, begin_kernel_ = 0;
  // Kinds without keys of their own have neither key_ nor key_gain_: there the queries are the keys.
  torch::nn::Linear query_{nullptr}, key_{nullptr}, value_{nullptr}, out_{nullptr};
  at::Tensor query_gain_, key_gain_;  // [H, D] and [kv_heads, D], undefined without qk_norm
  at::Tensor temperature_;            // [H], undefined without learned_temperature
  Capabilities can_;                  // of the kind
  std::shared_ptr<Attention> kind_;   // of the global heads, null when all heads are local
  std::shared_ptr<Attention> local_;  // null without local heads
  std::shared_ptr<Attention> exact_;  // of begin_kernel, else null
  HeadsObserver observer_;
};
TORCH_MODULE(MultiHeadAttention);

}  // namespace performer::nn
