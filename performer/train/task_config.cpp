// SPDX-License-Identifier: Apache-2.0
#include "performer/train/task_config.h"

#include "performer/base/error.h"

namespace performer {

void validate(const TaskConfig& config) {
  check_choices(list_fields("task", config));
  check<UsageError>(!config.has_head() || !config.labels.empty(),
                    "task.kind = {} needs labels: set task.labels to a table of ids and labels", config.kind);
  const auto check_unused = [&](const char* key, const std::string& value) {
    check<UsageError>(config.has_head() || value.empty(),
                      "task.{} = {} is for tasks with labels: set task.kind, to sequence-classification for "
                      "example, or leave it out",
                      key, value);
  };
  check_unused("labels", config.labels);
  check_unused("id_column", config.id_column);
  check_unused("label_column", config.label_column);
}

}  // namespace performer
