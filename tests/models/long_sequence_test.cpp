// SPDX-License-Identifier: Apache-2.0
// A sequence in chunks gives what one forward pass gives.
#include "performer/models/long_sequence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <map>

#include "performer/base/error.h"
#include "performer/models/activation_store.h"
#include "tests/errors.h"
#include "tests/models/make.h"

namespace performer {
namespace {

constexpr int64_t kLength = 150;
constexpr double kTolerance = 2e-4;  // of values of about 1, in float32

// All wanted layers of tokens [L], put together of their chunks.
std::map<int64_t, at::Tensor> in_chunks(const LanguageModel& model, const at::Tensor& tokens, int64_t chunk,
                                        const std::vector<int64_t>& layers) {
  std::map<int64_t, std::vector<at::Tensor>> parts;
  std::map<int64_t, int64_t> seen;
  double share = 0;
  ChunkedRequest request{layers, chunk, testing::TempDir(), [&](double now) {
                           EXPECT_GT(now, share);
                           share = now;
                         }};
  represent_in_chunks(model, tokens, request, [&](int64_t layer, int64_t first, const at::Tensor& rows) {
    EXPECT_EQ(first, seen[layer]) << "chunks come in order";
    seen[layer] += rows.size(0);
    parts[layer].push_back(rows.clone());
  });
  if (layers.back() > 0) {
    EXPECT_NEAR(share, 1, 1e-9);
  }
  std::map<int64_t, at::Tensor> whole;
  for (const auto& [layer, rows] : parts) whole[layer] = at::cat(rows);
  return whole;
}

void expect_chunks_equal_one_pass(LanguageModel& model, const std::string& what) {
  const at::NoGradGuard no_grad;
  ASSERT_EQ(why_not_in_chunks(model), "") << what;
  const at::Tensor tokens = random_tokens({kLength});
  const Representations all = model->represent(rows(tokens.unsqueeze(0)));
  for (const int64_t chunk : {1000, 64, 7}) {
    const auto found = in_chunks(model, tokens, chunk, {0, 1, 2});
    ASSERT_EQ(found.size(), 3u) << what;
    const std::vector<at::Tensor> expected = {all.input[0], all.layers[0][0], all.output[0]};
    for (int64_t layer = 0; layer < 3; ++layer) {
      const at::Tensor& rows_of_it = found.at(layer);
      ASSERT_EQ(rows_of_it.sizes(), expected[layer].sizes()) << what;
      EXPECT_TRUE(at::allclose(rows_of_it, expected[layer], kTolerance, kTolerance))
          << what << ", chunk " << chunk << ", layer " << layer << ": "
          << (rows_of_it - expected[layer]).abs().max().item<double>();
    }
  }
}

TEST(LongSequence, InChunksEqualsOnePass) {
  for (const char* kind : {"favor-relu", "favor-softmax", "favor-trigonometric", "exact", "auto"}) {
    for (const char* objective : {"causal", "masked"}) {
      for (const Variant& variant :
           {Variant{kind}, Variant{kind, "sinusoidal", "post", true}, Variant{kind, "learned"}}) {
        LanguageModel model = make_model(variant, objective);
        expect_chunks_equal_one_pass(model, variant_name(variant) + ", " + objective);
      }
    }
  }
  for (const char* kind : {"local", "favor-windowed", "favor-oprf", "identity"}) {
    LanguageModel model = make_model({kind}, "causal");
    expect_chunks_equal_one_pass(model, kind);
  }
}

TEST(LongSequence, CausalModelsWithAnyPartStream) {
  const auto make = [](const std::function<void(ModelConfig&, AttentionConfig&)>& change,
                       const std::string& kind) {
    at::manual_seed(5);
    ModelConfig model = small_model();
    AttentionConfig attention = small_attention({kind});
    change(model, attention);
    LanguageModel made(model, attention, kVocabulary);
    made->eval();
    return made;
  };
  for (const char* kind : {"favor-softmax", "exact"}) {
    LanguageModel shift = make([](ModelConfig& model, AttentionConfig&) { model.token_shift = true; }, kind);
    expect_chunks_equal_one_pass(shift, "token shift");
    LanguageModel reversible =
        make([](ModelConfig& model, AttentionConfig&) { model.reversible = true; }, kind);
    expect_chunks_equal_one_pass(reversible, "reversible");
    LanguageModel mixed = make(
        [](ModelConfig&, AttentionConfig& attention) {
          attention.local_heads = 1;
          attention.local_window = 16;
          attention.begin_kernel = 20;
        },
        kind);
    expect_chunks_equal_one_pass(mixed, "local heads and begin_kernel");
  }
}

TEST(LongSequence, RefusalsNameTheCause) {
  const auto reason = [](const std::string& kind,
                         const std::function<void(ModelConfig&, AttentionConfig&)>& change) {
    ModelConfig model = small_model();
    model.objective = "masked";
    AttentionConfig attention = small_attention({kind});
    change(model, attention);
    const LanguageModel made(model, attention, kVocabulary);
    const std::string why = why_not_in_chunks(made);
    EXPECT_THAT(test::error_of<UsageError>([&] {
                  represent_in_chunks(made, random_tokens({9}), {{2}, 4, "/tmp"},
                                      [](int64_t, int64_t, const at::Tensor&) {});
                }),
                testing::HasSubstr(why));
    return why;
  };
  const auto nothing = [](ModelConfig&, AttentionConfig&) {};
  EXPECT_THAT(reason("local", nothing), testing::HasSubstr("attention.kind = local"));
  EXPECT_THAT(reason("favor-oprf", nothing), testing::HasSubstr("attention.kind = favor-oprf"));
  EXPECT_THAT(reason("favor-relu", [](ModelConfig& model, AttentionConfig&) { model.token_shift = true; }),
              testing::HasSubstr("token_shift"));
  EXPECT_THAT(reason("favor-relu", [](ModelConfig& model, AttentionConfig&) { model.reversible = true; }),
              testing::HasSubstr("reversible"));
  EXPECT_THAT(
      reason("favor-relu", [](ModelConfig&, AttentionConfig& attention) { attention.local_heads = 1; }),
      testing::HasSubstr("local_heads"));
  EXPECT_THAT(
      reason("favor-relu", [](ModelConfig&, AttentionConfig& attention) { attention.begin_kernel = 3; }),
      testing::HasSubstr("begin_kernel"));
}

TEST(LongSequence, PositionsEndWhereTheModelSays) {
  const LanguageModel model = make_model({"favor-relu", "learned"}, "masked");  // max_length = 200
  EXPECT_THAT(test::error_of<UsageError>([&] {
                represent_in_chunks(model, random_tokens({201}), {{2}, 64, "/tmp"},
                                    [](int64_t, int64_t, const at::Tensor&) {});
              }),
              testing::HasSubstr("model.max_length = 200"));
  EXPECT_THROW(represent_in_chunks(model, random_tokens({9}), {{3}, 64, "/tmp"}, {}), UsageError);
  EXPECT_THROW(represent_in_chunks(model, random_tokens({9}), {{1, 0}, 64, "/tmp"}, {}), UsageError);
}

TEST(LongSequence, TimeOfExactAttentionGrowsWithTheSquare) {
  EXPECT_TRUE(takes_quadratic_time(make_model({"exact"})));
  EXPECT_FALSE(takes_quadratic_time(make_model({"auto"})));
  const LanguageModel model = make_model({"exact"}, "masked");
  const double short_one = seconds_of_exact_attention(model, 10000, 2);
  EXPECT_GT(short_one, 0);
  // Each is measured by itself, on a machine that does other things too.
  EXPECT_GT(seconds_of_exact_attention(model, 100000, 2), 10 * short_one);
}

TEST(ActivationStore, KeepsWhatIsWrittenInMemoryAndOnDisk) {
  for (const int64_t most : {int64_t{1} << 20, int64_t{0}}) {
    ActivationStore store(100, 7, testing::TempDir(), most);
    EXPECT_EQ(store.on_disk(), most == 0);
    const at::Tensor values = at::randn({100, 7});
    store.write(60, values.narrow(0, 60, 40));
    store.write(0, values.narrow(0, 0, 60));
    EXPECT_TRUE(at::equal(store.read(0, 100), values));
    at::Tensor part = store.read(10, 3);
    EXPECT_TRUE(at::equal(part, values.narrow(0, 10, 3)));
    part.zero_();
    EXPECT_TRUE(at::equal(store.read(10, 3), values.narrow(0, 10, 3))) << "what is read is a copy";
  }
  EXPECT_THAT(test::error_of<Error>([] { ActivationStore(10, 10, "/nowhere", 0); }),
              testing::AllOf(testing::HasSubstr("/nowhere"), testing::HasSubstr("TMPDIR")));
}

}  // namespace
}  // namespace performer
