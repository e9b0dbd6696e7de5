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

namespace performer::cli {

namespace {

struct ConvertOptions {
  CommonOptions common;
  std::string source, output, attention = "exact", tokenizer = "auto";
  std::vector<std::string> settings;
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
  request.settings = options.settings;
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
        "those of the source, often useless; measure them with performer evaluate",
        kind);
  }
}

void run(const ConvertOptions& options, bool attention_given) {
  options.common.apply();
  check_output(options.output, options.source);
  const convert::Conversion made = convert::convert(request_of(options, attention_given));
  save_model(options.output, made.folder);
  report(made, options);
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
  options->common.add_to(app);
  std::vector<std::string> known;
  for (const convert::Family& family : convert::families())
    known.push_back(fmt::format("  {:<16} {}", family.name, family.summary));
  app.footer(
      fmt::format("Sources:\n{}\nWith exact attention logits are those of the source. Another kind keeps "
                  "every weight and changes what\nattention computes: such a model needs more training "
                  "(performer train --from). docs/conversion.md has the numbers.",
                  fmt::join(known, "\n")));
  return [options, attention] { run(*options, attention->count() > 0); };
}

}  // namespace performer::cli
