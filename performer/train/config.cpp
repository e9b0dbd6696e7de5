// SPDX-License-Identifier: Apache-2.0
#include "performer/train/config.h"

#include <cmath>

#include "performer/base/error.h"

namespace performer {
namespace {

void check_at_least(const char* key, int64_t value, int64_t smallest) {
  check<UsageError>(value >= smallest, "train.{} must be {} or more, but is {}", key, smallest, value);
}

void check_not_negative(const char* key, double value) {
  check<UsageError>(value >= 0 && std::isfinite(value), "train.{} must be 0 or more, but is {}", key, value);
}

void check_fraction(const char* key, double value) {
  check<UsageError>(value >= 0 && value < 1, "train.{} must be 0 or more and below 1, but is {}", key, value);
}

}  // namespace

void validate(const TrainConfig& config) {
  check_choices(list_fields("train", config));
  check_at_least("steps", config.steps, 1);
  check_at_least("accumulate", config.accumulate, 1);
  check_at_least("slim_chunk", config.slim_chunk, 0);
  check_at_least("sequence_parallel", config.sequence_parallel, 1);
  check_at_least("log_every", config.log_every, 1);
  check_at_least("evaluate_every", config.evaluate_every, 0);
  check_at_least("checkpoint_every", config.checkpoint_every, 0);
  check_not_negative("learning_rate", config.learning_rate);
  check_not_negative("weight_decay", config.weight_decay);
  check_not_negative("clip", config.clip);
  check_not_negative("adam_epsilon", config.adam_epsilon);
  check_not_negative("decay_factor", config.decay_factor);
  check_fraction("adam_beta1", config.adam_beta1);
  check_fraction("adam_beta2", config.adam_beta2);
  check_at_least("lora_rank", config.lora_rank, 0);
  check_at_least("patience", config.patience, 0);
  check<UsageError>(config.layer_decay > 0 && config.layer_decay <= 1,
                    "train.layer_decay must be above 0 and at most 1, but is {}", config.layer_decay);
  check<UsageError>(config.lora_alpha > 0 && std::isfinite(config.lora_alpha),
                    "train.lora_alpha must be above 0, but is {}", config.lora_alpha);
  check_fraction("lora_dropout", config.lora_dropout);
  check<UsageError>(config.lora_rank == 0 || !config.lora_targets.empty(),
                    "train.lora_rank = {} needs projections to adapt: set train.lora_targets",
                    config.lora_rank);
  check<UsageError>(
      config.patience == 0 || config.evaluate_every > 0,
      "train.patience = {} counts evaluations, of which train.evaluate_every = 0 has one at the "
      "end: set it to a number of steps",
      config.patience);
  train::make_schedule(config);
}

train::Schedule train::make_schedule(const TrainConfig& config) {
  return Schedule(config.schedule, {.base = config.learning_rate,
                                    .warmup = config.warmup,
                                    .decay_factor = config.decay_factor,
                                    .steps_per_decay = config.steps_per_decay,
                                    .steps_per_cycle = config.steps_per_cycle});
}

}  // namespace performer
