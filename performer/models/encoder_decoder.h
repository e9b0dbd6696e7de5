// SPDX-License-Identifier: Apache-2.0
// Sequence to sequence: an encoder that sees its whole source, and a causal decoder that attends to it.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>

#include "performer/models/language_model.h"

namespace performer {

struct EncoderDecoderConfig {
  ModelConfig encoder, decoder;  // of the same width; their objectives are set by the model
  AttentionConfig encoder_attention, decoder_attention;
  int64_t source_vocabulary = 0, target_vocabulary = 0;  // must be given
};

// Submodules `encoder` and `decoder`, both LanguageModels. With linear attention a decoder keeps a summary of
// the source whose size does not depend on its length, so each generated token costs the same.
class EncoderDecoderImpl : public torch::nn::Module {
 public:
  // Throws UsageError where encoder and decoder do not fit together, and for attention kinds of the decoder
  // without cross-attention.
  explicit EncoderDecoderImpl(EncoderDecoderConfig config);

  // Encodings [B, S, width] of a source; rows with a mask, or packed segments.
  at::Tensor encode(const SequenceBatch& source);
  // Logits [B, T, target_vocabulary] of the target's next tokens. When packed, segment i of the target
  // attends to segment i of the source.
  at::Tensor forward(const SequenceBatch& source, const SequenceBatch& target);

  // Streaming: reads the source (rows, not segments) once; then one target token [B] at a time gives the
  // logits [B, target_vocabulary] of the next, as LanguageModelImpl::step() does.
  DecodeState begin(const SequenceBatch& source);
  at::Tensor step(const at::Tensor& tokens, DecodeState& state) const;

  void redraw(int64_t index);
  LanguageModel encoder() const { return encoder_; }
  LanguageModel decoder() const { return decoder_; }

 private:
  LanguageModel encoder_{nullptr}, decoder_{nullptr};
};
TORCH_MODULE(EncoderDecoder);

}  // namespace performer
