// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/encoder_decoder.h"

#include <ATen/ATen.h>

#include "performer/base/error.h"
#include "performer/nn/evaluation_scope.h"

namespace performer::references::performer_pytorch {

EncoderDecoderImpl::EncoderDecoderImpl(const EncoderDecoderOptions& options) {
  check<UsageError>(options.encoder.stack.dim == options.decoder.stack.dim,
                    "encoder and decoder must have the same dim, not {} and {}", options.encoder.stack.dim,
                    options.decoder.stack.dim);
  check<UsageError>(!options.tie_token_embeddings || options.encoder.vocabulary == options.decoder.vocabulary,
                    "tied token embeddings need one vocabulary, not {} and {} tokens",
                    options.encoder.vocabulary, options.decoder.vocabulary);
  PerformerLMOptions encoder = options.encoder, decoder = options.decoder;
  encoder.output = false;
  decoder.output = true;
  decoder.stack.causal = decoder.stack.cross_attend = true;
  encoder_ = register_module("encoder", PerformerLM(encoder));
  decoder_ = register_module("decoder", Autoregressive(PerformerLM(decoder), options.autoregressive));
  if (options.tie_token_embeddings) encoder_->share_token_embedding(decoder_->net()->token_embedding());
}

at::Tensor EncoderDecoderImpl::encode(const at::Tensor& source,
                                      const std::optional<at::Tensor>& source_mask) {
  PerformerLMInputs inputs;
  inputs.tokens = source;
  inputs.mask = source_mask;
  return encoder_->encode(inputs);
}

at::Tensor EncoderDecoderImpl::forward(const at::Tensor& source, const at::Tensor& target,
                                       const std::optional<at::Tensor>& source_mask,
                                       const std::optional<at::Tensor>& target_mask) {
  PerformerLMInputs inputs;
  inputs.tokens = target;
  inputs.mask = target_mask;
  inputs.context = encode(source, source_mask);
  inputs.context_mask = source_mask;
  return decoder_(inputs);
}

at::Tensor EncoderDecoderImpl::generate(const at::Tensor& source, const at::Tensor& start, int64_t steps,
                                        const DecodingOptions& options,
                                        const std::optional<at::Tensor>& source_mask,
                                        const std::optional<at::Tensor>& start_mask) {
  const at::NoGradGuard no_grad;
  const EvaluationScope evaluation(*encoder_);
  PerformerLMInputs inputs;
  inputs.context = encode(source, source_mask);
  inputs.tokens = start;
  inputs.mask = start_mask;
  inputs.context_mask = source_mask;
  return decoder_->generate(inputs, steps, options);
}

}  // namespace performer::references::performer_pytorch
