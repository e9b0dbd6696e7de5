// SPDX-License-Identifier: Apache-2.0
// The tasks that a run on files can train, by the names of task.kind.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "performer/data/labels.h"
#include "performer/train/model_task.h"

namespace performer::train {

// What a task is made of; all of it outlives the task.
struct TaskParts {
  const data::Corpus& train;
  const data::Corpus* valid = nullptr;
  const data::LabelledSequences& train_labels;
  const data::LabelledSequences* valid_labels = nullptr;  // as `valid`
};

struct TaskKind {
  const char* name;
  const char* summary;
  std::unique_ptr<ModelTask> (*make)(const LanguageModelConfig& config, const TaskParts& parts);
};

const std::vector<TaskKind>& task_kinds();
// The task that config.task.kind names. Throws UsageError for an unknown name and what the tasks throw.
std::unique_ptr<ModelTask> make_task(const LanguageModelConfig& config, const TaskParts& parts);

}  // namespace performer::train
