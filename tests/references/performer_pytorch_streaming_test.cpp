// SPDX-License-Identifier: Apache-2.0
// Performers that read their sequences piece by piece give what one pass over the whole gives.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <functional>

#include "performer/base/error.h"
#include "performer/references/performer_pytorch/autoregressive.h"
#include "performer/references/performer_pytorch/language_model.h"
#include "tests/errors.h"

namespace performer::performer_streaming_test {
namespace {

using test::error_of;
using ::testing::HasSubstr;

constexpr int64_t kVocabulary = 11, kLongest = 23;

PerformerLMOptions small_options() {
  PerformerLMOptions options;
  options.vocabulary = kVocabulary;
  options.max_length = kLongest;
  options.stack.dim = 12;
  options.stack.depth = 2;
  options.stack.heads = 3;
  options.stack.dim_head = 4;
  options.stack.features = 8;
  options.stack.ff_mult = 2;
  options.stack.local_window_size = 3;
  options.stack.causal = true;
  return options;
}

PerformerLM build(const PerformerLMOptions& options) {
  torch::manual_seed(3);
  PerformerLM model(options);
  model->to(at::kDouble);
  const at::NoGradGuard no_grad;
  for (at::Tensor& parameter : model->parameters()) parameter.normal_(0, 0.5);
  model->eval();
  return model;
}

PerformerLMInputs inputs_for(const PerformerLMOptions& options, int64_t length) {
  torch::manual_seed(4);
  PerformerLMInputs inputs;
  inputs.tokens = at::randint(kVocabulary, {2, length}, at::kLong);
  if (options.stack.cross_attend) {
    inputs.context = at::randn({2, 5, options.stack.dim}, at::kDouble);
    inputs.context_mask = at::tensor({1, 1, 1, 1, 1, 1, 1, 0, 0, 1}).to(at::kBool).view({2, 5});
  }
  return inputs;
}

struct Variant {
  const char* name;
  std::function<void(PerformerLMOptions&)> change;
  friend void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }
};

class PerformerStreaming : public ::testing::TestWithParam<Variant> {
 protected:
  PerformerLMOptions options() const {
    PerformerLMOptions options = small_options();
    GetParam().change(options);
    return options;
  }
};

TEST_P(PerformerStreaming, PiecesGiveWhatTheWholeGives) {
  const PerformerLMOptions with = options();
  PerformerLM model = build(with);
  const at::NoGradGuard no_grad;
  const PerformerLMInputs whole = inputs_for(with, kLongest);
  const at::Tensor expected = model(whole);
  for (const std::vector<int64_t>& pieces :
       {std::vector<int64_t>{kLongest}, std::vector<int64_t>(kLongest, 1),
        std::vector<int64_t>{1, 7, 2, 1, 3, 9}}) {
    PerformerLMState state;
    std::vector<at::Tensor> outputs;
    int64_t first = 0;
    for (const int64_t count : pieces) {
      PerformerLMInputs piece = whole;
      piece.tokens = whole.tokens.narrow(1, first, count);
      outputs.push_back(model->continue_from(piece, state));
      first += count;
    }
    const at::Tensor result = at::cat(outputs, 1);
    EXPECT_TRUE(at::allclose(result, expected, 1e-9, 1e-9))
        << pieces.size() << " pieces: " << (result - expected).abs().max().item<double>();
  }
}

TEST_P(PerformerStreaming, StatesDoNotGrow) {
  const PerformerLMOptions with = options();
  PerformerLM model = build(with);
  const PerformerLMInputs whole = inputs_for(with, kLongest);
  PerformerLMState state;
  for (int64_t i = 0; i < kLongest; ++i) {
    PerformerLMInputs token = whole;
    token.tokens = whole.tokens.narrow(1, i, 1);
    model->continue_from(token, state);
    for (const PerformerBlockState& block : state.stack) {
      const at::Tensor& local = block.attention.local.key;
      if (local.defined()) {
        EXPECT_LE(local.size(1), 2 * with.stack.local_window_size);
      }
    }
  }
}

TEST_P(PerformerStreaming, RowsGoOnByThemselves) {
  const PerformerLMOptions with = options();
  PerformerLM model = build(with);
  const PerformerLMInputs whole = inputs_for(with, 9);
  PerformerLMState state;
  PerformerLMInputs piece = whole;
  piece.tokens = whole.tokens.narrow(1, 0, 6);
  model->continue_from(piece, state);
  state = select_rows(state, at::tensor({1}, at::kLong));
  piece.tokens = whole.tokens.narrow(0, 1, 1).narrow(1, 6, 3);
  if (piece.context) piece.context = piece.context->narrow(0, 1, 1);
  if (piece.context_mask) piece.context_mask = piece.context_mask->narrow(0, 1, 1);
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(at::allclose(model->continue_from(piece, state), model(whole).narrow(0, 1, 1).narrow(1, 6, 3),
                           1e-9, 1e-9));
}

// Greedy generation takes the largest logit of the whole sequence so far in each step, also beyond
// max_length, where the last tokens are read again.
TEST_P(PerformerStreaming, GenerationFollowsTheFullForward) {
  const PerformerLMOptions with = options();
  PerformerLM model = build(with);
  Autoregressive generator(model);
  DecodingOptions decoding;
  decoding.temperature = 0;
  const PerformerLMInputs start = inputs_for(with, 4);
  const at::Tensor made = generator->generate(start, kLongest, decoding);
  const at::Tensor all = at::cat({start.tokens, made}, 1);
  const at::NoGradGuard no_grad;
  for (int64_t i = 0; i < kLongest; ++i) {
    PerformerLMInputs read = start;
    const int64_t length = 4 + i, kept = std::min(length, kLongest);
    read.tokens = all.narrow(1, length - kept, kept);
    EXPECT_TRUE(model(read).select(1, kept - 1).argmax(-1).equal(made.select(1, i))) << "token " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, PerformerStreaming,
    ::testing::Values(Variant{"softmax", [](auto&) {}},
                      Variant{"generalized", [](auto& o) { o.stack.generalized = true; }},
                      Variant{"efficient", [](auto& o) { o.stack.no_projection = true; }},
                      Variant{"local", [](auto& o) { o.stack.local_heads = {1}; }},
                      Variant{"only_local",
                              [](auto& o) {
                                o.stack.local_heads = {3, 2};
                              }},
                      Variant{"shifted", [](auto& o) { o.stack.shift_tokens = true; }},
                      Variant{"reversible",
                              [](auto& o) {
                                o.stack.reversible = true;
                                o.stack.local_heads = {1};
                                o.stack.shift_tokens = true;
                              }},
                      Variant{"decoder",
                              [](auto& o) {
                                o.stack.cross_attend = true;
                                o.stack.norm = "scale-norm";
                              }},
                      Variant{"efficient_decoder",
                              [](auto& o) {
                                o.stack.cross_attend = true;
                                o.stack.no_projection = true;
                                o.stack.ff_glu = true;
                              }},
                      Variant{"axial",
                              [](auto& o) {
                                o.positions = "axial";
                                o.axial_shape = {6, 4};
                                o.tied_output = true;
                              }},
                      Variant{"learned",
                              [](auto& o) {
                                o.positions = "learned";
                                o.stack.norm = "rezero";
                              }},
                      Variant{"no_positions", [](auto& o) { o.positions = "none"; }}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(PerformerStreamingRefusals, NameTheReason) {
  const auto refusal = [](const std::function<void(PerformerLMOptions&)>& change,
                          const std::function<void(PerformerLMInputs&)>& spoil) {
    PerformerLMOptions with = small_options();
    change(with);
    PerformerLM model = build(with);
    PerformerLMInputs inputs = inputs_for(with, 3);
    spoil(inputs);
    PerformerLMState state;
    return error_of<UsageError>([&] { model->continue_from(inputs, state); });
  };
  const auto nothing = [](auto&) {};
  EXPECT_THAT(refusal([](auto& o) { o.stack.compatible = true; }, nothing), HasSubstr("compatible"));
  EXPECT_THAT(refusal([](auto& o) { o.stack.causal = false; }, nothing), HasSubstr("not causal"));
  EXPECT_THAT(refusal([](auto& o) { o.output = false; }, nothing), HasSubstr("no logits"));
  EXPECT_THAT(refusal(nothing, [](auto& i) { i.mask = at::ones({2, 3}, at::kBool); }), HasSubstr("no mask"));
  EXPECT_THAT(refusal(nothing, [](auto& i) { i.tokens = i.tokens.narrow(1, 0, 0); }),
              HasSubstr("at least 1 token"));
  EXPECT_THAT(refusal([](auto& o) { o.max_length = 2; }, nothing), HasSubstr("max_length 2"));
  PerformerLM model = build(small_options());
  PerformerLMState state;
  PerformerLMInputs inputs = inputs_for(small_options(), kLongest);
  model->continue_from(inputs, state);
  inputs.tokens = inputs.tokens.narrow(1, 0, 1);
  EXPECT_THAT(error_of<UsageError>([&] { model->continue_from(inputs, state); }),
              HasSubstr("1 tokens after 23"));
}

}  // namespace
}  // namespace performer::performer_streaming_test
