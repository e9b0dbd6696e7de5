// SPDX-License-Identifier: Apache-2.0
#include "performer/models/prediction_head.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "performer/base/error.h"
#include "performer/models/folder.h"
#include "tests/errors.h"

namespace performer {
namespace {

using testing::AllOf;
using testing::HasSubstr;

HeadConfig three_classes() {
  HeadConfig config;
  config.classes = {"a", "b, \"quoted\"", "\xCE\xB1"};
  return config;
}

TEST(PredictionHead, GivesProbabilitiesAndScaledNumbers) {
  PredictionHead classes(three_classes(), 8);
  const at::Tensor rows = at::randn({5, 8});
  const at::Tensor probabilities = classes->predictions(classes->forward(rows));
  EXPECT_EQ(probabilities.sizes(), (std::vector<int64_t>{5, 3}));
  EXPECT_TRUE(at::allclose(probabilities.sum(1), at::ones({5})));
  HeadConfig number;
  number.kind = "token-regression";
  number.mean = 10;
  number.scale = 2;
  PredictionHead values(number, 8);
  const at::Tensor outputs = values->forward(rows);
  EXPECT_TRUE(at::allclose(values->predictions(outputs), 10 + 2 * outputs));
}

TEST(PredictionHead, ComesBackFromItsFile) {
  const PredictionHead head(three_classes(), 8);
  const TensorFile file = head_file(head);
  PredictionHead again = parse_head(file, 8, "head.safetensors");
  EXPECT_EQ(again->config().classes, head->config().classes);
  const at::Tensor rows = at::randn({5, 8});
  EXPECT_TRUE(at::equal(again->forward(rows), head->forward(rows)));

  const auto refusal = [&](const auto& change, int64_t width = 8) {
    TensorFile damaged = file;
    change(damaged);
    return test::error_of<InputError>([&] { parse_head(damaged, width, "head.safetensors"); });
  };
  EXPECT_THAT(refusal([](TensorFile&) {}, 16), AllOf(HasSubstr("head.safetensors"), HasSubstr("width 16")));
  EXPECT_THAT(refusal([](TensorFile& f) { f.tensors.erase("bias"); }), HasSubstr("'bias'"));
  EXPECT_THAT(refusal([](TensorFile& f) { f.tensors["more"] = at::zeros({1}); }), HasSubstr("3 tensors"));
  EXPECT_THAT(refusal([](TensorFile& f) { f.metadata.erase("head"); }), HasSubstr("does not say"));
  EXPECT_THAT(refusal([](TensorFile& f) { f.metadata["head"] = "{"; }),
              HasSubstr("description of the head, line 1, column 2: not JSON"));
  EXPECT_THAT(refusal([](TensorFile& f) { f.metadata["head"] = R"({"kind": 1})"; }),
              HasSubstr("description of the head: 'kind' must be text, not 1"));
  const auto described = [&](const std::string& from, const std::string& to) {
    return refusal([&](TensorFile& f) {
      std::string& text = f.metadata["head"];
      ASSERT_NE(text.find(from), std::string::npos);
      text.replace(text.find(from), from.size(), to);
    });
  };
  EXPECT_THAT(described("sequence-", "sentence-"), HasSubstr("'sentence-classification'"));
  EXPECT_THAT(described("\"mean\",", "\"median\","), HasSubstr("'median'"));
  EXPECT_THAT(described("\"scale\":1.0", "\"scale\":0"), HasSubstr("must be above 0"));
}

TEST(PredictionHead, LiesInTheModelFolder) {
  const std::string path = fmt::format("{}/performer-head-{}", testing::TempDir(), ::getpid());
  std::filesystem::remove_all(path);
  ModelFolder folder;
  folder.model = LanguageModel(ModelConfig{.layers = 1, .width = 16, .heads = 2, .ffn = 16},
                               AttentionConfig(), folder.vocabulary.size());
  folder.data.vocabulary = "protein";
  save_model(path, folder);
  EXPECT_TRUE(load_model(path).head.is_empty());
  EXPECT_EQ(load_model(path).from, "");
  folder.head = PredictionHead(three_classes(), 16);
  folder.from = "some/model";
  save_model(path, folder);
  const ModelFolder again = load_model(path);
  ASSERT_FALSE(again.head.is_empty());
  EXPECT_EQ(again.head->config().outputs(), 3);
  EXPECT_EQ(again.from, "some/model");
  EXPECT_EQ(read_model_settings(path).model.width, 16);
  std::filesystem::remove_all(path);
}

}  // namespace
}  // namespace performer
