// SPDX-License-Identifier: Apache-2.0
#include "performer/train/prediction_metrics.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/base/ranks.h"

namespace performer::train {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
constexpr double kSmallest =
    std::numeric_limits<float>::min();  // of a probability, below which it is one of float32's zeros

double ratio(double part, double whole) {
  return whole > 0 ? part / whole : kNone;
}

}  // namespace

PredictionMetrics::PredictionMetrics(const HeadConfig& head) : head_(head) {
  classes_.resize(head.classifies() ? head.classes.size() : 0);
}

double PredictionMetrics::Counts::f1() const {
  return 2 * static_cast<double>(hits) / static_cast<double>(labels + predicted);
}

void PredictionMetrics::add(const at::Tensor& predictions, std::span<const float> labels) {
  check(predictions.size(0) == std::ssize(labels), "{} predictions beside {} labels", predictions.size(0),
        labels.size());
  const at::Tensor rows = predictions.to(at::kFloat).contiguous();
  const float* values = rows.const_data_ptr<float>();
  const auto outputs = static_cast<size_t>(head_.outputs());
  for (size_t i = 0; i < labels.size(); ++i) {
    if (std::isnan(labels[i])) continue;
    ++labels_;
    const std::span row(values + i * outputs, outputs);
    if (!head_.classifies()) {
      expected_.push_back(labels[i]);
      predicted_.push_back(row[0]);
      continue;
    }
    const auto label = static_cast<size_t>(labels[i]);
    const auto best = static_cast<size_t>(std::ranges::max_element(row) - row.begin());
    ++classes_.at(label).labels;
    ++classes_[best].predicted;
    classes_[label].hits += best == label;
    log_likelihood_ += std::log(std::max<double>(row[label], kSmallest));
  }
}

double PredictionMetrics::accuracy() const {
  int64_t hits = 0;
  for (const Counts& each : classes_) hits += each.hits;
  return ratio(static_cast<double>(hits), static_cast<double>(labels_));
}

double PredictionMetrics::macro_f1() const {
  double sum = 0, count = 0;
  for (const Counts& each : classes_) {
    if (each.labels + each.predicted == 0) continue;
    sum += each.f1();
    ++count;
  }
  return ratio(sum, count);
}

double PredictionMetrics::cross_entropy() const {
  return ratio(-log_likelihood_, static_cast<double>(labels_));
}

double PredictionMetrics::majority() const {
  int64_t most = 0;
  for (const Counts& each : classes_) most = std::max(most, each.labels);
  return ratio(static_cast<double>(most), static_cast<double>(labels_));
}

double PredictionMetrics::spearman() const {
  // A diverged model may predict NaN, which has no rank.
  if (std::ranges::any_of(predicted_, [](double value) { return std::isnan(value); })) return kNone;
  return performer::spearman(expected_, predicted_);
}

double PredictionMetrics::pearson() const {
  return performer::pearson(expected_, predicted_);
}

double PredictionMetrics::mean_squared_error() const {
  double sum = 0;
  for (size_t i = 0; i < expected_.size(); ++i)
    sum += (expected_[i] - predicted_[i]) * (expected_[i] - predicted_[i]);
  return ratio(sum, static_cast<double>(expected_.size()));
}

double PredictionMetrics::mean_absolute_error() const {
  double sum = 0;
  for (size_t i = 0; i < expected_.size(); ++i) sum += std::abs(expected_[i] - predicted_[i]);
  return ratio(sum, static_cast<double>(expected_.size()));
}

double PredictionMetrics::variance() const {
  double sum = 0, squares = 0;
  const auto count = static_cast<double>(expected_.size());
  for (const double value : expected_) sum += value;
  for (const double value : expected_) squares += (value - sum / count) * (value - sum / count);
  return ratio(squares, count);
}

std::vector<std::pair<std::string, double>> PredictionMetrics::scalars() const {
  if (head_.classifies())
    return {{"accuracy", accuracy()}, {"macro_f1", macro_f1()}, {"cross_entropy", cross_entropy()}};
  return {{"spearman", spearman()}, {"pearson", pearson()}, {"mse", mean_squared_error()}};
}

nlohmann::ordered_json PredictionMetrics::to_json() const {
  nlohmann::ordered_json json = {{"kind", head_.kind}, {"labels", labels_}};
  for (const auto& [key, value] : scalars()) json[key] = value;
  if (!head_.classifies()) {
    json["mae"] = mean_absolute_error();
    json["variance"] = variance();
    return json;
  }
  json["majority"] = majority();
  json["by_class"] = nlohmann::ordered_json::array();
  for (size_t i = 0; i < classes_.size(); ++i) {
    const Counts& each = classes_[i];
    const auto hits = static_cast<double>(each.hits);
    json["by_class"].push_back({{"class", head_.classes[i]},
                                {"labels", each.labels},
                                {"predicted", each.predicted},
                                {"precision", ratio(hits, static_cast<double>(each.predicted))},
                                {"recall", ratio(hits, static_cast<double>(each.labels))},
                                {"f1", each.labels + each.predicted > 0 ? each.f1() : kNone}});
  }
  return json;
}

std::string PredictionMetrics::summary() const {
  if (head_.classifies())
    return fmt::format("accuracy {:.3f} (most frequent class {:.3f}), macro F1 {:.3f}", accuracy(),
                       majority(), macro_f1());
  return fmt::format("Spearman {:.3f}, Pearson {:.3f}, MSE {:.4g} (of the mean {:.4g})", spearman(),
                     pearson(), mean_squared_error(), variance());
}

std::string PredictionMetrics::to_text() const {
  std::string text;
  const auto row = [&](const char* name, double value) {
    text += fmt::format("{:<24}{:>12.4f}\n", name, value);
  };
  if (head_.classifies()) {
    row("accuracy", accuracy());
    row("macro F1", macro_f1());
    row("cross entropy", cross_entropy());
    row("most frequent class", majority());
  } else {
    row("Spearman", spearman());
    row("Pearson", pearson());
    row("MSE", mean_squared_error());
    row("MAE", mean_absolute_error());
    row("MSE of the mean", variance());
  }
  return text + fmt::format("{} labels\n", labels_);
}

}  // namespace performer::train
