// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/model_study.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "performer/base/error.h"
#include "performer/data/fasta.h"
#include "performer/data/vocabulary.h"

namespace performer::studies {
namespace {

// What a causal model reads to predict the sequence, and a masked one reads of it unmasked.
SequenceBatch read_as(const std::string& objective, const std::vector<uint8_t>& residues) {
  std::vector<int64_t> tokens = {data::kBos};
  tokens.insert(tokens.end(), residues.begin(), residues.end());
  if (objective == "causal") {
    tokens.pop_back();
  } else {
    tokens.push_back(data::kEos);
  }
  SequenceBatch batch;
  batch.tokens = at::tensor(tokens, at::kLong).unsqueeze(0);
  batch.positions = at::arange(static_cast<int64_t>(tokens.size())).unsqueeze(0);
  return batch;
}

// Sums over sequences, [H] each, of one layer.
struct LayerSums {
  at::Tensor squared_norm, attended, uniform;
  std::vector<at::Tensor> output, matrix, moved;  // of each (kind, features)
};

void add(at::Tensor& sum, const at::Tensor& term) {
  sum = sum.defined() ? sum + term : term.clone();
}

// Mean of |x + y|^2 over the pairs that attention sees.
at::Tensor mean_squared_norm(const Sample& sample) {
  const double scale = std::pow(static_cast<double>(sample.query.size(-1)), -0.25);
  const at::Tensor x = (sample.query * scale).transpose(1, 2), y = (sample.key * scale).transpose(1, 2);
  const at::Tensor pairs = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2) +
                           2 * at::matmul(x, y.transpose(-1, -2));  // [1, H, T, S]
  const at::Tensor seen = uniform_matrix(sample).gt(0);
  return ((pairs * seen).sum({-1, -2}) / seen.sum({-1, -2})).flatten();
}

void measure(LayerSums& sums, const Sample& sample, const std::vector<Estimator>& estimators,
             const ModelStudyOptions& options) {
  const at::Tensor exact = exact_matrix(sample);
  add(sums.squared_norm, mean_squared_norm(sample));
  add(sums.attended, at::special_entr(exact).sum(-1).mean(-1).exp().flatten());
  add(sums.uniform, matrix_error(uniform_matrix(sample), exact, sample.value).output.flatten());
  const size_t choices = estimators.size() * options.features.size();
  sums.output.resize(choices);
  sums.matrix.resize(choices);
  sums.moved.resize(choices);
  size_t choice = 0;
  for (const Estimator& estimator : estimators) {
    for (const int64_t features : options.features) {
      for (int64_t draw = 0; draw < options.draws; ++draw) {
        const MatrixError error =
            matrix_error(estimated_matrix(sample, estimator, features, draw), exact, sample.value);
        add(sums.output[choice], error.output.flatten() / options.draws);
        add(sums.matrix[choice], error.matrix.flatten() / options.draws);
        add(sums.moved[choice], error.moved.flatten() / options.draws);
      }
      ++choice;
    }
  }
}

struct Advice {
  std::string text;
  bool exact = true;
  std::string kind;
  int64_t features = 0;
};

Advice advise(const std::vector<double>& errors, const std::vector<Estimator>& estimators,
              const ModelStudyOptions& options, double mean_length, bool causal) {
  std::optional<Advice> best;
  double best_error = 0;
  for (size_t choice = 0; choice < errors.size(); ++choice) {
    const int64_t features = options.features[choice % options.features.size()];
    if (!(errors[choice] <= options.tolerance)) continue;
    if (best && (features > best->features || (features == best->features && errors[choice] >= best_error)))
      continue;
    best = Advice{"", false, estimators[choice / options.features.size()].name, features};
    best_error = errors[choice];
  }
  if (!best) return {"exact: no map within the tolerance", true, "", 0};
  const double crossover = static_cast<double>((causal ? 4 : 2) * best->features);
  best->text = fmt::format("{}, {} features", best->kind, best->features);
  if (mean_length < crossover) {
    best->exact = true;
    best->text = fmt::format("exact: cheaper below {:g} tokens than {}", crossover, best->text);
  }
  return *best;
}

void check_options(const ModelStudyOptions& options, const ModelConfig& model) {
  StudyOptions common;
  common.kinds = options.kinds;
  common.features = options.features;
  common.head_size = head_size(model);
  validate(common);
  check<UsageError>(options.draws >= 1, "--draws must be at least 1, not {}", options.draws);
  check<UsageError>(options.sequences >= 1, "--sequences must be at least 1, not {}", options.sequences);
  check<UsageError>(options.max_length >= 1, "--max-length must be at least 1, not {}", options.max_length);
  check<UsageError>(options.tolerance > 0, "--tolerance must be above 0, not {}", options.tolerance);
}

}  // namespace

