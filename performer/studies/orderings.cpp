// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <cmath>

#include "performer/studies/kernel_estimate.h"
#include "performer/studies/studies.h"

namespace performer::studies {
namespace {

constexpr int64_t kOrderingHeadSize = 8;  // small, where orthogonality matters most and tails are short
constexpr int64_t kOrderingFeatures = 8;
constexpr int64_t kOrderingPairs = 4;
constexpr int64_t kOrderingDraws = 1000;

ops::FeatureMapOptions map_of(const char* map, const char* projection, const char* row_norm = "chi") {
  ops::FeatureMapOptions options;
  options.map = map;
  options.features = kOrderingFeatures;
  options.projection = projection;
  options.row_norm = row_norm;
  return options;
}

// "smaller has at most the mean square error of larger".
struct Claim {
  const char* text;
  ops::FeatureMapOptions smaller, larger;
};

std::vector<Claim> claims() {
  return {
      {"hyperbolic <= favor+ (2009.14794, lemma 2)", map_of("hyperbolic", "iid"), map_of("favor+", "iid")},
      {"orthogonal <= iid (2009.14794, theorem 2)", map_of("favor+", "orthogonal"), map_of("favor+", "iid")},
      {"simplex <= orthogonal (2301.13856)", map_of("favor+", "simplex"), map_of("favor+", "orthogonal")},
      {"oprf <= favor+ (2205.15317)", map_of("oprf", "iid"), map_of("favor+", "iid")},
      {"sderf <= oprf (2302.00787)", map_of("sderf", "iid"), map_of("oprf", "iid")}};
}

// Half the width of a 99.9 % interval in standard errors: there are many comparisons, and squares of
// estimates have long tails.
constexpr double kInterval = 3.29;

struct Interval {
  double low, high;
  // Around `ratio`, whose logarithm has this standard error.
  static Interval of_ratio(double ratio, double relative_error) {
    const double factor = std::exp(kInterval * relative_error);
    return {ratio / factor, ratio * factor};
  }
};

std::string verdict(const Interval& interval) {
  if (interval.high <= 1) return "holds";
  return interval.low > 1 ? "contradicted" : "within noise";
}

}  // namespace

Study ordering_study(const StudyOptions& options, const Progress& progress) {
  validate(options);
  const at::NoGradGuard no_grad;
  const int64_t draws = options.draws * kOrderingDraws;
  Study study{
      {"orderings",
       fmt::format("Mean square errors of exp(x y), head size {}, {} features, {} draws; intervals of 99.9 %",
                   kOrderingHeadSize, kOrderingFeatures, draws),
       {"claim", "squared_sum", "smaller", "larger", "ratio", "low", "high", "verdict"},
       {}},
      {}};
  for (const double squared_sum : {0.25, 0.5, 1.0}) {
    if (progress) progress(fmt::format("orderings: |x + y|^2 = {:g}", squared_sum));
    const double product = squared_sum / 8;  // neither orthogonal nor parallel
    const Pairs pairs = pairs_at(squared_sum, product, kOrderingPairs, kOrderingHeadSize, options.seed + 1);
    int64_t seed = options.seed;
    const auto measure = [&](const ops::FeatureMapOptions& map) {
      return mean_square_error(relative_estimates(pairs, map, draws, ++seed));
    };
    for (const Claim& claim : claims()) {
      const Mean smaller = measure(claim.smaller), larger = measure(claim.larger);
      const double ratio = smaller.value / larger.value;
      const Interval interval =
          Interval::of_ratio(ratio, std::hypot(smaller.error / smaller.value, larger.error / larger.value));
      study.table.add({std::string(claim.text), squared_sum, smaller.value, larger.value, ratio, interval.low,
                       interval.high, verdict(interval)});
    }
    for (const char* name : {"favor+", "hyperbolic", "trigonometric"}) {
      const ops::FeatureMapOptions map = map_of(name, "iid");
      const Mean found = measure(map);
      const double predicted = predicted_mean_square(map, squared_sum, product),
                   ratio = found.value / predicted;
      const Interval interval = Interval::of_ratio(ratio, found.error / found.value);
      study.table.add({fmt::format("{} iid = its formula (2009.14794, lemma 2)", name), squared_sum,
                       found.value, predicted, ratio, interval.low, interval.high,
                       std::string(interval.low <= 1 && interval.high >= 1 ? "holds" : "contradicted")});
    }
    // The regularised kernel lies below the softmax kernel everywhere (2009.14794, theorem 1).
    const Mean mean =
        mean_of(relative_estimates(pairs, map_of("favor+", "orthogonal", "sqrt-d"), draws, ++seed).mean(-1));
    const Interval interval{mean.value - kInterval * mean.error, mean.value + kInterval * mean.error};
    study.table.add({std::string("smreg <= softmax kernel (2009.14794, theorem 1)"), squared_sum, mean.value,
                     1.0, mean.value, interval.low, interval.high, verdict(interval)});
  }
  study.summary = to_text(study.table);
  return study;
}

}  // namespace performer::studies
