// SPDX-License-Identifier: Apache-2.0
// Sequence to sequence: the `PerformerEncDec` of performer-pytorch.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <optional>

#include "performer/references/performer_pytorch/autoregressive.h"
#include "performer/references/performer_pytorch/language_model.h"

namespace performer::references::performer_pytorch {

struct EncoderDecoderOptions {
  // Both with the same stack.dim. The encoder has no output layer, whatever its options say; the decoder is
  // causal and attends to the encoder's result.
  PerformerLMOptions encoder, decoder;
  bool tie_token_embeddings = false;  // one token embedding, the decoder's; needs equal vocabularies
  AutoregressiveOptions autoregressive;
};

// Submodules `encoder` (PerformerLM) and `decoder` (Autoregressive). The mask of the source is also the mask
// of the decoder's cross-attention.
class EncoderDecoderImpl : public torch::nn::Module {
 public:
  explicit EncoderDecoderImpl(const EncoderDecoderOptions& options);  // UsageError where the two do not fit

  // Encodings [B, S, dim] of source tokens int64 [B, S]; mask bool [B, S].
  at::Tensor encode(const at::Tensor& source, const std::optional<at::Tensor>& source_mask = {});
  // Mean loss (scalar) of target tokens [B, T], T >= 2, given the source.
  at::Tensor forward(const at::Tensor& source, const at::Tensor& target,
                     const std::optional<at::Tensor>& source_mask = {},
                     const std::optional<at::Tensor>& target_mask = {});
  // `steps` tokens after `start` [B, T] given the source: see Autoregressive. The encoder runs in evaluation
  // mode too; the reference leaves it as it is.
  at::Tensor generate(const at::Tensor& source, const at::Tensor& start, int64_t steps,
                      const DecodingOptions& options = {}, const std::optional<at::Tensor>& source_mask = {},
                      const std::optional<at::Tensor>& start_mask = {});

  PerformerLM encoder() const { return encoder_; }
  Autoregressive decoder() const { return decoder_; }

 private:
  PerformerLM encoder_{nullptr};
  Autoregressive decoder_{nullptr};
};
TORCH_MODULE(EncoderDecoder);

}  // namespace performer::references::performer_pytorch
