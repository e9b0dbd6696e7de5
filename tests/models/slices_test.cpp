// SPDX-License-Identifier: Apache-2.0
// A sequence in slices on several ranks gives what one forward pass gives.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "performer/base/error.h"
#include "performer/distributed/states.h"
#include "performer/models/long_sequence.h"
#include "tests/distributed/ranks.h"
#include "tests/errors.h"
#include "tests/models/make.h"

namespace performer {
namespace {

constexpr int64_t kLength = 150;
constexpr double kTolerance = 2e-4;  // of values of about 1, in float32

std::shared_ptr<const nn::Slices> one_slice(int64_t tokens) {
  return slices_of_sequence(tokens, 1, distributed::state_exchange(distributed::single_rank()));
}

// The wanted layers of tokens [L], of which each of some ranks reads a slice.
std::map<int64_t, at::Tensor> in_slices(const LanguageModel& model, const at::Tensor& tokens, int ranks,
                                        int64_t chunk, const std::vector<int64_t>& layers) {
  std::map<int64_t, at::Tensor> whole;
  for (const int64_t layer : layers)
    whole[layer] = at::full({tokens.size(0), model->model_config().width}, NAN);
  testing::expect_no_errors(testing::run_ranks(ranks, [&](distributed::Communicator& all) {
    const at::NoGradGuard no_grad;
    const std::shared_ptr<distributed::Communicator> group = all.group("slices", 0, 1, ranks);
    ChunkedRequest request{layers, chunk, ::testing::TempDir()};
    request.slices = slices_of_sequence(tokens.size(0), ranks, distributed::state_exchange(group));
    const std::vector<int64_t>& cuts = request.slices->cuts;
    int64_t read = 0;
    represent_in_chunks(model, tokens, request, [&](int64_t layer, int64_t first, const at::Tensor& rows) {
      whole.at(layer).narrow(0, first, rows.size(0)).copy_(rows);
      read += rows.size(0);
    });
    EXPECT_EQ(read, (cuts[all.rank() + 1] - cuts[all.rank()]) * std::ssize(layers)) << "its slice alone";
    EXPECT_EQ(group->traffic().exchanges, layers.back()) << "one exchange a layer";
  }));
  return whole;
}

TEST(SlicesOfASequence, EqualOnePass) {
  const at::NoGradGuard no_grad;
  for (const char* kind : {"favor-relu", "favor-softmax", "favor-trigonometric"}) {
    for (const char* objective : {"causal", "masked"}) {
      for (const Variant& variant :
           {Variant{kind}, Variant{kind, "sinusoidal", "post", true}, Variant{kind, "learned"}}) {
        LanguageModel model = make_model(variant, objective);
        ASSERT_EQ(why_not_in_slices(model), "");
        const at::Tensor tokens = random_tokens({kLength});
        const Representations all = model->represent(rows(tokens.unsqueeze(0)));
        const std::vector<at::Tensor> expected = {all.input[0], all.layers[0][0], all.output[0]};
        for (const auto& [ranks, chunk] : {std::pair{2, 1000}, {3, 7}}) {
          const auto found = in_slices(model, tokens, ranks, chunk, {0, 1, 2});
          for (int64_t layer = 0; layer < 3; ++layer) {
            EXPECT_TRUE(at::allclose(found.at(layer), expected[layer], kTolerance, kTolerance))
                << variant_name(variant) << ", " << objective << ", " << ranks << " slices, layer " << layer
                << ": " << (found.at(layer) - expected[layer]).abs().max().item<double>();
          }
        }
      }
    }
  }
}

TEST(SlicesOfASequence, NeedAState) {
  const auto reason = [](const std::string& kind, const std::string& objective,
                         const std::function<void(ModelConfig&, AttentionConfig&)>& change) {
    ModelConfig model = small_model();
    model.objective = objective;
    AttentionConfig attention = small_attention({kind});
    change(model, attention);
    const LanguageModel made(model, attention, kVocabulary);
    ChunkedRequest request{{2}, 4, "/tmp"};
    request.slices = one_slice(9);
    const std::string why = why_not_in_slices(made);
    EXPECT_NE(why, "");
    EXPECT_EQ(test::error_of<UsageError>([&] {
                represent_in_chunks(made, random_tokens({9}), request,
                                    [](int64_t, int64_t, const at::Tensor&) {});
              }),
              why);
    return why;
  };
  const auto nothing = [](ModelConfig&, AttentionConfig&) {};
  EXPECT_THAT(reason("exact", "causal", nothing), ::testing::HasSubstr("attention.kind = exact"));
  EXPECT_THAT(reason("local", "masked", nothing), ::testing::HasSubstr("attention.kind = local"));
  EXPECT_THAT(reason("favor-oprf", "masked", nothing), ::testing::HasSubstr("attention.kind = favor-oprf"));
  const auto shifts = [](ModelConfig& model, AttentionConfig&) { model.token_shift = true; };
  EXPECT_THAT(reason("favor-relu", "causal", shifts), ::testing::HasSubstr("token_shift"));
  const auto reverses = [](ModelConfig& model, AttentionConfig&) { model.reversible = true; };
  EXPECT_THAT(reason("favor-relu", "causal", reverses), ::testing::HasSubstr("reversible"));
  const auto local = [](ModelConfig&, AttentionConfig& attention) { attention.local_heads = 1; };
  EXPECT_THAT(reason("favor-relu", "causal", local), ::testing::HasSubstr("local_heads"));
  const LanguageModel model = make_model({"favor-relu"});
  ChunkedRequest request{{2}, 4, "/tmp"};
  request.slices = slices_of_sequence(2, 3, one_slice(2)->exchange);
  EXPECT_THAT(
      test::error_of<UsageError>([&] { represent_in_chunks(model, random_tokens({2}), request, {}); }),
      ::testing::HasSubstr("2 tokens"));
}

}  // namespace
}  // namespace performer
