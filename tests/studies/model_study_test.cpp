// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/model_study.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "performer/base/error.h"
#include "tests/infer/tiny_model.h"

namespace performer::studies {
namespace {

constexpr const char* kFasta =
    ">a\nMKTAYIAKQRQISFVKSHFSRQ\n>long\nACDEFGHIKLMNPQRSTVWYACDEFGHIKLMNPQRSTVWY\n>b\nGGSSTTAAKK\n";

ModelStudyOptions options() {
  ModelStudyOptions made;
  made.kinds = {"favor-softmax", "favor-hyperbolic"};
  made.features = {16, 1024};
  made.max_length = 30;
  return made;
}

ModelStudy measured(LanguageModel& model, const ModelStudyOptions& made) {
  const std::string path = temporary_file("approx.fasta", kFasta);
  const auto reader = data::open_reader(path, {}, data::Vocabulary::protein());
  return model_study(model, *reader, path, made);
}

ModelStudy study(const std::string& objective, const ModelStudyOptions& made,
                 const std::string& kind = "exact") {
  TinyModel tiny;
  tiny.kind = kind;
  tiny.objective = objective;
  LanguageModel model = make_model(tiny);
  return measured(model, made);
}

TEST(ModelStudy, HasARowForEachHeadAndChoice) {
  for (const char* objective : {"causal", "masked"}) {
    const ModelStudy found = study(objective, options());
    EXPECT_EQ(found.sequences, 2) << objective;
    EXPECT_EQ(found.left_out, 1) << objective;
    ASSERT_EQ(found.heads.rows.size(), 4u);
    ASSERT_EQ(found.errors.rows.size(), 4 * 2 * 2u);
    for (const auto& row : found.heads.rows) {
      const double attended = std::get<double>(row[3]), best = std::get<double>(row[5]);
      EXPECT_GT(std::get<double>(row[2]), 0);
      EXPECT_GE(attended, 1);
      EXPECT_LE(attended, 24) << "more keys than there are";
      EXPECT_GT(best, 0);
    }
  }
}

TEST(ModelStudy, AdvisesExactWhereNothingIsCloseEnough) {
  ModelStudyOptions strict = options();
  strict.tolerance = 1e-9;
  const ModelStudy found = study("masked", strict);
  EXPECT_EQ(found.exact_heads, 4);
  EXPECT_NE(std::get<std::string>(found.heads.rows[0].back()).find("no map within"), std::string::npos);
}

TEST(ModelStudy, AdvisesExactWhereItIsCheaper) {
  ModelStudyOptions loose = options();
  loose.tolerance = 1e9;
  const ModelStudy found = study("masked", loose);
  EXPECT_EQ(found.exact_heads, 4) << "16 features pay from 32 tokens on";
  EXPECT_NE(std::get<std::string>(found.heads.rows[0].back()).find("cheaper below 32"), std::string::npos);
  loose.features = {4};
  EXPECT_EQ(study("masked", loose).exact_heads, 0) << "4 features pay from 8 tokens on";
}

TEST(ModelStudy, LeavesTheModelAsItWas) {
  LanguageModel model = make_model();
  const ModelStudy first = measured(model, options());
  SequenceBatch batch;
  batch.tokens = at::zeros({1, 50}, at::kLong);
  batch.positions = at::arange(50).unsqueeze(0);
  model->forward(batch);  // would be measured by an observer that was left behind
  EXPECT_EQ(to_tsv(measured(model, options()).errors), to_tsv(first.errors));
}

TEST(ModelStudy, LeavesNoObserverBehindWhenTheInputIsBad) {
  LanguageModel model = make_model();
  const std::string path = temporary_file("approx_bad.fasta", ">a\nMKTAYIAKQR\n>b\nMK1\n");
  const auto reader = data::open_reader(path, {}, data::Vocabulary::protein());
  EXPECT_THROW(model_study(model, *reader, path, options()), InputError);
  // An observer that is left behind would write into what the study has freed (seen by the sanitizers).
  SequenceBatch batch;
  batch.tokens = at::zeros({1, 50}, at::kLong);
  batch.positions = at::arange(50).unsqueeze(0);
  model->forward(batch);
}

TEST(ModelStudy, ReadsAnyVocabulary) {
  LanguageModel model = make_model({.kind = "exact", .vocabulary = data::Vocabulary::bytes()});
  const std::string path = temporary_file("approx.txt", "Plain text is a sequence.");
  const auto reader = data::open_reader(path, {}, data::Vocabulary::bytes());
  const ModelStudy found = model_study(model, *reader, path, options());
  EXPECT_EQ(found.sequences, 1);
  EXPECT_NE(found.heads.title.find("1 sequences, 25 bytes on average"), std::string::npos)
      << found.heads.title;
}

TEST(ModelStudy, SaysWhatCannotBeMeasured) {
  EXPECT_THROW(study("causal", options(), "identity"), UsageError);
  ModelStudyOptions short_only = options();
  short_only.max_length = 5;
  EXPECT_THROW(study("causal", short_only), InputError);
  ModelStudyOptions bad = options();
  bad.tolerance = 0;
  EXPECT_THROW(study("causal", bad), UsageError);
}

}  // namespace
}  // namespace performer::studies
