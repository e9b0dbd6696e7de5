// SPDX-License-Identifier: Apache-2.0
// What a run keeps on disk beside the model itself: who may write, and everything that a resume needs.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "performer/train/task.h"

namespace performer::train {

// Where a run stands after `step` optimizer steps.
struct RunState {
  int64_t step = 0;
  int64_t tokens = 0;      // read so far
  int64_t targets = 0;     // that counted, so far
  double seconds = 0;      // of training, evaluations included, over all runs
  double loss = 0;         // of the last step
  int64_t evaluated = -1;  // step of the last evaluation
  int threads = 0;
  int ranks = 1;
  // With train.patience: the best evaluation, and how many came after it.
  std::optional<double> best;
  int64_t best_step = -1, since_best = 0;
};

// The contents of training.safetensors.
struct TrainingCheckpoint {
  RunState state;
  Settings settings;
  TaskState task;                          // its tensors are stored as "task.NAME"
  std::map<std::string, at::Tensor> adam;  // as "adam.NAME"
  at::Tensor generator;                    // state of LibTorch's default generator
};

// The file of a run's checkpoint.
std::string training_file(const std::string& directory);

// Atomic. Throws Error when it cannot be written; the checkpoint before it then stays.
void save_training(const std::string& directory, const TrainingCheckpoint& checkpoint);
// Throws UsageError when the folder holds no checkpoint, InputError when it is damaged or of another
// format.
TrainingCheckpoint load_training(const std::string& directory);

// Throws UsageError naming the first key whose value in `now` is not that of the checkpoint. Keys that change
// no result may differ: train.steps, train.log_every, train.evaluate_every, train.checkpoint_every, and how
// the work is divided over ranks.
void check_same_settings(const std::string& directory, const Settings& then, const Settings& now);

// The output folder of a run, reserved for this process until destroyed.
class RunFolder {
 public:
  // Makes the folder when missing and removes what a killed process left half-written. Throws UsageError when
  // it is not empty and `resume` is false, or when another process trains into it. With `writes` false it
  // only names the folder: that of a rank which leaves writing to rank 0.
  RunFolder(const std::string& path, bool resume, bool writes = true);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::string& path() const { return path_; }
  bool resumes() const { return resumes_; }
  bool writes() const { return writes_; }

 private:
  std::string path_;
  bool resumes_, writes_;
  int descriptor_ = -1;  // holds the lock
};

}  // namespace performer::train
