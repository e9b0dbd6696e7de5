// SPDX-License-Identifier: Apache-2.0
// Attention transfer on a small model: linear maps come closer to exact attention, and heads may stay exact.
#include "performer/train/conversion.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/nn/attention/kind.h"
#include "performer/train/attention_transfer.h"
#include "performer/train/conversion_cost.h"
#include "performer/train/evaluation.h"

namespace performer::train {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

namespace fs = std::filesystem;

// A model whose attention is spiky enough that random maps miss it.
LanguageModel model_of(const std::string& kind, const std::string& objective) {
  ModelConfig model{.objective = objective, .layers = 2, .width = 16, .heads = 2, .ffn = 32};
  AttentionConfig attention;
  attention.kind = kind;
  at::manual_seed(3);
  LanguageModel made(model, attention, data::Vocabulary::protein().size());
  const at::NoGradGuard no_grad;
  for (auto& item : made->named_parameters()) {
    if (item.key().ends_with("query.weight") || item.key().ends_with("key.weight")) item.value().mul_(3);
  }
  made->eval();
  return made;
}

LanguageModel with_weights_of(const LanguageModel& exact, const std::string& kind) {
  LanguageModel made = model_of(kind, exact->model_config().objective);
  auto state = model_state(made);
  for (const auto& [name, tensor] : model_state(exact)) state[name] = tensor;
  set_model_state(made, state, "test");
  return made;
}

data::MemoryCorpus corpus() {
  std::vector<std::vector<data::Token>> sequences;
  PhiloxStream draws(11);
  for (int i = 0; i < 40; ++i) {
    std::vector<data::Token> sequence;
    for (uint64_t length = 10 + draws.below(20); length > 0; --length)
      sequence.push_back(static_cast<data::Token>(draws.below(20)));
    sequences.push_back(std::move(sequence));
  }
  return data::MemoryCorpus(sequences, data::Vocabulary::protein());
}

DataConfig data_config() {
  DataConfig data;
  data.length = 32;
  data.batch_tokens = 256;
  return data;
}

double mean(const HeadErrors& errors) {
  double sum = 0, count = 0;
  for (const auto& layer : errors) {
    for (const double error : layer) sum += error, ++count;
  }
  return sum / count;
}

class Transfer : public ::testing::TestWithParam<const char*> {};

TEST_P(Transfer, BringsLearnedMapsCloserToExactAttention) {
  LanguageModel exact = model_of("exact", GetParam());
  LanguageModel student = with_weights_of(exact, "favor-hedgehog");
  const data::MemoryCorpus sequences = corpus();
  const double before = mean(head_errors(exact, student, sequences, data_config()));
  const auto others = model_state(student);
  std::map<std::string, at::Tensor> kept;
  for (const auto& [name, tensor] : others) {
    if (name.find(".kind.") == std::string::npos) kept[name] = tensor.clone();
  }
  transfer_attention(exact, student, sequences, data_config(), {.steps = 60});
  EXPECT_LT(mean(head_errors(exact, student, sequences, data_config())), 0.9 * before);
  for (const auto& [name, tensor] : model_state(student)) {
    if (!kept.contains(name)) continue;
    EXPECT_TRUE(kept.at(name).equal(tensor)) << name << " is no part of the attention kind";
  }
}

INSTANTIATE_TEST_SUITE_P(Objectives, Transfer, ::testing::Values("causal", "masked"));

TEST(HeadErrors, AreZeroForExactAttentionItself) {
  LanguageModel exact = model_of("exact", "causal");
  EXPECT_EQ(mean(head_errors(exact, exact, corpus(), data_config())), 0);
}

TEST(ExactHeads, KeepWhatTheOthersLearned) {
  LanguageModel exact = model_of("exact", "causal");
  LanguageModel student = with_weights_of(exact, "favor-softmax");
  const HeadErrors errors = {{0.1, 0.9}, {0.8, 0.7}};
  LanguageModel hybrid = with_exact_heads(student, errors, 0.5);
  EXPECT_EQ(std::get<std::string>(hybrid->attention_config().options.at("exact_heads")), "0:1 1:*");
  const HeadErrors now = head_errors(exact, hybrid, corpus(), data_config());
  const HeadErrors then = head_errors(exact, student, corpus(), data_config());
  EXPECT_NEAR(now[0][0], then[0][0], 1e-6);
  EXPECT_NEAR(now[0][1], 0, 1e-6);
  EXPECT_NEAR(now[1][0], 0, 1e-6);
  EXPECT_EQ(with_exact_heads(student, errors, 2)->attention_config().kind, "favor-softmax");
}

TEST(ExactHeads, StreamAsTheyAreComputedAtOnce) {
  LanguageModel exact = model_of("exact", "causal");
  LanguageModel hybrid =
      with_exact_heads(with_weights_of(exact, "favor-softmax"), {{0.1, 0.9}, {0.8, 0.7}}, 0.5);
  SequenceBatch batch;
  batch.tokens = at::randint(20, {2, 12}, at::kLong);
  batch.positions = at::arange(12).expand({2, 12});
  const at::NoGradGuard no_grad;
  const at::Tensor whole = hybrid->forward(batch);
  DecodeState state = hybrid->begin(2);
  for (int64_t i = 0; i < 12; ++i)
    EXPECT_TRUE(hybrid->step(batch.tokens.select(1, i), state).allclose(whole.select(1, i), 1e-3, 1e-4)) << i;
}

TEST(ExactHeads, AreNamedAsTheOptionSays) {
  const auto message = [](const std::string& heads) {
    AttentionConfig attention;
    attention.kind = "hybrid";
    attention.set("exact_heads", heads);
    try {
      validate(ModelConfig{}, attention);
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string("valid");
  };
  EXPECT_EQ(message("0:* 2:0,3"), "valid");
  EXPECT_THAT(message("0:4"), HasSubstr("attention.exact_heads"));
  EXPECT_THAT(message("7"), HasSubstr("is not LAYER:HEAD,HEAD"));
  EXPECT_THAT(message("0:one"), HasSubstr("attention.exact_heads"));
}

TEST(KeptMemory, IsThatOfKeysAndValuesAndOfStates) {
  LanguageModel exact = model_of("exact", "causal");
  const double two_layers = 2 * 2 * 2 * 8 * 1024 * 4 / double{1 << 20};
  EXPECT_NEAR(kept_memory(exact)["1024"].get<double>(), two_layers, 1e-9);
  EXPECT_NEAR(kept_memory(exact)["65536"].get<double>(), 64 * two_layers, 1e-9);
  LanguageModel linear = with_weights_of(exact, "favor-softmax");
  EXPECT_EQ(kept_memory(linear)["1024"], kept_memory(linear)["65536"]);
  LanguageModel hybrid = with_exact_heads(linear, {{0.1, 0.9}, {0.8, 0.7}}, 0.5);
  EXPECT_NEAR(
      kept_memory(hybrid)["65536"].get<double>(),
      0.75 * kept_memory(exact)["65536"].get<double>() + 0.25 * kept_memory(linear)["1024"].get<double>(),
      1e-6);
}

// What a conversion starts from, on files.
class Conversion : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::string fasta;
    const data::MemoryCorpus sequences = corpus();
    for (int64_t i = 0; i < sequences.size(); ++i)
      fasta += fmt::format(">{}\n{}\n", i, sequences.vocabulary().decode(sequences.tokens(i)));
    write_file((folder_ / "data.fasta").string(), fasta);
    request_.files = {(folder_ / "data.fasta").string()};
    request_.output = (folder_ / "model").string();
    request_.transfer_steps = 5;
  }
  void TearDown() override { fs::remove_all(folder_); }

