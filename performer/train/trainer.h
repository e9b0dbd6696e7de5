// SPDX-License-Identifier: Apache-2.0
// The training loop: batches, gradients, clipping, optimizer, schedule, evaluations, checkpoints, progress.
// What it trains is a task (task.h). A run that was stopped and resumed gives bit for bit the results of one
// that never stopped.
#pragma once

#include <atomic>
#include <cstdint>

#include "performer/distributed/communicator.h"
#include "performer/train/config.h"
#include "performer/train/run_folder.h"
#include "performer/train/task.h"

namespace performer::train {

struct RunOptions {
  double time_limit = 0;  // seconds of training in this call, 0: none; the step under way is finished
  bool progress = false;  // draw a progress line on standard error
  const std::atomic<bool>* stop =
      nullptr;  // set by a signal handler: write a checkpoint and throw Interrupted
  // Of the run; null: this process alone. All ranks call run() with the same task, settings and folder, of
  // which rank 0 alone writes (RunFolder); a signal or a time limit of one stops all after the same step.
  distributed::Communicator* ranks = nullptr;
};

struct RunResult {
  int64_t steps = 0;             // over the whole run: optimizer steps made,
  int64_t tokens = 0;            // tokens read
  int64_t targets = 0;           // and targets that counted
  double loss = 0;               // mean of the last step
  double seconds = 0;            // over the whole run, evaluations included
  double tokens_per_second = 0;  // read in the steps of this call
};

// Trains `task` for train.steps steps, or goes on with the run in `folder` when that was opened to resume.
// Step s counts from 1 and uses the rate schedule(s) (protein_lm counts from 0, whose first step with a
// warm-up has the rate 0). Metrics are written as in metrics_log.h. LibTorch's default generator is used as
// it is found, and is a part of checkpoints: who makes the task seeds it. The same settings, data and number
// of threads give the same losses. Throws UsageError, InputError, Error (diverged, disk full, out of memory)
// or Interrupted; the last checkpoint then stays usable.
RunResult run(Task& task, const RunFolder& folder, const TrainConfig& config, const RunOptions& options = {});

}  // namespace performer::train
