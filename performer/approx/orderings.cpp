// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <cmath>

#include "performer/approx/kernel_estimate.h"
#include "performer/approx/studies.h"

namespace performer::approx {
namespace {

constexpr int64_t kOrderingHeadSize = 8;  // small, where orthogonality matters most and tails are short
constexpr int64_t kOrderingFeatures = 8;
constexpr int64_t kOrderingPairs = 4;
constexpr int64_t kOrderingDraws = 1000;

struct Map {
  const char* name;
  ops::FeatureMapOptions options;
};

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
  Map smaller, larger;
};

std::vector<Claim> claims() {
  return {{"hyperbolic <= favor+ (2009.14794, lemma 2)",
           {"hyperbolic iid", map_of("hyperbolic", "iid")},
           {"favor+ iid", map_of("favor+", "iid")}},
          {"orthogonal <= iid (2009.14794, theorem 2)",
           {"favor+ orthogonal", map_of("favor+", "orthogonal")},
           {"favor+ iid", map_of("favor+", "iid")}},
          {"simplex <= orthogonal (2301.13856)",
           {"favor+ simplex", map_of("favor+", "simplex")},
           {"favor+ orthogonal", map_of("favor+", "orthogonal")}},
          {"oprf <= favor+ (2205.15317)",
           {"oprf iid", map_of("oprf", "iid")},
           {"favor+ iid", map_of("favor+", "iid")}},
          {"sderf <= oprf (2302.00787)",
           {"sderf iid", map_of("sderf", "iid")},
           {"oprf iid", map_of("oprf", "iid")}}};
}

// Half the width of a 99.9 % interval in standard errors: there are many comparisons, and squares of
// estimates have long tails.
constexpr double kInterval = 3.29;

std::string verdict(double low, double high) {
  if (high <= 1) return "holds";
  return low > 1 ? "contradicted" : "within noise";
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
    const auto measure = [&](const Map& map) {
      return mean_square_error(relative_estimates(pairs, map.options, draws, ++seed));
    };
    for (const Claim& claim : claims()) {
      const MeanSquare smaller = measure(claim.smaller), larger = measure(claim.larger);
      const double ratio = smaller.value / larger.value;
      const double spread =
          kInterval * std::hypot(smaller.error / smaller.value, larger.error / larger.value);
      const double low = ratio * std::exp(-spread), high = ratio * std::exp(spread);
      study.table.add({std::string(claim.text), squared_sum, smaller.value, larger.value, ratio, low, high,
                       verdict(low, high)});
    }
    for (const Map& map :
         {Map{"favor+ iid", map_of("favor+", "iid")}, Map{"hyperbolic iid", map_of("hyperbolic", "iid")},
          Map{"trigonometric iid", map_of("trigonometric", "iid")}}) {
      const MeanSquare found = measure(map);
      const double predicted = predicted_mean_square(map.options, squared_sum, product),
                   ratio = found.value / predicted;
      const double spread = kInterval * found.error / found.value;
      const double low = ratio * std::exp(-spread), high = ratio * std::exp(spread);
      study.table.add({fmt::format("{} = its formula (2009.14794, lemma 2)", map.name), squared_sum,
                       found.value, predicted, ratio, low, high,
                       std::string(low <= 1 && high >= 1 ? "holds" : "contradicted")});
    }
    // The regularised kernel lies below the softmax kernel everywhere (2009.14794, theorem 1).
    const at::Tensor of_draws =
        relative_estimates(pairs, map_of("favor+", "orthogonal", "sqrt-d"), draws, ++seed).mean(-1);
    const double mean = of_draws.mean().item<double>();
    const double spread = kInterval * of_draws.std().item<double>() / std::sqrt(static_cast<double>(draws));
    study.table.add({std::string("smreg <= softmax kernel (2009.14794, theorem 1)"), squared_sum, mean, 1.0,
                     mean, mean - spread, mean + spread, verdict(mean - spread, mean + spread)});
  }
  study.summary = to_text(study.table);
  return study;
}

}  // namespace performer::approx
