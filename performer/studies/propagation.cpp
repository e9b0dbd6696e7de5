// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <torch/types.h>

#include <cmath>

#include "performer/models/language_model.h"
#include "performer/studies/statistics.h"
#include "performer/studies/studies.h"

namespace performer::studies {
namespace {

constexpr int64_t kModelHeads = 4;
// Of the untrained model: any number does, but another one would draw other weights and change the results.
constexpr int64_t kModelVocabulary = 29;

ModelConfig model_config(const StudyOptions& options) {
  ModelConfig model;
  model.layers = options.layers;
  model.heads = kModelHeads;
  model.head_size = options.head_size;
  model.width = kModelHeads * options.head_size;
  model.ffn = 4 * model.width;
  model.dropout = 0;
  model.positions = "sinusoidal";
  model.objective = options.causal ? "causal" : "masked";
  return model;
}

// The exact model's weights in a model of another attention; what that has beyond them keeps its start.
void copy_shared(LanguageModel& to, const LanguageModel& from) {
  auto targets = to->named_parameters();
  for (const auto& item : from->named_parameters()) targets[item.key()].copy_(item.value());
}

// Queries and keys of the first layer get entries of standard deviation `std`: with weights as initialised
// and inputs of unit variance they have 1.
void scale_queries_and_keys(LanguageModel& model, double std) {
  for (const auto& item : model->named_parameters()) {
    const bool wanted =
        item.key().ends_with("attention.query.weight") || item.key().ends_with("attention.key.weight");
    if (wanted) item.value().mul_(std);
  }
}

// Relative errors of the residual stream after each layer, one a draw, of a model with the weights of `exact`
// and attention of another kind.
std::vector<at::Tensor> errors_by_layer(const LanguageModel& exact, const Representations& expected,
                                        const SequenceBatch& batch, const std::string& kind, int64_t features,
                                        const StudyOptions& options) {
  AttentionConfig attention = parse_estimator(kind).attention;
  set_features(attention, features);
  attention.seed = options.seed;
  LanguageModel model(exact->model_config(), attention, kModelVocabulary);
  model->eval();
  copy_shared(model, exact);
  std::vector<at::Tensor> errors(static_cast<size_t>(options.layers));
  for (int64_t draw = 0; draw < options.draws; ++draw) {
    model->redraw(draw);
    const Representations found = model->represent(batch);
    for (size_t layer = 0; layer < errors.size(); ++layer) {
      const at::Tensor error =
          (found.layers[layer] - expected.layers[layer]).norm() / expected.layers[layer].norm();
      errors[layer] = errors[layer].defined() ? at::cat({errors[layer], error.view(1)}) : error.view(1);
    }
  }
  return errors;
}

}  // namespace

Study propagation_study(const StudyOptions& options, const Progress& progress) {
  validate(options);
  const at::NoGradGuard no_grad;
  const int64_t features = options.features.back(), length = options.lengths.front();
  Study study{
      {"propagation",
       fmt::format(
           "Relative error of the residual stream of an untrained model: {} features, length {}, {} draws",
           features, length, options.draws),
       {"kind", "features", "std", "layer", "error", "error_se"},
       {}},
      {}};
  const ModelConfig config = model_config(options);
  for (const double std : options.stds) {
    if (progress) progress(fmt::format("propagation: std {:g}", std));
    AttentionConfig exact_attention;
    exact_attention.kind = "exact";
    torch::manual_seed(static_cast<uint64_t>(options.seed));
    LanguageModel exact(config, exact_attention, kModelVocabulary);
    exact->eval();
    scale_queries_and_keys(exact, std);
    SequenceBatch batch;
    batch.tokens = at::randint(0, 20, {1, length}, at::kLong);
    batch.positions = at::arange(length).unsqueeze(0);
    const Representations expected = exact->represent(batch);
    Chart chart{fmt::format("Error after each layer, standard deviation {:g}, {} features", std, features),
                "layer",
                "relative error",
                false,
                true,
                {}};
    for (const std::string& kind : options.kinds) {
      const auto errors = errors_by_layer(exact, expected, batch, kind, features, options);
      ChartSeries series{kind, {}, false};
      for (size_t layer = 0; layer < errors.size(); ++layer) {
        const Mean mean = mean_of(errors[layer]);
        study.table.add({kind, features, std, static_cast<int64_t>(layer + 1), mean.value, mean.error});
        series.points.push_back({static_cast<double>(layer + 1), mean.value, mean.error});
      }
      chart.series.push_back(std::move(series));
    }
    study.charts.emplace_back(fmt::format("propagation_std{:g}", std), std::move(chart));
  }
  study.summary = to_pivot_text(study.table, {"std"}, "kind", "layer", "error");
  return study;
}

}  // namespace performer::studies