  void make_models(const std::string& objective) {
    original_.model = model_of("exact", objective);
    swapped_.model = with_weights_of(original_.model, "favor-hedgehog");
    original_.data = swapped_.data = data_config();
    original_.data.format = swapped_.data.format = "fasta";
    original_.data.holdout = swapped_.data.holdout = 0.3;
    original_.baselines = swapped_.baselines = data::Baselines(original_.vocabulary.symbols());
  }

  fs::path folder_ = fs::path(::testing::TempDir()) / "conversion";
  ModelFolder original_, swapped_;
  ConversionRequest request_;
};

TEST_F(Conversion, RecordsEachStage) {
  make_models("causal");
  request_.threshold = 1e-6;
  request_.finetune_steps = 2;
  const auto report = improve_conversion(original_, swapped_, request_);
  for (const char* stage : {"original", "swapped", "transferred", "with_exact_heads", "finetuned"})
    EXPECT_TRUE(report["stages"].contains(stage)) << stage;
  EXPECT_EQ(report["exact_heads"], 4) << "no map comes so close";
  EXPECT_NEAR(report["stages"]["with_exact_heads"]["perplexity"].get<double>(),
              report["stages"]["original"]["perplexity"].get<double>(), 1e-3);
  EXPECT_LT(report["stages"]["with_exact_heads"]["relative_error"].get<double>(), 1e-4);
  EXPECT_GT(report["stages"]["swapped"]["relative_error"].get<double>(), 1e-3);
  EXPECT_EQ(report["heads"].size(), 4U);
  EXPECT_THAT(report["verdict"].get<std::string>(), HasSubstr("all heads stay exact"));
  EXPECT_TRUE(fs::exists(folder_ / "model" / "conversion.json"));
  EXPECT_EQ(load_model((folder_ / "model").string()).model->attention_config().kind, "hybrid");
  request_.output = (folder_ / "other").string();
  EXPECT_THROW(improve_conversion(original_, original_, request_), UsageError) << "nothing was replaced";
}

