// SPDX-License-Identifier: Apache-2.0
#include "performer/train/language_model_config.h"

#include "performer/base/error.h"
#include "performer/nn/attention/kind.h"
#include "performer/train/out_of_memory.h"
#include "performer/train/slices.h"
#include "performer/train/slim.h"
#include "performer/train/trained_parameters.h"

namespace performer::train {
namespace {

template <class Config>
void add_settings(Settings& settings, const std::string& section, const Config& config) {
  for (const FieldInfo& field : list_fields(section, config)) settings[field.key()] = to_text(field.value);
}

// Linux grants memory that it does not have and kills the process once it is used, without a word. What
// surely cannot fit is therefore refused beforehand, by what the blocks must keep for the backward pass:
// their inputs, and without recomputation norms, projections, attention and both sides of the activation too.
void check_memory(const LanguageModelConfig& config) {
  const ModelConfig& model = config.model;
  const int64_t inside = config.train.checkpoint_activations ? 0 : 4 * model.width + 2 * model.ffn;
  const double bytes = config.train.precision == "bfloat16" ? 2 : 4;
  const double needed = static_cast<double>(kept_tokens(config)) * static_cast<double>(model.layers) *
                        static_cast<double>(model.width + inside) * bytes;
  constexpr double kGiB = 1 << 30;
  check(needed < physical_memory(),
        "out of memory: batches of data.batch_tokens = {} tokens take more than {:.0f} GiB with this model, "
        "and this machine has {:.0f} GiB: lower data.batch_tokens and raise train.accumulate to make up for "
        "it, lower data.length ({}), model.layers or model.width, or {}",
        config.data.batch_tokens, needed / kGiB, physical_memory() / kGiB, config.data.length,
        saving_advice(config));
}

// What a task asks of the other sections.
void validate_task(const LanguageModelConfig& config) {
  parse_frozen(config.train.freeze, config.model.layers);
  if (!config.task.has_head()) return;
  check<UsageError>(config.train.slim_chunk == 0,
                    "train.slim_chunk = {} is for language models, not for task.kind = {}: set it to 0",
                    config.train.slim_chunk, config.task.kind);
  check<UsageError>(
      config.data.layout != "concatenated",
      "data.layout = concatenated joins sequences, of which task.kind = {} needs each: set it to "
      "packed",
      config.task.kind);
}

}  // namespace

void validate(const LanguageModelConfig& config) {
  validate(config.model, config.attention);
  validate(config.train);
  validate_data(config.data, config.train);
  validate_slim(config.model, config.attention, config.train);
  validate(config.task);
  validate_task(config);
  validate_slices(config);
  check_memory(config);
}

Settings task_settings(const LanguageModelConfig& config) {
  Settings settings;
  add_settings(settings, "model", config.model);
  add_settings(settings, "attention", config.attention);
  add_settings(settings, "data", config.data);
  add_settings(settings, "task", config.task);
  return settings;
}

int64_t kept_tokens(const LanguageModelConfig& config) {
  const DataConfig& data = config.data;
  if (config.train.slim_chunk == 0) return data.batch_tokens;
  const int64_t shared = data.batch_tokens * config.train.sequence_parallel;  // chunks go round the ranks
  const int64_t rows = data.layout == "packed" ? 1 : shared / data.length;
  return config.train.slim_chunk < shared / rows ? rows * config.train.slim_chunk : shared;
}

std::string saving_advice(const LanguageModelConfig& config) {
  const TrainConfig& train = config.train;
  if (train.slim_chunk > 0) return fmt::format("lower train.slim_chunk ({})", train.slim_chunk);
  const bool slim =
      config.model.objective == "causal" && nn::find_kind(config.attention.kind).capabilities.chunks;
  return slim ? "set train.slim_chunk (1024, say)" : "set train.checkpoint_activations = true";
}

}  // namespace performer::train
