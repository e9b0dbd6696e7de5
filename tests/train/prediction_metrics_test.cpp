// SPDX-License-Identifier: Apache-2.0
#include "performer/train/prediction_metrics.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace performer::train {
namespace {

const float kNone = std::nanf("");

TEST(PredictionMetrics, ClassesByHand) {
  HeadConfig head;
  head.classes = {"a", "b", "c", "d"};
  PredictionMetrics metrics(head);
  // Predicted a, b, b, a; d is neither a label nor predicted.
  const at::Tensor predictions = at::tensor({0.7F, 0.1F, 0.1F, 0.1F,  //
                                             0.2F, 0.5F, 0.2F, 0.1F,  //
                                             0.1F, 0.6F, 0.2F, 0.1F,  //
                                             0.9F, 0.1F, 0.0F, 0.0F})
                                     .view({4, 4});
  metrics.add(predictions.narrow(0, 0, 2), std::vector<float>{0, 1});
  metrics.add(predictions.narrow(0, 2, 2), std::vector<float>{2, kNone});
  EXPECT_EQ(metrics.labels(), 3);
  EXPECT_DOUBLE_EQ(metrics.accuracy(), 2.0 / 3);
  // F1: a 1, b 2 * 1 / (1 + 2), c 0; d does not count.
  EXPECT_DOUBLE_EQ(metrics.macro_f1(), (1 + 2.0 / 3 + 0) / 3);
  EXPECT_NEAR(metrics.cross_entropy(), -(std::log(0.7) + std::log(0.5) + std::log(0.2)) / 3, 1e-6);
  EXPECT_DOUBLE_EQ(metrics.majority(), 1.0 / 3);
  const auto json = metrics.to_json();
  EXPECT_EQ(json["by_class"][1]["precision"], 0.5);
  EXPECT_EQ(json["by_class"][2]["recall"], 0);
  EXPECT_TRUE(nlohmann::json::parse(json.dump())["by_class"][3]["f1"].is_null());
  EXPECT_THAT(metrics.to_text(), ::testing::HasSubstr("macro F1"));
}

TEST(PredictionMetrics, NumbersByHand) {
  HeadConfig head;
  head.kind = "sequence-regression";
  PredictionMetrics metrics(head);
  metrics.add(at::tensor({1.0F, 2.0F, 7.0F, 100.0F}).view({4, 1}), std::vector<float>{1, 3, 5, kNone});
  EXPECT_EQ(metrics.labels(), 3);
  EXPECT_DOUBLE_EQ(metrics.spearman(), 1);
  EXPECT_NEAR(metrics.pearson(), 12 / std::sqrt(8 * 62 / 3.0), 1e-12);
  EXPECT_DOUBLE_EQ(metrics.mean_squared_error(), (0 + 1 + 4) / 3.0);
  EXPECT_DOUBLE_EQ(metrics.mean_absolute_error(), 1);
  EXPECT_DOUBLE_EQ(metrics.variance(), 8 / 3.0);
  PredictionMetrics none(head);
  EXPECT_TRUE(std::isnan(none.spearman()));
  none.add(at::tensor({kNone}).view({1, 1}), std::vector<float>{1});
  EXPECT_TRUE(std::isnan(none.goodness())) << "a diverged model is never the best";
}

}  // namespace
}  // namespace performer::train
