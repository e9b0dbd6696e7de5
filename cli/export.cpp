// SPDX-License-Identifier: Apache-2.0
// performer export: a model folder as a Hugging Face folder.
#include "performer/models/convert/export.h"

#include <spdlog/spdlog.h>

#include <filesystem>
#include <memory>

#include "cli/commands.h"
#include "cli/options.h"
#include "performer/base/error.h"
#include "performer/base/files.h"

namespace performer::cli {

namespace {

struct ExportOptions {
  CommonOptions common;
  std::string model, output;
};

void run(const ExportOptions& options) {
  options.common.apply();
  check<UsageError>(!same_file(options.output, options.model),
                    "-o {} is the model itself: give another folder", options.output);
  check<UsageError>(!std::filesystem::exists(std::filesystem::path(options.output) / "config.json"),
                    "{} holds a model already: remove it, or give another folder", options.output);
  const ModelFolder folder = load_model(options.model);
  const std::string shape = convert::export_shape(folder);
  for (const std::string& note : convert::export_model(options.output, folder)) spdlog::info("{}", note);
  spdlog::info("{} is a Hugging Face folder of model_type {}", options.output, shape);
}

}  // namespace

Action export_command(CLI::App& app) {
  auto options = std::make_shared<ExportOptions>();
  app.add_option("MODEL", options->model, "model folder")->required();
  app.add_option("-o,--output", options->output, "Hugging Face folder that is made")
      ->required()
      ->type_name("DIR");
  options->common.add_to(app);
  app.footer(
      "Models with exact attention whose shape is that of BERT, RoBERTa, ESM, GPT-2 or LLaMA: transformers "
      "loads "
      "them\nunchanged and computes the same logits. For other models the reasons are named.");
  return [options] { run(*options); };
}

}  // namespace performer::cli
