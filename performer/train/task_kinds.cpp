// SPDX-License-Identifier: Apache-2.0
#include "performer/train/task_kinds.h"

#include <algorithm>

#include "performer/base/error.h"
#include "performer/train/language_model_task.h"
#include "performer/train/prediction_task.h"

namespace performer::train {
namespace {

std::unique_ptr<ModelTask> make_language_model(const LanguageModelConfig& config, const TaskParts& parts) {
  return std::make_unique<LanguageModelTask>(config, parts.train, parts.valid, parts.train_labels.weights());
}

std::unique_ptr<ModelTask> make_prediction(const LanguageModelConfig& config, const TaskParts& parts) {
  return std::make_unique<PredictionTask>(config, parts.train, parts.valid, parts.train_labels,
                                          parts.valid_labels, parts.train_labels.classes());
}

}  // namespace

const std::vector<TaskKind>& task_kinds() {
  static const std::vector<TaskKind> kinds = {
      {"language-model", "the next token, or hidden ones", make_language_model},
      {"sequence-classification", "a class for each sequence", make_prediction},
      {"sequence-regression", "a number for each sequence", make_prediction},
      {"token-classification", "a class for each token", make_prediction},
      {"token-regression", "a number for each token", make_prediction},
  };
  return kinds;
}

std::unique_ptr<ModelTask> make_task(const LanguageModelConfig& config, const TaskParts& parts) {
  const auto found =
      std::ranges::find_if(task_kinds(), [&](const TaskKind& kind) { return config.task.kind == kind.name; });
  check<UsageError>(found != task_kinds().end(), "unknown task.kind '{}'", config.task.kind);
  return found->make(config, parts);
}

}  // namespace performer::train
