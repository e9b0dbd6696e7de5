// SPDX-License-Identifier: Apache-2.0
// A training run from files to a model folder: what the command `train` does.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "performer/train/language_model_config.h"
#include "performer/train/trainer.h"

namespace performer::train {

struct LanguageModelRequest : LanguageModelConfig {
  // FASTA, text or images: files, folders, or "-" for standard input. Without valid_files, data.holdout of
  // the training sequences are held out by a hash of their tokens.
  std::vector<std::string> train_files, valid_files;
  std::string output;   // model folder, made when missing; must be empty unless `resume`
  bool resume = false;  // continue the run in `output`; anything that changes results must be as it was
  RunOptions options;
  // Told while files are read, in each pass from the beginning; on the ranks that read.
  data::ReadProgress reading = {};
  // Called when all files were read, before the first step: from here on options.stop is heeded.
  std::function<void()> before_training = {};
};

// Reserves the folder, reads the files, makes the model and trains it: run() of trainer.h for a
// the task that task.kind names, after taking over the weights of train.from. Throws what these throw, and
// UsageError for a request that cannot be, before anything is written or read.
RunResult run(const LanguageModelRequest& request);

}  // namespace performer::train