ModelStudy model_study(LanguageModel& model, const std::string& fasta, const ModelStudyOptions& options,
                       const Progress& progress) {
  const ModelConfig& config = model->model_config();
  check_options(options, config);
  nn::require(model->attention_config().kind,
              nn::find_kind(model->attention_config().kind).capabilities.reads_queries,
              "queries and keys to measure", "study a model of another kind");
  const at::NoGradGuard no_grad;
  model->eval();
  const bool causal = config.objective == "causal";
  std::vector<Estimator> estimators;
  for (const std::string& kind : options.kinds) estimators.push_back(parse_estimator(kind));

  ModelStudy study;
  std::vector<LayerSums> layers(static_cast<size_t>(config.layers));
  double tokens = 0;
  model->observe_attention(
      [&](int64_t layer, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
        const Sample sample{query.to(at::kFloat).contiguous(), key.to(at::kFloat).contiguous(),
                            value.to(at::kFloat).contiguous(), causal};
        measure(layers[static_cast<size_t>(layer)], sample, estimators, options);
      });
  data::FastaReader reader(fasta);
  data::FastaRecord record;
  while (study.sequences < options.sequences && reader.next(record)) {
    if (static_cast<int64_t>(record.tokens.size()) > options.max_length) {
      ++study.left_out;
      continue;
    }
    if (progress) progress(fmt::format("sequence {}: {} residues", record.id, record.tokens.size()));
    model->hidden(read_as(config.objective, record.tokens));
    tokens += static_cast<double>(record.tokens.size());
    ++study.sequences;
  }
  model->observe_attention({});
  check<InputError>(study.sequences > 0, "{}: none of the {} sequences is within --max-length {}", fasta,
                    study.left_out, options.max_length);

  const auto count = static_cast<double>(study.sequences);
  study.heads = {
      "model_heads",
      fmt::format("Queries and keys of the model, head by head ({} sequences, {:.0f} residues on average)",
                  study.sequences, tokens / count),
      {"layer", "head", "squared_norm", "attended", "uniform_error", "best_error", "advice"},
      {}};
  study.errors = {"model_errors",
                  "Error of each approximation on the model's queries and keys",
                  {"layer", "head", "kind", "features", "output_error", "matrix_error", "moved"},
                  {}};
  std::vector<ChartSeries> series;
  for (const Estimator& estimator : estimators) series.push_back({estimator.name, {}, false, /*line=*/false});
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const LayerSums& sums = layers[static_cast<size_t>(layer)];
    for (int64_t head = 0; head < config.heads; ++head) {
      const auto mean = [&](const at::Tensor& sum) { return sum[head].item<double>() / count; };
      std::vector<double> errors;
      for (size_t choice = 0; choice < sums.output.size(); ++choice) {
        const size_t kind = choice / options.features.size(), step = choice % options.features.size();
        errors.push_back(mean(sums.output[choice]));
        study.errors.add({layer, head, estimators[kind].name, options.features[step], errors.back(),
                          mean(sums.matrix[choice]), mean(sums.moved[choice])});
        if (step + 1 == options.features.size())
          series[kind].points.push_back({mean(sums.squared_norm), errors.back(), 0});
      }
      const Advice advice = advise(errors, estimators, options, tokens / count, causal);
      study.exact_heads += advice.exact ? 1 : 0;
      study.heads.add({layer, head, mean(sums.squared_norm), mean(sums.attended), mean(sums.uniform),
                       *std::min_element(errors.begin(), errors.end()), advice.text});
    }
  }
  study.charts.emplace_back(
      "model_errors", Chart{fmt::format("Error of each head's output, {} features", options.features.back()),
                            "mean of |x + y|^2 over pairs of queries and keys", "relative error", true, true,
                            std::move(series)});
  return study;
}

}  // namespace performer::studies
