// SPDX-License-Identifier: Apache-2.0
#include "performer/models/encoder_decoder.h"

#include <ATen/ATen.h>

#include "performer/base/error.h"

namespace performer {

EncoderDecoderImpl::EncoderDecoderImpl(EncoderDecoderConfig config) {
  check<UsageError>(config.encoder.width == config.decoder.width,
                    "encoder and decoder must have the same width, not {} and {}", config.encoder.width,
                    config.decoder.width);
  config.encoder.objective = "masked";  // sees both sides
  config.decoder.objective = "causal";
  encoder_ = register_module("encoder",
                             LanguageModel(config.encoder, config.encoder_attention, config.source_vocabulary,
                                           LanguageModelParts{.output = false}));
  decoder_ = register_module("decoder",
                             LanguageModel(config.decoder, config.decoder_attention, config.target_vocabulary,
                                           LanguageModelParts{.cross_attention = true}));
}

at::Tensor EncoderDecoderImpl::encode(const SequenceBatch& source) {
  return encoder_->hidden(source);
}

at::Tensor EncoderDecoderImpl::forward(const SequenceBatch& source, const SequenceBatch& target) {
  check<UsageError>(source.cu_seqlens.has_value() == target.cu_seqlens.has_value(),
                    "source and target must both be rows or both be packed segments");
  const nn::Context context{encode(source), source};
  return decoder_->forward(target, &context);
}

DecodeState EncoderDecoderImpl::begin(const SequenceBatch& source) {
  const at::NoGradGuard no_grad;
  const nn::Context context{encode(source), source};
  return decoder_->begin(source.tokens.size(0), &context);
}

at::Tensor EncoderDecoderImpl::step(const at::Tensor& tokens, DecodeState& state) const {
  return decoder_->step(tokens, state);
}

void EncoderDecoderImpl::redraw(int64_t index) {
  encoder_->redraw(index);
  decoder_->redraw(index);
}

}  // namespace performer
