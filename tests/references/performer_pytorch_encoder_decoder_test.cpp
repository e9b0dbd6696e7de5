// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/encoder_decoder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <string>

#include "performer/base/error.h"
#include "performer/references/performer_pytorch/import.h"

namespace performer::references::performer_pytorch {
namespace {

PerformerLMOptions half() {
  PerformerLMOptions options;
  options.vocabulary = 7;
  options.max_length = 10;
  options.stack.dim = 8;
  options.stack.depth = 1;
  options.stack.heads = options.stack.ff_mult = 2;
  options.stack.dim_head = 4;
  options.stack.features = 8;
  return options;
}

EncoderDecoder small_pair(bool tie = false) {
  torch::manual_seed(9);
  EncoderDecoderOptions options;
  options.encoder = options.decoder = half();
  options.tie_token_embeddings = tie;
  EncoderDecoder model(options);
  const at::NoGradGuard no_grad;
  for (at::Tensor& parameter : model->parameters()) parameter.normal_(0, 0.5);
  return model;
}

at::Tensor tokens(std::vector<int64_t> values) {
  return at::tensor(values, at::kLong).unsqueeze(0);
}

TEST(EncoderDecoder, ReadsItsSource) {
  EncoderDecoder model = small_pair();
  const at::Tensor target = tokens({1, 2, 3});
  const double loss = model->forward(tokens({1, 2, 3}), target).item<double>();
  EXPECT_NE(model->forward(tokens({1, 2, 4}), target).item<double>(), loss);
}

TEST(EncoderDecoder, TiedEmbeddingsAreOneParameter) {
  EncoderDecoder tied = small_pair(true), apart = small_pair(false);
  EXPECT_EQ(apart->parameters().size(), tied->parameters().size() + 1);
  EXPECT_FALSE(tied->named_parameters().contains("encoder.token_embedding.weight"));
  // A token of the source only: its gradient must reach the shared table through the encoder.
  tied->forward(tokens({6, 5}), tokens({1, 2, 3})).backward();
  const at::Tensor gradient = tied->named_parameters()["decoder.net.token_embedding.weight"].grad();
  EXPECT_GT(gradient[6].abs().max().item<double>(), 0);
  EXPECT_GT(gradient[1].abs().max().item<double>(), 0);
  EXPECT_EQ(gradient[4].abs().max().item<double>(), 0);
  tied->to(at::kDouble);  // the encoder follows although the table is the decoder's
  EXPECT_EQ(tied->encode(tokens({1, 2})).scalar_type(), at::kDouble);
}

TEST(EncoderDecoder, ImportRefusesTiedEmbeddingsThatDiffer) {
  EncoderDecoder model = small_pair(true);
  const std::map<std::string, at::Tensor> weights = {{"enc.token_emb.weight", at::zeros({7, 8})},
                                                     {"dec.net.token_emb.weight", at::ones({7, 8})}};
  try {
    import_performer_pytorch(*model, weights);
    FAIL() << "embeddings that differ were tied";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("differ"), std::string::npos) << error.what();
  }
}

TEST(EncoderDecoder, GeneratesFromTheSourceInEvaluationMode) {
  EncoderDecoder model = small_pair();
  model->train();
  DecodingOptions options;
  options.filter_threshold = 0.8;  // one of seven: the most probable
  const at::Tensor generated = model->generate(tokens({1, 2, 3}), tokens({1}), 6, options);
  ASSERT_EQ(generated.sizes(), (at::IntArrayRef{1, 6}));
  EXPECT_TRUE(model->encoder()->is_training());
  EXPECT_TRUE(model->decoder()->net()->is_training());
  // Each token is the most probable one after those before it, as the decoder sees them in one pass.
  model->eval();
  PerformerLMInputs inputs;
  inputs.tokens = at::cat({tokens({1}), generated}, 1).narrow(1, 0, 6);
  inputs.context = model->encode(tokens({1, 2, 3}));
  EXPECT_TRUE(at::equal(model->decoder()->net()->forward(inputs).argmax(-1), generated));
}

TEST(EncoderDecoder, RefusesHalvesThatDoNotFit) {
  EncoderDecoderOptions options;
  options.encoder = options.decoder = half();
  options.encoder.stack.dim = 16;
  EXPECT_THROW(EncoderDecoder{options}, UsageError);
  options.encoder = half();
  options.encoder.vocabulary = 8;
  options.tie_token_embeddings = true;
  EXPECT_THROW(EncoderDecoder{options}, UsageError);
}

}  // namespace
}  // namespace performer::references::performer_pytorch
