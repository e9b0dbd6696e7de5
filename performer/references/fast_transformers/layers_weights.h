// SPDX-License-Identifier: Apache-2.0
// Names and layouts of other implementations' encoders, turned into those of layers.h for
// import_weights().
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

namespace performer::references::fast_transformers {

using NamedTensors = std::map<std::string, at::Tensor>;

// torch.nn.TransformerEncoder and TransformerDecoder: their MultiheadAttention's in_proj_weight and
// in_proj_bias are cut into query, key and value projections (or taken from q_, k_ and v_proj_weight),
// out_proj becomes out_projection. A model with multihead_attn is a decoder: self_attn becomes self_attention
// and multihead_attn cross_attention; else self_attn becomes attention. Tensors named softmax_temp are left
// out, all others keep their names. Layers must be post-norm, the default there; nothing in the weights
// tells. Throws InputError for an in_proj whose first size is no multiple of three.
NamedTensors from_torch_transformer(const NamedTensors& weights);

// Encoders of the BERT family: layer.N.attention.self.{query,key,value}, attention.output.dense and
// LayerNorm, intermediate.dense, output.dense and LayerNorm. Others keep their names. BERT's norms add 1e-12
// to the variance, these layers 1e-5.
NamedTensors from_bert_encoder(const NamedTensors& weights);

// The same without the *_global projections of Longformer.
NamedTensors from_longformer_encoder(const NamedTensors& weights);

}  // namespace performer::references::fast_transformers
