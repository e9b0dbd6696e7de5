// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <cmath>

#include "performer/nn/attention/kind.h"
#include "performer/studies/kernel_estimate.h"
#include "performer/studies/studies.h"

namespace performer::studies {
namespace {

constexpr double kSquaredSums[] = {0.25, 0.5, 1, 2, 4, 8, 12, 16};
constexpr int64_t kPairs = 16;
constexpr int64_t kDrawsPerDraw =
    16;  // of the projection, for each independent set of data of the other studies

}  // namespace

Study kernel_error_study(const StudyOptions& options, const Progress& progress) {
  validate(options);
  const at::NoGradGuard no_grad;
  const int64_t features = options.features.back(), draws = options.draws * kDrawsPerDraw;
  Study study{
      {"kernel_error",
       fmt::format("Relative error of exp(x y) for x orthogonal to y: {} features, head size {}, {} draws",
                   features, options.head_size, draws),
       {"kind", "squared_sum", "error", "error_se", "predicted_iid", "bias", "bias_se"},
       {}},
      {}};
  Chart chart{fmt::format("Error of the kernel estimate, {} features", features),
              "|x + y|^2",
              "relative root mean square error",
              true,
              true,
              {}};
  for (const std::string& kind : options.kinds) {
    const Estimator estimator = parse_estimator(kind);
    if (!estimates_softmax(estimator.attention)) continue;
    if (progress) progress(fmt::format("kernel error: {}", kind));
    ops::FeatureMapOptions map = nn::find_kind(estimator.attention.kind).feature_map(estimator.attention);
    map.features = features;
    ChartSeries series{kind, {}, false};
    for (const double squared_sum : kSquaredSums) {
      const Pairs pairs = pairs_at(squared_sum, 0, kPairs, options.head_size, options.seed);
      const at::Tensor estimates = relative_estimates(pairs, map, draws, options.seed);
      const Mean mean_square = mean_square_error(estimates), bias = mean_of(estimates.mean(-1) - 1);
      const double root = std::sqrt(mean_square.value), root_error = mean_square.error / (2 * root);
      study.table.add({kind, squared_sum, root, root_error,
                       std::sqrt(predicted_mean_square(map, squared_sum, 0)), bias.value, bias.error});
      series.points.push_back({squared_sum, root, root_error});
    }
    chart.series.push_back(std::move(series));
  }
  study.charts.emplace_back("kernel_error", std::move(chart));
  study.summary = to_pivot_text(study.table, {}, "kind", "squared_sum", "error");
  return study;
}

}  // namespace performer::studies
