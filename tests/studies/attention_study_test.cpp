// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/attention_study.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/studies/model_input.h"
#include "tests/errors.h"
#include "tests/infer/tiny_model.h"

namespace performer::studies {
namespace {

using ::testing::HasSubstr;

// Every token attends to the third one alone, or to itself where it may not see that.
class ThirdTokenAttention final : public nn::Attention {
 public:
  at::Tensor forward(const ops::AttentionInputs& inputs) override { return inputs.value; }
  at::Tensor rows(const ops::AttentionInputs& inputs, const nn::RowRange& range) override {
    at::Tensor matrix =
        at::zeros({inputs.value.size(2), inputs.value.size(1), inputs.value.size(1)}, at::kDouble);
    matrix.select(2, 2).fill_(1);
    return matrix.narrow(1, range.first, range.count).unsqueeze(0);
  }
};

void register_third_token() {
  static const bool done = [] {
    nn::AttentionKind kind = nn::find_kind("exact");
    kind.name = "third-token";
    kind.make = [](const AttentionConfig&, const nn::AttentionShape&) {
      return std::make_shared<ThirdTokenAttention>();
    };
    nn::register_kind(kind);
    return true;
  }();
  EXPECT_TRUE(done);
}

LanguageModel model_of(const std::string& kind, const std::string& objective = "masked") {
  TinyModel tiny;
  tiny.kind = kind;
  tiny.objective = objective;
  return make_model(tiny);
}

data::Record record_of(const std::string& letters) {
  data::Record record;
  record.id = "a<b>&c";
  record.tokens = data::Vocabulary::protein().encode_symbols(letters);
  return record;
}

const std::string kLetters =
    "MKMSRLCLSVALLVLLGTLAASTPGCDTSNQAKAQRPDFCLEPPYTGPCKARIIRYFYNAKAGLCQTFVYGGCRAKRNNFKSAEDCMRTCGGAIGPWENL";

AttentionStudy study_of(LanguageModel model, const AttentionStudyOptions& options = {}) {
  return attention_study(model, data::Vocabulary::protein(), record_of(kLetters), options);
}

TEST(AttentionStudy, NamesHeadsByWhereTheirWeightLies) {
  const AttentionStudy identity = study_of(model_of("identity"));
  EXPECT_EQ(identity.length, 102);
  EXPECT_EQ(identity.tokens, "<" + kLetters + ">");
  EXPECT_EQ(identity.band, 2);
  EXPECT_EQ(identity.columns, 5);
  ASSERT_EQ(identity.heads.size(), 4u);
  for (const HeadStatistics& head : identity.heads) {
    EXPECT_EQ(head.label, "diagonal");
    EXPECT_DOUBLE_EQ(head.diagonal, 1);
    EXPECT_NEAR(head.vertical, 5.0 / 102, 1e-12);
    EXPECT_NEAR(head.entropy, 0, 1e-12);
    EXPECT_NEAR(head.attended, 1, 1e-12);
    EXPECT_EQ(head.distance, 0);
    EXPECT_NEAR(head.uniform_attended, 102, 1e-9);
    EXPECT_NEAR(head.uniform_vertical, 5.0 / 102, 1e-12);
    EXPECT_NEAR(head.uniform_diagonal, (102 * 5 - 6) / (102.0 * 102), 1e-12) << "corners lack 2 + 1, twice";
    EXPECT_NEAR(head.uniform_distance, (102.0 * 102 - 1) / (3 * 102), 1e-9);
  }
  register_third_token();
  const AttentionStudy third = study_of(model_of("third-token"));
  for (const HeadStatistics& head : third.heads) {
    EXPECT_EQ(head.label, "vertical");
    EXPECT_DOUBLE_EQ(head.vertical, 1);
    EXPECT_NEAR(head.diagonal, 5.0 / 102, 1e-12);
  }
  AttentionStudyOptions strict;
  strict.threshold = 1;
  strict.near = 0.6;  // of which uniform attention has more than half
  EXPECT_EQ(study_of(model_of("identity"), strict).heads[0].label, "diffuse");
}

TEST(AttentionStudy, CausalHeadsAreComparedWithWhatTheySee) {
  const AttentionStudy study = study_of(model_of("favor-softmax", "causal"));
  EXPECT_EQ(study.length, 101) << "the begin marker and 100 residues";
  for (const HeadStatistics& head : study.heads) {
    EXPECT_NEAR(head.uniform_attended, 51, 1e-9) << "the mean of 1 to 101";
    EXPECT_LT(head.attended, head.uniform_attended);
    EXPECT_EQ(head.negative, 0);
  }
  EXPECT_GT(study_of(model_of("favor-trigonometric", "causal")).heads[0].negative, 0);
}

TEST(AttentionStudy, KeepsTheRowsThatTheModelUses) {
  LanguageModel model = model_of("favor-softmax");
  const AttentionStudy study = study_of(model);
  AttentionStudyOptions some;
  some.layers = {1};
  some.heads = {1, 0, 1};
  some.first_row = 3;
  some.last_row = 7;
  const AttentionStudy part = study_of(model, some);
  ASSERT_EQ(part.layers.size(), 1u);
  ASSERT_EQ(study.layers.size(), 2u);
  EXPECT_EQ(part.layers[0].layer, 1);
  EXPECT_EQ(part.layers[0].rows.sizes(), (std::vector<int64_t>{2, 5, 102}));
  EXPECT_TRUE(at::allclose(part.layers[0].rows, study.layers[1].rows.narrow(1, 3, 5)));
  at::Tensor value, attended;
  const auto observer = [&](int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    if (layer == 1) value = v, attended = model->attention(1)->attend({q, k, v}, {});
  };
  const auto record = record_of(kLetters);
  observe_during(model, observer, [&] {
    model->hidden(as_batch(model_input("masked", data::Vocabulary::protein(), record.tokens, true)));
  });
  const at::Tensor out = at::matmul(study.layers[1].rows, value[0].transpose(0, 1)).transpose(0, 1);
  EXPECT_TRUE(at::allclose(out, attended[0], 1e-3, 1e-4));
}

TEST(AttentionStudy, ShowsLongSequencesByMeans) {
  AttentionStudyOptions options;
  options.matrix_tokens = 50;
  options.picture_cells = 25;
  const AttentionStudy study = study_of(model_of("exact"), options);
  EXPECT_FALSE(study.layers[0].rows.defined());
  const HeatMap& map = study.layers[0].pictures.maps[0];
  EXPECT_EQ(map.rows, 25);
  EXPECT_EQ(map.columns, 25);
  double sum = 0;
  for (const double value : map.values) sum += value;
  EXPECT_NEAR(sum / 625, 1.0 / 102, 1e-3) << "the mean of means is near that of all weights";
}

TEST(AttentionStudy, WritesWhatItFound) {
  const AttentionStudy study = study_of(model_of("exact"));
  const auto json = to_json(study);
  EXPECT_EQ(json["id"], "a<b>&c");
  EXPECT_EQ(json["heads"].size(), 4u);
  EXPECT_EQ(json["heads"][3]["distance"], study.heads[3].distance);
  EXPECT_EQ(json["rows"], nlohmann::ordered_json({0, 101}));
  EXPECT_THAT(to_text(study), HasSubstr("uniform"));
  const std::string svg = to_svg(study.layers[0].pictures);
  EXPECT_THAT(svg, HasSubstr("a&lt;b&gt;&amp;c"));
  EXPECT_THAT(svg, HasSubstr("head 1: "));
}

TEST(AttentionStudy, NamesWhatDoesNotExist) {
  const auto message = [](AttentionStudyOptions options) {
    return test::error_of<UsageError>([&] { study_of(model_of("exact"), options); });
  };
  EXPECT_THAT(message({.layers = {2}}), HasSubstr("--layers 2: this model has 2 layers, from 0 to 1"));
  EXPECT_THAT(message({.heads = {5}}), HasSubstr("--heads 5"));
  EXPECT_THAT(message({.last_row = 102}), HasSubstr("--rows 0:102: the model reads 102 tokens"));
  EXPECT_THAT(message({.first_row = 9, .last_row = 8}), HasSubstr("--rows 9:8"));
  EXPECT_THAT(message({.near = 0}), HasSubstr("--near"));
  EXPECT_THAT(message({.threshold = 2}), HasSubstr("--threshold"));
}

}  // namespace
}  // namespace performer::studies
