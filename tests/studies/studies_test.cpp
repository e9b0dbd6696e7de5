// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/studies.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <map>

#include "performer/base/error.h"
#include "performer/studies/kernel_estimate.h"

namespace performer::studies {
namespace {

Sample sample(bool causal, double std = 0.3) {
  torch::manual_seed(4);
  return {std * at::randn({1, 12, 3, 8}), std * at::randn({1, 12, 3, 8}), at::randn({1, 12, 3, 8}), causal};
}

StudyOptions small() {
  StudyOptions options;
  options.kinds = {"favor-softmax", "favor-softmax:iid", "favor-hyperbolic"};
  options.features = {8, 512};
  options.stds = {0.3};
  options.lengths = {20};
  options.head_size = 8;
  options.draws = 4;
  options.layers = 2;
  return options;
}

TEST(ApproxEstimator, IsReadFromText) {
  const Estimator estimator = parse_estimator("favor-softmax:hadamard:sqrt-d");
  EXPECT_EQ(estimator.attention.kind, "favor-softmax");
  EXPECT_EQ(estimator.attention.options.at("projection"), FieldValue(std::string("hadamard")));
  EXPECT_EQ(estimator.attention.options.at("row_norm"), FieldValue(std::string("sqrt-d")));
  for (const char* bad :
       {"", "favor-sofmax", "exact", "identity", "favor-softmax:qr", "favor-softmax:iid:chi:x"}) {
    EXPECT_THROW(parse_estimator(bad), UsageError) << bad;
  }
  for (const std::string& name : default_estimators()) EXPECT_NO_THROW(parse_estimator(name)) << name;
}

TEST(ApproxEstimator, MatricesAreWhatAttentionAppliesToValues) {
  for (const bool causal : {false, true}) {
    const Sample in = sample(causal);
    const at::Tensor exact = exact_matrix(in), uniform = uniform_matrix(in);
    const at::Tensor estimated = estimated_matrix(in, parse_estimator("favor-softmax"), 2000, 0);
    for (const at::Tensor& matrix : {exact, uniform, estimated}) {
      EXPECT_TRUE(at::allclose(matrix.sum(-1), at::ones({1, 3, 12}), 1e-4, 1e-5));
      EXPECT_EQ(matrix.triu(1).abs().max().item<double>() > 0, !causal);
    }
    const MatrixError error = matrix_error(estimated, exact, in.value),
                      none = matrix_error(exact, exact, in.value);
    EXPECT_LT(error.output.max().item<double>(), 0.1);
    EXPECT_LT(error.moved.max().item<double>(), 0.1);
    EXPECT_GT(error.matrix.min().item<double>(), 0);
    EXPECT_EQ(none.output.max().item<double>(), 0);
  }
}

TEST(ApproxStudies, OutputErrorFallsWithFeaturesAndKnowsUniformAttention) {
  const Study study = output_error_study(small());
  ASSERT_EQ(study.table.rows.size(), 1 + 3 * 2u);
  std::map<std::pair<std::string, int64_t>, double> errors;
  for (const auto& row : study.table.rows)
    errors[{std::get<std::string>(row[0]), std::get<int64_t>(row[1])}] = std::get<double>(row[4]);
  for (const std::string& kind : small().kinds) {
    EXPECT_LT((errors[{kind, 512}]), (errors[{kind, 8}]) / 4) << kind;
    EXPECT_LT((errors[{kind, 512}]), (errors[{"uniform", 0}])) << kind;
  }
  ASSERT_EQ(study.charts.size(), 1u);
  EXPECT_EQ(study.charts[0].second.series.size(), 4u);
  EXPECT_EQ(to_tsv(output_error_study(small()).table), to_tsv(study.table)) << "the seed names everything";
}

TEST(ApproxStudies, PropagationStartsSmallAndEndsWithEveryLayer) {
  const Study study = propagation_study(small());
  ASSERT_EQ(study.table.rows.size(), 3 * 2u);
  for (const auto& row : study.table.rows) {
    EXPECT_GT(std::get<double>(row[4]), 0);
    EXPECT_LT(std::get<double>(row[4]), 0.5);
  }
}

TEST(ApproxStudies, KernelErrorFollowsItsFormula) {
  StudyOptions options = small();
  options.kinds = {"favor-softmax:iid", "favor-relu:orthogonal"};
  options.features = {64};
  options.draws = 40;
  const Study study = kernel_error_study(options);
  ASSERT_EQ(study.table.rows.size(), 8u) << "favor-relu does not estimate softmax";
  for (const auto& row : study.table.rows) {
    if (std::get<double>(row[1]) > 2) continue;  // heavy tails: their mean square needs far more draws
    const double found = std::get<double>(row[2]), predicted = std::get<double>(row[4]);
    EXPECT_NEAR(found / predicted, 1, 5 * std::get<double>(row[3]) / found + 0.02)
        << std::get<double>(row[1]);
    EXPECT_LT(std::abs(std::get<double>(row[5])), 5 * std::get<double>(row[6])) << "biased";
  }
}

TEST(ApproxStudies, OrderingsOfTheTheoremsAreNotContradicted) {
  StudyOptions options = small();
  options.draws = 8;
  const Study study = ordering_study(options);
  int holds = 0;
  for (const auto& row : study.table.rows) {
    const std::string& verdict = std::get<std::string>(row.back());
    EXPECT_NE(verdict, "contradicted") << std::get<std::string>(row[0]) << " at " << std::get<double>(row[1]);
    holds += verdict == "holds" ? 1 : 0;
  }
  EXPECT_GT(holds, static_cast<int>(study.table.rows.size()) / 2) << "too few draws to see anything";
}

TEST(ApproxStudies, PairsHaveTheAskedSumAndProduct) {
  const Pairs pairs = pairs_at(4, 0.5, 7, 16, 1);
  EXPECT_TRUE(at::allclose(pairs.squared_sum(), at::full({7}, 4.0, at::kDouble)));
  EXPECT_TRUE(at::allclose((pairs.x * pairs.y).sum(-1), at::full({7}, 0.5, at::kDouble)));
  EXPECT_TRUE(at::allclose(pairs.squared_sum() - pairs.squared_gap(), 4 * (pairs.x * pairs.y).sum(-1)));
  EXPECT_THROW(pairs_at(1, 0.5, 1, 4, 1), UsageError);
}

TEST(ApproxStudies, NameTheOptionThatIsWrong) {
  const auto message = [](auto&& spoil) {
    StudyOptions options = small();
    spoil(options);
    try {
      validate(options);
    } catch (const UsageError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_NE(message([](StudyOptions& o) { o.features = {}; }).find("--features"), std::string::npos);
  EXPECT_NE(message([](StudyOptions& o) { o.stds = {0}; }).find("--std"), std::string::npos);
  EXPECT_NE(message([](StudyOptions& o) { o.draws = 1; }).find("--draws"), std::string::npos);
  EXPECT_NE(message([](StudyOptions& o) { o.lengths = {-1}; }).find("--lengths"), std::string::npos);
  EXPECT_NE(message([](StudyOptions& o) { o.kinds = {"exact"}; }).find("exact"), std::string::npos);
  EXPECT_EQ(message([](StudyOptions&) {}), "accepted");
}

}  // namespace
}  // namespace performer::studies
