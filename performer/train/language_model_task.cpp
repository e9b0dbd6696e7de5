// SPDX-License-Identifier: Apache-2.0
#include "performer/train/language_model_task.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "performer/base/error.h"
#include "performer/train/autocast.h"
#include "performer/train/evaluation.h"
#include "performer/train/loss.h"
#include "performer/train/slim.h"

namespace performer::train {
namespace {

std::string objective_note(const LanguageModelConfig& config, const std::string& unit) {
  if (config.model.objective != "masked") return "causal: the next token";
  const data::Corruption mix = data::corruption_from_name(config.data.corruption);
  return fmt::format("masked: {} of the {} chosen, of these {} masked, {} random, the rest kept ({})",
                     config.data.mask_rate, unit, mix.mask, mix.random, config.data.corruption);
}

}  // namespace

LanguageModelTask::LanguageModelTask(const LanguageModelConfig& config, const data::Corpus& train,
                                     const data::Corpus* valid, std::span<const float> weights)
    : ModelTask(config, train, valid, config.model.objective, weights) {
  check<UsageError>(!config.task.has_head(), "task.kind = {} is no language model", config.task.kind);
  folder_.objective_note = objective_note(config, folder_.vocabulary.unit());
}

BatchSums LanguageModelTask::backward(const Batch& batch, double divisor) {
  const data::SharedBatch& part = dynamic_cast<const TokenBatch&>(batch).part;
  count_sequences(part.batch);
  trained().begin_backward();
  const BatchSums sums = model_backward(part, divisor);
  trained().end_backward();
  return sums;
}

BatchSums LanguageModelTask::model_backward(const data::SharedBatch& part, double divisor) {
  const TrainConfig& train = config_.train;
  const data::Batch& content = part.batch;
  const bool bfloat16 = train.precision == "bfloat16";
  const at::Tensor targets = target_tensor(content), weights = weight_tensor(content);
  if (train.slim_chunk > 0) {
    return slim_backward(folder_.model, tensors_of(part), targets, weights,
                         {train.slim_chunk, divisor, bfloat16, sequence_ranks().get()});
  }
  const at::Tensor logits = [&] {
    const AutocastScope autocast(bfloat16);
    return folder_.model->forward(tensors_of(part));
  }();
  const CrossEntropySums sums = cross_entropy_gradient(logits, targets, weights, divisor);
  torch::autograd::backward({logits}, {logits.detach()});
  return {sums.loss, sums.correct};
}

std::optional<EvaluationReport> LanguageModelTask::evaluate() {
  if (valid_ == nullptr) return std::nullopt;
  EvaluationOptions options{.stop = stop_, .ranks = ranks_};
  options.progress = evaluation_progress();
  const Evaluation found = train::evaluate(folder_.model, *valid_, config_.data, folder_.baselines, options);
  EvaluationReport report;
  report.record = to_json(found);
  report.goodness = -found.model.perplexity();
  report.scalars = {{"accuracy", found.model.accuracy()},
                    {"perplexity", found.model.perplexity()},
                    {"unigram_perplexity", found.unigram.perplexity()}};
  std::string baselines = fmt::format("unigram {:.3f}", found.unigram.perplexity());
  if (found.bigram.tokens > 0) {
    report.scalars.emplace_back("bigram_perplexity", found.bigram.perplexity());
    baselines += fmt::format(", bigram {:.3f}", found.bigram.perplexity());
  }
  report.summary = fmt::format("held-out perplexity {:.3f} ({}), accuracy {:.3f}", found.model.perplexity(),
                               baselines, found.model.accuracy());
  if (!found.bits_key.empty()) {
    report.scalars.emplace_back(found.bits_key, found.model.bits());
    report.summary += fmt::format(", {:.3f} bits per {}", found.model.bits(),
                                  found.bits_key == "bits_per_byte" ? "byte" : "dimension");
  }
  return report;
}

}  // namespace performer::train
