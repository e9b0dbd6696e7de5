// SPDX-License-Identifier: Apache-2.0
// The configuration of a language model's training, its checks, and the memory that it takes.
#pragma once

#include <cstdint>
#include <string>

#include "performer/data/config.h"
#include "performer/nn/config.h"
#include "performer/train/config.h"
#include "performer/train/task.h"
#include "performer/train/task_config.h"

namespace performer::train {

struct LanguageModelConfig {
  ModelConfig model;
  AttentionConfig attention;
  DataConfig data;
  TrainConfig train;
  TaskConfig task = {};
};

// Throws UsageError for what the sections or SLiM (slim.h) refuse, and Error when the activations of a batch
// surely do not fit into this machine's memory.
void validate(const LanguageModelConfig& config);

// Of all sections but [train].
Settings task_settings(const LanguageModelConfig& config);

// Tokens of a batch whose activations are kept at a time.
int64_t kept_tokens(const LanguageModelConfig& config);

// What still trades time for memory, for messages: "lower train.slim_chunk (1024)".
std::string saving_advice(const LanguageModelConfig& config);

}  // namespace performer::train
