// SPDX-License-Identifier: Apache-2.0
// metrics.jsonl, one JSON object a line (docs/formats.md), and the same numbers for TensorBoard.
#pragma once

#include <cstdint>
#include <fstream>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "performer/train/run_folder.h"
#include "performer/train/task.h"
#include "performer/train/tensorboard.h"

namespace performer::train {

struct StepMetrics {
  int64_t step = 0;     // from 1
  double loss = 0;      // mean over the step's targets, natural logarithm
  double accuracy = 0;  // NaN: the task has none, and no perplexity either (task.h)
  int64_t tokens = 0;   // read so far, padding aside
  int64_t targets = 0;  // that counted, so far
  double learning_rate = 0;
  double gradient_norm = 0;      // before clipping
  double tokens_per_second = 0;  // read in this step
  double seconds = 0;            // of training so far
};

// Largest resident size of this process so far, in MiB.
double peak_memory_mib();

class MetricsLog {
 public:
  // Appends to the folder's metrics.jsonl after dropping what lies behind `step`: records of later steps,
  // summaries of runs that are now continued, and a line that was cut off by a crash.
  MetricsLog(const std::string& directory, int64_t step);

  void add(const StepMetrics& metrics);
  void add(int64_t step, const EvaluationReport& report);  // {"step", "valid": {...}}
  // {"step", "final": {..., task_totals}}
  void finish(const RunState& state, double tokens_per_second, const nlohmann::ordered_json& task_totals);

 private:
  void write(const nlohmann::ordered_json& record);  // keys in the order given: people read it

  std::string path_;
  std::ofstream file_;
  TensorBoardWriter tensorboard_;
};

}  // namespace performer::train
