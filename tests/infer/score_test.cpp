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
  const auto reader = data::open_reader(path, {}, data::Vocabulary::protein());
  score(model, *reader, path, {batch_tokens}, [&](const SequenceScore& score) { result.push_back(score); });
  return result;
}

std::vector<int64_t> tokens_of(const SequenceScore& score) {
  return {score.tokens.begin(), score.tokens.end()};
}

TEST(Score, CausalIsTheForwardPassOfEachSequenceAlone) {
  LanguageModel model = make_model();
  const std::string path = temporary_file("score_causal.fasta", kFasta);
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
  const data::Vocabulary vocabulary = data::Vocabulary::protein();
  std::vector<int64_t> inputs = {vocabulary.bos()};
  inputs.insert(inputs.end(), tokens.begin(), tokens.end());
  inputs.push_back(vocabulary.eos());
  inputs[hidden + 1] = vocabulary.mask();
  SequenceBatch batch;
  batch.tokens = at::tensor(inputs, at::kLong).unsqueeze(0);
  batch.positions = at::arange(static_cast<int64_t>(inputs.size()), at::kLong).unsqueeze(0);
  const at::Tensor logits = model->forward(batch)[0][static_cast<int64_t>(hidden) + 1];
  return at::log_softmax(logits.to(at::kDouble), -1)[tokens[hidden]].item<double>();
}

TEST(Score, MaskedHidesEachResidueAlone) {
  for (const char* kind : {"favor-relu", "favor-softmax", "exact"}) {
    LanguageModel model = make_model({.kind = kind, .objective = "masked"});
    const std::string path = temporary_file("score_masked.fasta", kFasta);
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
    const std::string path = temporary_file("score_batches.fasta", kFasta);
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
  const std::string path = temporary_file("score_counts.fasta", ">a\nmkJ-T*\n>b\nAA\n");
  const auto reader = data::open_reader(path, {}, data::Vocabulary::protein());
  EXPECT_EQ(data::summary(score(model, *reader, path, {100}, [](const SequenceScore&) {})),
            "2 sequences, 6 residues; 2 lower-case letters read as upper case; 1 '*' at the end of a record "
            "dropped; 1 gaps dropped; 1 J read as X");
}

TEST(Score, SequencesBeyondLearnedPositionsAreNamed) {
  const std::string path = temporary_file("score_long.fasta", ">a\nMKT\n>long\nMKTAYIAKQRMKTAYIAKQ\n");
  for (const char* objective : {"causal", "masked"}) {
    LanguageModel model = make_model({.objective = objective, .positions = "learned", .max_length = 16});
    try {
      collect(model, path, 100);
      FAIL();
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(),
                  testing::AllOf(testing::HasSubstr("record 2"), testing::HasSubstr("'long'"),
                                 testing::HasSubstr("line 3"), testing::HasSubstr("19 residues")));
    }
  }
}

TEST(Score, SequencesBeyondTheLengthOfLinformerAreNamed) {
  const std::string path = temporary_file("score_long.fasta", ">a\nMKT\n>long\nMKTAYIAKQRMKTAYIAKQ\n");
  ModelConfig config;
  config.objective = "masked";
  config.layers = 1, config.width = 16, config.heads = 2, config.ffn = 16;
  AttentionConfig attention;
  attention.kind = "linformer";
  attention.set("length", 20).set("rank", 4);
  LanguageModel model(config, attention, data::Vocabulary::protein().size());
  try {
    collect(model, path, 100);
    FAIL();
  } catch (const InputError& error) {
    EXPECT_THAT(
        error.what(),
        testing::AllOf(testing::HasSubstr("record 2"), testing::HasSubstr("19 residues"),
                       testing::HasSubstr("attention takes 18"), testing::HasSubstr("attention.length")));
  }
}

TEST(Score, AnyVocabularyIsScoredInItsOwnTokens) {
  struct Input {
    data::Vocabulary vocabulary;
    std::string name, text;
    std::vector<size_t> lengths;
  };
  for (const Input& input : {Input{data::Vocabulary::dna(), "score.fna", ">a\nACGTN\n>b\nGGU\n", {5, 3}},
                             Input{data::Vocabulary::bytes(), "score.txt", "A line.\n\xff", {9}},
                             Input{data::Vocabulary::pixels(), "score_2x1x2x3.u8", "abcdefABCDEF", {6, 6}}}) {
    LanguageModel model = make_model({.vocabulary = input.vocabulary});
    const std::string path = temporary_file(input.name, input.text);
    const auto reader = data::open_reader(path, {}, input.vocabulary);
    std::vector<SequenceScore> scores;
    score(model, *reader, path, {1000}, [&](const SequenceScore& score) { scores.push_back(score); });
    ASSERT_EQ(scores.size(), input.lengths.size()) << input.name;
    for (size_t i = 0; i < scores.size(); ++i) {
      ASSERT_EQ(scores[i].tokens.size(), input.lengths[i]) << input.name;
      const auto expected = forward_log_probabilities(model, tokens_of(scores[i]), input.vocabulary);
      for (size_t t = 0; t < expected.size(); ++t) {
        EXPECT_NEAR(scores[i].log_probabilities[t], expected[t], 2e-5) << input.name << ", token " << t + 1;
      }
    }
  }
}

TEST(Score, ImagesBeyondLearnedPositionsAreNamedWithoutALine) {
  LanguageModel model =
      make_model({.positions = "learned", .max_length = 5, .vocabulary = data::Vocabulary::pixels()});
  const std::string path = temporary_file("score_1x1x2x3.u8", "abcdef");
  const auto reader = data::open_reader(path, {}, data::Vocabulary::pixels());
  try {
    score(model, *reader, path, {100}, [](const SequenceScore&) {});
    FAIL();
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("record 1"), testing::HasSubstr("6 values"),
                                             testing::Not(testing::HasSubstr("line"))));
  }
}

TEST(Score, AVocabularyOfAnotherSizeIsRefused) {
  LanguageModel model = make_model();
  const std::string path = temporary_file("score_dna.fasta", ">a\nACGT\n");
  const auto reader = data::open_reader(path, {}, data::Vocabulary::dna());
  EXPECT_THROW(score(model, *reader, path, {100}, [](const SequenceScore&) {}), UsageError);
}

}  // namespace
}  // namespace performer
