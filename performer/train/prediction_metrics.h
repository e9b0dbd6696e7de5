// SPDX-License-Identifier: Apache-2.0
// How well classes or numbers are predicted.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "performer/models/prediction_head.h"

namespace performer::train {

// Of classes: accuracy; macro F1, the mean over the classes that occur among labels or predictions of
// 2 precision recall / (precision + recall); the mean of -log p(label); and the accuracy of always giving the
// most frequent class. Of numbers: Spearman's and Pearson's correlation, mean squared and absolute error, and
// the variance, which is the error of always giving the mean. NaN where nothing was labelled, and
// correlations where one side does not vary.
class PredictionMetrics {
 public:
  explicit PredictionMetrics(const HeadConfig& head);

  // Predictions [N, outputs] of PredictionHead::predictions() beside N labels; those that are NaN do not
  // count.
  void add(const at::Tensor& predictions, std::span<const float> labels);

  int64_t labels() const { return labels_; }
  double accuracy() const;
  double macro_f1() const;
  double cross_entropy() const;
  double majority() const;
  double spearman() const;
  double pearson() const;
  double mean_squared_error() const;
  double mean_absolute_error() const;
  double variance() const;

  // The main result: accuracy, or Spearman's correlation.
  double goodness() const { return head_.classifies() ? accuracy() : spearman(); }
  // {"kind", "labels", "accuracy", "macro_f1", "cross_entropy", "majority", "by_class": [{"class", "labels",
  // "predicted", "precision", "recall", "f1"}]}, or {"kind", "labels", "spearman", "pearson", "mse", "mae",
  // "variance"}; what is NaN is null.
  nlohmann::ordered_json to_json() const;
  std::vector<std::pair<std::string, double>> scalars() const;
  std::string summary() const;  // "accuracy 0.912 (most frequent class 0.300), macro F1 0.905"
  std::string to_text() const;  // a table

 private:
  struct Counts {
    int64_t labels = 0, predicted = 0, hits = 0;
    double f1() const;
  };

  HeadConfig head_;
  int64_t labels_ = 0;
  std::vector<Counts> classes_;
  double log_likelihood_ = 0;
  std::vector<double> expected_, predicted_;  // numbers
};

}  // namespace performer::train
