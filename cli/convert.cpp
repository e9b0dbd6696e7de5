// SPDX-License-Identifier: Apache-2.0
// performer convert: a pretrained Transformer of another program as a model folder.
#include "performer/models/convert/convert.h"

#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <memory>

#include "cli/commands.h"
#include "cli/options.h"
#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/nn/attention/kind.h"
#include "performer/train/conversion.h"

namespace performer::cli {

namespace {

struct ConvertOptions {
  CommonOptions common;
  std::string source, output, attention = "exact", tokenizer = "auto";
  std::vector<std::string> settings, transfer_files;
  int64_t transfer_steps = 200, finetune_steps = 0;
  double threshold = 0;
};

void check_output(const std::string& output, const std::string& source) {
  namespace fs = std::filesystem;
  check<UsageError>(!same_file(output, source), "-o {} is the source itself: give another folder", output);
  check<UsageError>(!fs::exists(fs::path(output) / "config.json"),
                    "{} holds a model already: remove it, or give another folder", output);
}

convert::Request request_of(const ConvertOptions& options, bool attention_given) {
  convert::Request request{options.source};
  if (attention_given) request.attention = options.attention;
  for (const std::string& setting : options.settings) {
    if (!setting.starts_with("train.")) request.settings.push_back(setting);
  }
  if (options.tokenizer == "ids") {
    request.tokenizer = convert::Tokenizer::ids;
  } else if (options.tokenizer != "auto") {
    request.tokenizer_files = options.tokenizer;
  }
  return request;
}

void report(const convert::Conversion& made, const ConvertOptions& options) {
  const LanguageModel& model = made.folder.model;
  const ModelConfig& sizes = model->model_config();
  spdlog::info("{} is {}: {} parameters, {} layers, width {}, {} heads, {} tokens", options.source,
               made.family, model->parameter_count(), sizes.layers, sizes.width, sizes.heads,
               made.folder.vocabulary.size());
  for (const std::string& note : made.notes) spdlog::info("{}", note);
  const std::string notice = nn::notice_of(sizes, model->attention_config());
  if (!notice.empty()) spdlog::info("{}", notice);
  const std::string& kind = model->attention_config().kind;
  if (kind == "exact") {
    spdlog::info("attention is exact: the model computes what the source computes");
  } else {
    spdlog::warn(
        "attention was replaced by {}: until the model is trained further its answers are worse than "
        "those of the source, often useless; measure them with {}",
        kind,
        made.trained_head ? "performer evaluate" : "--transfer FILE (--transfer-steps 0 measures alone)");
  }
}

// The settings of the fine-tuning.
TrainConfig train_config(const ConvertOptions& options) {
  TrainConfig config;
  for (const std::string& setting : options.settings) {
    const size_t equals = setting.find('=');
    if (!setting.starts_with("train.") || equals == std::string::npos) continue;
    set_field("train", config, setting.substr(6, equals - 6), setting.substr(equals + 1));
  }
  validate(config);
  return config;
}

void improve(const convert::Conversion& made, const ConvertOptions& options) {
  convert::Request request = request_of(options, false);
  std::erase_if(request.settings,
                [](const std::string& setting) { return setting.starts_with("attention."); });
  const convert::Conversion original = convert::convert(request);
  train::ConversionRequest steps;
  steps.source = options.source;
  steps.trained_head = made.trained_head;
  steps.files = options.transfer_files;
  steps.output = options.output;
  steps.transfer_steps = options.transfer_steps;
  steps.threshold = options.threshold;
  steps.finetune_steps = options.finetune_steps;
  steps.train = train_config(options);
  steps.tell = [](const std::string& line) { spdlog::info("{}", line); };
  const auto found = train::improve_conversion(original.folder, made.folder, steps);
  spdlog::info("{}", found["verdict"].get<std::string>());
}

void run(const ConvertOptions& options, bool attention_given) {
  options.common.apply();
  check_output(options.output, options.source);
  const bool improves = !options.transfer_files.empty();
  check<UsageError>(improves || options.finetune_steps == 0,
                    "--finetune needs sequences: give --transfer FILE");
  const convert::Conversion made = convert::convert(request_of(options, attention_given));
  if (!improves) save_model(options.output, made.folder);
  report(made, options);
  if (improves) improve(made, options);
}

}  // namespace

Action convert_command(CLI::App& app) {
  auto options = std::make_shared<ConvertOptions>();
  app.add_option("SOURCE", options->source,
                 "Hugging Face folder, or file of weights; what it is is found out by its content")
      ->required();
  app.add_option("-o,--output", options->output, "model folder that is made")->required()->type_name("DIR");
  CLI::Option* attention =
      app.add_option(
             "--attention", options->attention,
             "what attention computes: exact (as the source), auto, favor-softmax, or another kind of "
             "`performer info --kinds`")
          ->type_name("KIND")
          ->capture_default_str();
  app.add_option("--set", options->settings,
                 "a setting of [model], [attention] or [data], such as attention.features=256")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  app.add_option(
         "--tokenizer", options->tokenizer,
         "auto (letters of proteins and other sequences), ids (the model reads the source's token ids as "
         "numbers), or a file or folder with vocab.txt, tokenizer.json, vocab.json or dict.txt")
      ->capture_default_str();
  app.add_option("--transfer", options->transfer_files,
                 "sequences on which the other kind learns to give what exact attention gives; a part is "
                 "held out and "
                 "measured on (conversion.json)")
      ->type_name("FILE");
  whole_option(app, "--transfer-steps", options->transfer_steps, "steps of that", {0, kLargestSize});
  real_option(app, "--exact-threshold", options->threshold,
              "heads whose output is further off than this stay exact (relative error); 0: none", {0, 1e6});
  whole_option(app, "--finetune", options->finetune_steps, "then train the whole model for so many steps",
               {0, kLargestSize});
  options->common.add_to(app);
  std::vector<std::string> known;
  for (const convert::Family& family : convert::families())
    known.push_back(fmt::format("  {:<18} {}", family.name, family.summary));
  app.footer(
      fmt::format("Sources:\n{}\nWith exact attention logits are those of the source. Another kind keeps "
                  "every weight and changes what\nattention computes: such a model needs more training "
                  "(performer train --from). docs/conversion.md has the numbers.",
                  fmt::join(known, "\n")));
  return [options, attention] { run(*options, attention->count() > 0); };
}

}  // namespace performer::cli
