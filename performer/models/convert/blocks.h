// SPDX-License-Identifier: Apache-2.0
// What families share: the layers of a block under other names.
#pragma once

#include <string>

#include "performer/models/convert/source_weights.h"
#include "performer/nn/config.h"

namespace performer::convert {

// Names of a block's parts in a source, without ".weight" and ".bias".
struct BlockNames {
  std::string query, key, value, out, attention_norm, ffn_norm, up, down;
  std::string gate = {};  // only with model.ffn_gate
};
// Takes the tensors of block `layer` into `ours`. Which biases there are is what the configuration says;
// biases of the attention that the source lacks are zeros.
void take_block(SourceWeights& weights, const ModelConfig& model, int64_t layer, const BlockNames& names,
                Tensors& ours);
// NAME.weight and NAME.bias (where `bias`) as TARGET.weight and TARGET.bias.
void take_linear(SourceWeights& weights, const std::string& name, const std::string& target, int64_t out,
                 int64_t in, bool bias, Tensors& ours);
void take_norm(SourceWeights& weights, const ModelConfig& model, const std::string& name,
               const std::string& target, Tensors& ours);
// The head of BERT, RoBERTa and ESM: dense and norm of model.output_head = transform.
void take_transform(SourceWeights& weights, const ModelConfig& model, const std::string& dense,
                    const std::string& norm, Tensors& ours);

// Rotary positions turn the pairs (2i, 2i + 1) of a head here; Hugging Face's and fairseq's turn (i, i +
// D/2). These reorder the rows [H D, ...] of a projection, or its bias, accordingly; scores of attention stay
// the same.
at::Tensor neighbouring_pairs(const at::Tensor& rows, int64_t head_size);  // theirs to ours
at::Tensor half_pairs(const at::Tensor& rows, int64_t head_size);          // ours to theirs
// neighbouring_pairs() of queries and keys of all blocks.
void pair_neighbours(const ModelConfig& model, Tensors& ours);

// The name of an activation function of Hugging Face as ours. Throws InputError naming `source` for others.
std::string activation_named(const std::string& name, const std::string& source);

}  // namespace performer::convert