TEST_F(Conversion, IsMeasuredByRepresentationsWithoutAHead) {
  make_models("masked");
  request_.trained_head = false;
  request_.transfer_steps = 60;
  const auto report = improve_conversion(original_, swapped_, request_);
  const auto& stages = report["stages"];
  for (const char* stage : {"original", "swapped", "transferred"}) {
    ASSERT_TRUE(stages.contains(stage)) << stage;
    EXPECT_EQ(stages[stage].size(), 2U) << "neither accuracy nor perplexity";
  }
  EXPECT_NEAR(stages["original"]["cosine_similarity"].get<double>(), 1, 1e-12);
  EXPECT_EQ(stages["original"]["relative_error"], 0);
  EXPECT_LT(stages["transferred"]["relative_error"].get<double>(),
            0.9 * stages["swapped"]["relative_error"].get<double>());
  EXPECT_GT(stages["transferred"]["cosine_similarity"].get<double>(),
            stages["swapped"]["cosine_similarity"].get<double>());
  EXPECT_GT(report["representations"]["sequences"], 3);
  EXPECT_LT(report["representations"]["cosine_between_sequences"].get<double>(), 1);
  const std::string verdict = report["verdict"];
  EXPECT_THAT(verdict, HasSubstr(fmt::format("cosine similarity of {:.4f}",
                                             stages["transferred"]["cosine_similarity"].get<double>())));
  EXPECT_THAT(verdict, Not(HasSubstr("accuracy")));
}

TEST_F(Conversion, DoesNotTrainAnUntrainedHead) {
  make_models("masked");
  request_.source = "encoder";
  request_.trained_head = false;
  request_.finetune_steps = 2;
  try {
    improve_conversion(original_, swapped_, request_);
    FAIL() << "expected UsageError";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("encoder has no language-model head"));
    EXPECT_THAT(error.what(), HasSubstr("performer train --from MODEL"));
  }
  EXPECT_FALSE(fs::exists(folder_ / "model"));
}

}  // namespace
}  // namespace performer::train
