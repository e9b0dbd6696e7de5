// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/score.h"

#include <gmock/gmock.h>

#include "performer/base/error.h"
#include "tests/infer/tiny_model.h"

namespace performer {
namespace {

constexpr const char* kFasta =
    ">one first\nMKTAYIAKQR\n>two\nA\n>three\nGGGWPPLLVVBZX\nACDEFGHIKLMNPQRSTVWY\n>two\nMKTAYIAKQR\n";

std::vector<SequenceScore> collect(LanguageModel& model, const std::string& path, int64_t batch_tokens) {
  std::vector<SequenceScore> result;
  score_file(model, path, batch_tokens, [&](const SequenceScore& score) { result.push_back(score); });
  return result;
}

std::vector<int64_t> tokens_of(const SequenceScore& score) {
  return {score.tokens.begin(), score.tokens.end()};
}

TEST(Score, CausalIsTheForwardPassOfEachSequenceAlone) {
  LanguageModel model = make_model();
  const std::string path = temporary_fasta("score_causal.fasta", kFasta);
  const auto scores = collect(model, path, 1000);
  ASSERT_EQ(scores.size(), 4u);
  EXPECT_EQ(scores[0].id, "one");
  EXPECT_EQ(scores[2].id, "three");
  EXPECT_EQ(scores[2].tokens.size(), 33u);
  for (const auto& score : scores) {
    const auto expected = forward_log_probabilities(model, tokens_of(score));
    ASSERT_EQ(score.log_probabilities.size(), expected.size());
    double sum = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(score.log_probabilities[i], expected[i], 2e-5) << score.id << " residue " << i + 1;
      sum += expected[i];
    }
    EXPECT_NEAR(score.total(), sum, 2e-4);
    EXPECT_NEAR(score.mean(), sum / static_cast<double>(expected.size()), 2e-5);
  }
  EXPECT_EQ(scores[0].log_probabilities, scores[3].log_probabilities);
}

// log p of residue `hidden` when it alone is masked.
double masked_alone(LanguageModel& model, const std::vector<int64_t>& tokens, size_t hidden) {
  const at::NoGradGuard no_gradients;
  std::vector<int64_t> inputs = {data::kBos};
  inputs.insert(inputs.end(), tokens.begin(), tokens.end());
  inputs.push_back(data::kEos);
  inputs[hidden + 1] = data::kMask;
  SequenceBatch batch;
  batch.tokens = at::tensor(inputs, at::kLong).unsqueeze(0);
  batch.positions = at::arange(static_cast<int64_t>(inputs.size()), at::kLong).unsqueeze(0);
  const at::Tensor logits = model->forward(batch)[0][static_cast<int64_t>(hidden) + 1];
  return at::log_softmax(logits.to(at::kDouble), -1)[tokens[hidden]].item<double>();
}

TEST(Score, MaskedHidesEachResidueAlone) {
  for (const char* kind : {"favor-relu", "favor-softmax", "exact"}) {
    LanguageModel model = make_model({.kind = kind, .objective = "masked"});
    const std::string path = temporary_fasta("score_masked.fasta", kFasta);
    for (const auto& score : collect(model, path, 64)) {
      const auto tokens = tokens_of(score);
      ASSERT_EQ(score.log_probabilities.size(), tokens.size());
      for (size_t i = 0; i < tokens.size(); ++i) {
        EXPECT_NEAR(score.log_probabilities[i], masked_alone(model, tokens, i), 5e-5)
            << kind << ", residue " << i + 1;
      }
    }
  }
}

TEST(Score, BatchSizeChangesNothingBeyondRounding) {
  for (const char* objective : {"causal", "masked"}) {
    LanguageModel model = make_model({.objective = objective});
    const std::string path = temporary_fasta("score_batches.fasta", kFasta);
    const auto one = collect(model, path, 1), many = collect(model, path, 100000);
    ASSERT_EQ(one.size(), many.size());
    for (size_t i = 0; i < one.size(); ++i) {
      EXPECT_EQ(one[i].id, many[i].id);
      EXPECT_NEAR(one[i].total(), many[i].total(), 1e-3);
    }
  }
}

TEST(Score, ReportsWhatTheReaderMet) {
  LanguageModel model = make_model();
  const std::string path = temporary_fasta("score_counts.fasta", ">a\nmkJ-T*\n>b\nAA\n");
  const data::FastaCounts counts = score_file(model, path, 100, [](const SequenceScore&) {});
  EXPECT_EQ(counts.records, 2);
  EXPECT_EQ(counts.residues, 6);
  EXPECT_EQ(counts.lower_case, 2);
  EXPECT_EQ(counts.j_to_x, 1);
  EXPECT_EQ(counts.gaps, 1);
  EXPECT_EQ(counts.stops, 1);
}

TEST(Score, SequencesBeyondLearnedPositionsAreNamed) {
  const std::string path = temporary_fasta("score_long.fasta", ">a\nMKT\n>long\nMKTAYIAKQRMKTAYIAKQ\n");
  for (const char* objective : {"causal", "masked"}) {
    LanguageModel model = make_model({.objective = objective, .positions = "learned", .max_length = 16});
    try {
      collect(model, path, 100);
      FAIL();
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("record 2"), testing::HasSubstr("'long'"),
                                               testing::HasSubstr("19 residues")));
    }
  }
}

}  // namespace
}  // namespace performer
