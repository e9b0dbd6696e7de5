// SPDX-License-Identifier: Apache-2.0
// Linear attention of one layer: the data of its feature map (random projections, learned matrices,
// statistics) and attention with it.
#pragma once

#include <torch/nn/module.h>

#include <optional>
#include <string>
#include <tuple>

#include "performer/nn/config.h"
#include "performer/nn/sequence_batch.h"
#include "performer/ops/feature_maps.h"

namespace performer::nn {

// The map that a favor-* kind stands for: favor-softmax is favor+, every other kind has the name of its map.
ops::FeatureMapOptions feature_map_options(const AttentionConfig& attention);

// One of the own maps (favor-* kinds), or a preset that reproduces a reference system
// (performer/compat/presets.h).
//
// Maps with statistics (oprf, sderf, aderf, saderf) measure them from each sequence when they may see all of
// it. Causal models must not look ahead, so they use running moments (buffers, of decay 0.99 a training step,
// zero at first, which is FAVOR+): update_statistics() moves them at a step boundary, never within one.
class LinearAttentionImpl : public torch::nn::Module {
 public:
  // `layer` names the random projections, together with attention.seed.
  LinearAttentionImpl(const AttentionConfig& attention, int64_t heads, int64_t head_size, bool causal,
                      int64_t layer);

  // query, key [B, T, H, D], value [B, T, H, E] -> [B, T, H, E] with the masks and segments of `batch`.
  at::Tensor forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const SequenceBatch& batch);
  // The same from the state of the tokens before, and the state after them; own maps of causal models only.
  std::tuple<at::Tensor, ops::State> continue_from(const ops::AttentionInputs& inputs);
  // One token, query, key [B, H, D], value [B, H, E] -> [B, H, E]; `state` is updated, made when undefined.
  // Presets have no state: UsageError.
  at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, ops::State& state);

  // Replaces the random projection in place by draw number `index`; does nothing for maps without one.
  void redraw(int64_t index);
  // Takes in the moments of the last training batch; call after an optimizer step.
  void update_statistics();

 private:
  at::Tensor preset_forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const SequenceBatch& batch) const;
  at::Tensor draw(int64_t index) const;
  ops::MapWeights weights() const;
  void note_statistics(const ops::AttentionInputs& inputs);

  AttentionConfig attention_;
  ops::FeatureMapOptions options_;
  std::string preset_;  // "" for own maps
  int64_t heads_, head_size_, layer_;
  bool causal_;
  at::Tensor projection_;                      // buffer [H or 1, P, D] float32, or undefined
  at::Tensor matrix_, bias_;                   // parameters, or undefined
  ops::MapStatistics running_;                 // buffers [H, D] and [H, D, D], or undefined
  ops::MapStatistics last_measured_;           // of the last training batch
  std::optional<ops::PreparedMap> streaming_;  // of step(): prepared once a sequence, not once a token
};
TORCH_MODULE(LinearAttention);

}  // namespace performer::nn
