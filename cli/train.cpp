// SPDX-License-Identifier: Apache-2.0
// performer train: from sequences to a model folder.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/heartbeat.h"
#include "cli/inputs.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/process.h"
#include "cli/ranks.h"
#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/distributed/communicator.h"
#include "performer/models/folder.h"
#include "performer/models/sizes.h"
#include "performer/train/language_model_run.h"

namespace performer::cli {

namespace {

struct TrainOptions {
  CommonOptions common;
  ConfigSources sources;
  std::vector<std::string> train_files, valid_files;
  std::string output, time_limit, from, task, labels;
  std::optional<int64_t> steps;
  std::optional<int64_t> seed;
  RankOptions ranks;
  bool resume = false, dry_run = false;
};

// The model folder that a new run starts from; empty: none.
std::string start_of(const TrainOptions& options) {
  return options.from.empty() ? resolve(options.sources).train.from : options.from;
}

// The settings of a model folder, by "section.key".
train::Settings settings_of(const std::string& model) {
  const ModelSettings found = read_model_settings(model);
  train::Settings settings;
  const auto add = [&](const std::vector<FieldInfo>& fields) {
    for (const FieldInfo& field : fields) settings[field.key()] = to_text(field.value);
  };
  add(list_fields("model", found.model));
  add(list_fields("attention", found.attention));
  add(list_fields("data", found.data));
  return settings;
}

// The configuration with the options that stand for keys applied last. A resumed run starts from its own
// settings, so that they need not be given again; the trainer refuses changes that would change its results.
RunConfig configure(const TrainOptions& options) {
  ConfigSources sources = options.sources;
  if (options.resume) {
    check<UsageError>(!options.output.empty(), "--resume needs the folder of the run: give -o DIR");
    sources.base = train::load_training(options.output).settings;
  } else if (const std::string from = start_of(options); !from.empty()) {
    check<UsageError>(options.sources.preset.empty(),
                      "--preset gives a shape, and a run --from a model has that model's: leave one out");
    sources.base = settings_of(from);
  }
  RunConfig config = resolve(sources);
  if (!options.from.empty() && !same_file(options.from, config.train.from)) config.train.from = options.from;
  if (!options.task.empty()) config.task.kind = options.task;
  if (!options.labels.empty()) config.task.labels = options.labels;
  if (options.steps) config.train.steps = *options.steps;
  if (options.seed) config.train.seed = config.data.seed = config.attention.seed = *options.seed;
  return config;
}

std::string preset_help() {
  std::string text = "start from a named configuration:";
  for (const auto& preset : presets()) text += fmt::format("\n{} ({})", preset.name, preset.description);
  return text;
}

// The folder of a run must be none that is read, and no file in it may be.
void refuse_run_folder(const TrainOptions& options) {
  std::vector<std::string> inputs = options.train_files;
  inputs.insert(inputs.end(), options.valid_files.begin(), options.valid_files.end());
  refuse_input_as_folder(options.output, inputs, "", {".json", ".jsonl", ".safetensors", ".performer"});
}

// A job that its launcher started again goes on from its last checkpoint.
bool resumes(const TrainOptions& options, const distributed::Environment& environment) {
  if (options.resume) return true;
  return environment.attempt > 0 && std::filesystem::exists(train::training_file(options.output));
}

train::LanguageModelRequest request_of(const TrainOptions& options, const RunConfig& config) {
  train::LanguageModelRequest request;
  request.model = config.model;
  request.attention = config.attention;
  request.data = config.data;
  request.train = config.train;
  request.task = config.task;
  request.train_files = options.train_files;
  request.valid_files = options.valid_files;
  request.output = options.output;
  request.resume = options.resume;
  request.options.progress = !options.common.quiet && can_redraw_lines();
  request.options.stop = &interrupt_reading();
  request.reading = tell_reading();
  request.before_training = stop_with_checkpoint;
  if (!options.time_limit.empty()) {
    request.options.time_limit = parse_duration("--time-limit", options.time_limit);
  }
  return request;
}

void train_as(const distributed::Environment& environment, const TrainOptions& options,
              train::LanguageModelRequest& request) {
  const auto ranks = distributed::connect(environment, {.silence_seconds = options.ranks.timeout});
  request.options.ranks = ranks.get();
  train::run(request);
}

void run(TrainOptions options) {
  const distributed::Environment environment = environment_of(options.ranks);
  apply_common(options.common, environment);
  options.resume = resumes(options, environment);
  const RunConfig config = configure(options);
  validate(config);
  if (options.dry_run) {
    Output out("-");
    out.write(to_toml(config));
    return out.finish();
  }
  check<UsageError>(!options.train_files.empty(),
                    "training needs sequences: give --train FILE... (FASTA, text or images)");
  check<UsageError>(!options.output.empty(), "training needs a place for the model: give -o DIR");
  refuse_run_folder(options);
  if (starts_ranks(options.ranks, environment)) return start_ranks(options.ranks);
  train::LanguageModelRequest request = request_of(options, config);
  train_as(environment, options, request);
}

}  // namespace

Action train_command(CLI::App& app) {
  auto options = std::make_shared<TrainOptions>();
  app.add_option("--preset", options->sources.preset, preset_help())->type_name("NAME");
  app.add_option("--config", options->sources.file,
                 "TOML file with [model], [attention], [data], [train], [task], on top of the preset")
      ->type_name("FILE");
  app.add_option("--set", options->sources.settings, "set one key of the configuration, on top of both")
      ->type_name("SECTION.KEY=VALUE");
  app.add_option(
         "--train", options->train_files,
         "what to train on: FASTA, text or images, as files (plain, gzip or zstd) or folders of them; "
         "- is standard input")
      ->type_name("FILE");
  app.add_option("--valid", options->valid_files,
                 "what to evaluate on, of the same format; without it data.holdout of the training sequences "
                 "is held out")
      ->type_name("FILE");
  app.add_option("--from", options->from,
                 "fine-tune: start with the weights, shape and vocabulary of this model folder")
      ->type_name("MODEL");
  app.add_option("--task", options->task,
                 "what to learn (the same as --set task.kind=KIND): language-model, or from --labels "
                 "sequence-classification, sequence-regression, token-classification, token-regression")
      ->type_name("KIND");
  app.add_option("--labels", options->labels,
                 "table of ids and labels (CSV or TSV): the same as --set task.labels=FILE")
      ->type_name("FILE");
  app.add_option("-o,--output", options->output, "model folder, made when missing")->type_name("DIR");
  whole_option(app, "--steps", options->steps, "optimizer steps: the same as --set train.steps=N",
               {.least = 0});
  whole_option(app, "--seed", options->seed, "sets train.seed, data.seed and attention.seed");
  app.add_option("--time-limit", options->time_limit,
                 "stop after this much training with a finished model: 90, 90s, 30m, 1h30m, 1d, 00:30:00")
      ->type_name("TIME");
  options->ranks.add_to(app, "that train together, each with data.batch_tokens of a step");
  app.add_flag("--resume", options->resume,
               "continue from the last checkpoint in the model folder, exactly as if never stopped");
  app.add_flag("--dry-run", options->dry_run, "print the resolved configuration as TOML and stop");
  options->common.add_to(app);
  app.footer([options] {
    return "Configuration keys with the values they have now (change them with --preset, --config and "
           "--set; --set attention.kind=NAME shows the keys of another kind, and performer info --kinds "
           "lists the kinds):\n" +
           describe_keys(configure(*options)) +
           "\nCtrl-C and the signals SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 write a checkpoint and exit with "
           "130;\n--resume continues from it.";
  });
  return [options] { run(*options); };
}

}  // namespace performer::cli
