// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/model_study.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "performer/base/error.h"
#include "performer/studies/model_input.h"

namespace performer::studies {
namespace {

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

// Measures every layer's queries and keys in the forward passes during its life.
class Measuring {
 public:
  Measuring(LanguageModel& model, const std::vector<Estimator>& estimators, const ModelStudyOptions& options)
      : model_(model), layers_(static_cast<size_t>(model->model_config().layers)) {
    const bool causal = model->model_config().objective == "causal";
    model_->observe_attention([this, causal, &estimators, &options](int64_t layer, const at::Tensor& query,
                                                                    const at::Tensor& key,
                                                                    const at::Tensor& value) {
      const Sample sample{query.to(at::kFloat).contiguous(), key.to(at::kFloat).contiguous(),
                          value.to(at::kFloat).contiguous(), causal};
      measure(layers_[static_cast<size_t>(layer)], sample, estimators, options);
    });
  }
  ~Measuring() { model_->observe_attention({}); }
  Measuring(const Measuring&) = delete;
  Measuring& operator=(const Measuring&) = delete;

  const std::vector<LayerSums>& layers() const { return layers_; }

 private:
  LanguageModel model_;
  std::vector<LayerSums> layers_;
};

// Reads the first sequences that are short enough, counts them in `study`, and returns their tokens.
int64_t read_sequences(LanguageModel& model, data::Reader& reader, const std::string& source,
                       const ModelStudyOptions& options, const Progress& progress, ModelStudy& study) {
  const data::Vocabulary vocabulary = reader.vocabulary();
  int64_t tokens = 0;
  data::Record record;
  while (study.sequences < options.sequences && reader.next(record)) {
    const int64_t length = std::ssize(record.tokens);
    if (length > options.max_length) {
      ++study.left_out;
      continue;
    }
    if (progress) progress(fmt::format("sequence {}: {} {}", record.id, length, vocabulary.unit()));
    model->hidden(
        as_batch(model_input(model->model_config().objective, vocabulary, record.tokens, /*whole=*/false)));
    tokens += length;
    ++study.sequences;
  }
  check<InputError>(study.sequences > 0, "{}: none of the {} sequences is within --max-length {}", source,
                    study.left_out, options.max_length);
  return tokens;
}

// The tables and the picture of sums over study.sequences sequences of `tokens` tokens.
void report(ModelStudy& study, const std::vector<LayerSums>& layers, int64_t tokens,
            const ModelConfig& config, const std::vector<Estimator>& estimators,
            const ModelStudyOptions& options) {
  const auto count = static_cast<double>(study.sequences), mean_length = static_cast<double>(tokens) / count;
  const bool causal = config.objective == "causal";
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
      const Advice advice = advise(errors, estimators, options, mean_length, causal);
      study.exact_heads += advice.exact ? 1 : 0;
      study.heads.add({layer, head, mean(sums.squared_norm), mean(sums.attended), mean(sums.uniform),
                       *std::min_element(errors.begin(), errors.end()), advice.text});
    }
  }
  study.charts.emplace_back(
      "model_errors", Chart{fmt::format("Error of each head's output, {} features", options.features.back()),
                            "mean of |x + y|^2 over pairs of queries and keys", "relative error", true, true,
                            std::move(series)});
}

}  // namespace

ModelStudy model_study(LanguageModel& model, data::Reader& reader, const std::string& source,
                       const ModelStudyOptions& options, const Progress& progress) {
  const ModelConfig& config = model->model_config();
  check_options(options, config);
  nn::require(model->attention_config().kind, nn::capabilities_of(model->attention_config()).reads_queries,
              "queries and keys to measure", "study a model of another kind");
  const at::NoGradGuard no_grad;
  model->eval();
  std::vector<Estimator> estimators;
  for (const std::string& kind : options.kinds) estimators.push_back(parse_estimator(kind));

  ModelStudy study;
  const Measuring measuring(model, estimators, options);
  const int64_t tokens = read_sequences(model, reader, source, options, progress, study);
  study.heads = {
      "model_heads",
      fmt::format("Queries and keys of the model, head by head ({} sequences, {:.0f} {} on average)",
                  study.sequences, static_cast<double>(tokens) / static_cast<double>(study.sequences),
                  reader.vocabulary().unit()),
      {"layer", "head", "squared_norm", "attended", "uniform_error", "best_error", "advice"},
      {}};
  study.errors = {"model_errors",
                  "Error of each approximation on the model's queries and keys",
                  {"layer", "head", "kind", "features", "output_error", "matrix_error", "moved"},
                  {}};
  report(study, measuring.layers(), tokens, config, estimators, options);
  return study;
}

}  // namespace performer::studies
