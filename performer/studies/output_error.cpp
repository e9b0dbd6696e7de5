// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include "performer/base/error.h"
#include "performer/studies/statistics.h"
#include "performer/studies/studies.h"

namespace performer::studies {
namespace {

Sample normal_sample(const StudyOptions& options, double std, int64_t length) {
  // Heads are the draws: each has its own data, and its own projection.
  const auto draw = [&](uint64_t part) {
    auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(options.seed) * 1000 + part);
    return at::randn({1, length, options.draws, options.head_size}, generator);
  };
  return {std * draw(1), std * draw(2), draw(3), options.causal};
}

void add_row(Table& table, const std::string& kind, int64_t features, double std, int64_t length,
             const MatrixError& error) {
  const Mean output = mean_of(error.output), matrix = mean_of(error.matrix), moved = mean_of(error.moved);
  table.add({kind, features, std, length, output.value, output.error, matrix.value, matrix.error, moved.value,
             moved.error});
}

// A chart for each size of inputs and length: error of the output against features.
void draw_charts(Study& study, const StudyOptions& options) {
  for (const int64_t length : options.lengths) {
    for (const double std : options.stds) {
      Chart chart{fmt::format("Error of attention's output, standard deviation {:g}, length {}", std, length),
                  "features",
                  "relative error",
                  true,
                  true,
                  {}};
      for (const auto& row : study.table.rows) {
        if (std::get<double>(row[2]) != std || std::get<int64_t>(row[3]) != length) continue;
        const std::string& kind = std::get<std::string>(row[0]);
        const double value = std::get<double>(row[4]);
        if (kind == "uniform") {
          const auto edge = [&](int64_t features) {
            return ChartPoint{static_cast<double>(features), value, 0};
          };
          chart.series.push_back(
              {kind, {edge(options.features.front()), edge(options.features.back())}, true});
          continue;
        }
        if (chart.series.empty() || chart.series.back().name != kind)
          chart.series.push_back({kind, {}, false});
        chart.series.back().points.push_back(
            {static_cast<double>(std::get<int64_t>(row[1])), value, std::get<double>(row[5])});
      }
      study.charts.emplace_back(fmt::format("output_error_std{:g}_length{}", std, length), std::move(chart));
    }
  }
}

void check_list(const char* option, size_t size, bool all_positive) {
  check<UsageError>(size > 0, "{} is empty: give at least one value", option);
  check<UsageError>(all_positive, "{} must be above 0", option);
}

}  // namespace

void validate(const StudyOptions& options) {
  const auto positive = [](const auto& values) {
    for (const auto value : values) {
      if (!(value > 0)) return false;
    }
    return true;
  };
  check_list("--kinds", options.kinds.size(), true);
  check_list("--features", options.features.size(), positive(options.features));
  check_list("--std", options.stds.size(), positive(options.stds));
  check_list("--lengths", options.lengths.size(), positive(options.lengths));
  check<UsageError>(options.head_size >= 1, "--head-size must be at least 1, not {}", options.head_size);
  check<UsageError>(options.draws >= 2,
                    "--draws must be at least 2, or errors of the mean are unknown; found {}", options.draws);
  check<UsageError>(options.layers >= 1, "--layers must be at least 1, not {}", options.layers);
  ModelConfig model;
  model.width = model.head_size = options.head_size;
  model.heads = 1;
  model.positions = "none";
  for (const std::string& kind : options.kinds) {
    AttentionConfig attention = parse_estimator(kind).attention;
    for (const int64_t features : options.features) {
      set_features(attention, features);
      performer::validate(model, attention);
    }
  }
}

Study output_error_study(const StudyOptions& options, const Progress& progress) {
  validate(options);
  const at::NoGradGuard no_grad;
  Study study{{"output_error",
               fmt::format("Attention by random features against softmax attention: {} draws, head size {}{}",
                           options.draws, options.head_size, options.causal ? ", causal" : ""),
               {"kind", "features", "std", "length", "output_error", "output_error_se", "matrix_error",
                "matrix_error_se", "moved", "moved_se"},
               {}},
              {}};
  for (const int64_t length : options.lengths) {
    for (const double std : options.stds) {
      if (progress) progress(fmt::format("output error: length {}, std {:g}", length, std));
      const Sample sample = normal_sample(options, std, length);
      const at::Tensor exact = exact_matrix(sample);
      add_row(study.table, "uniform", 0, std, length,
              matrix_error(uniform_matrix(sample), exact, sample.value));
      for (const std::string& kind : options.kinds) {
        const Estimator estimator = parse_estimator(kind);
        for (const int64_t features : options.features) {
          const at::Tensor estimated = estimated_matrix(sample, estimator, features, 0);
          add_row(study.table, kind, features, std, length, matrix_error(estimated, exact, sample.value));
        }
      }
    }
  }
  draw_charts(study, options);
  study.summary = to_pivot_text(study.table, {"std", "length"}, "kind", "features", "output_error");
  return study;
}

}  // namespace performer::studies
