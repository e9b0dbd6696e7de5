// SPDX-License-Identifier: Apache-2.0
// performer evaluate: a model beside its baselines on held-out sequences.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/report.h"
#include "performer/base/error.h"
#include "performer/models/folder.h"
#include "performer/train/evaluation.h"

namespace performer::cli {

namespace {

struct EvaluateOptions {
  CommonOptions common;
  std::string model, output = "-";
  std::vector<std::string> files;
  bool json = false;
};

nlohmann::ordered_json to_json(const data::Score& score) {
  if (score.tokens == 0) return nullptr;
  return {{"accuracy", score.accuracy()}, {"perplexity", score.perplexity()}, {"tokens", score.tokens}};
}

std::string as_json(const Evaluation& evaluation, const ModelFolder& folder) {
  nlohmann::ordered_json json = {{"model", to_json(evaluation.model)},
                                 {"unigram", to_json(evaluation.unigram)},
                                 {"bigram", to_json(evaluation.bigram)},
                                 {"end_marker", to_json(evaluation.end_marker)},
                                 {"sequences", evaluation.sequences},
                                 {"seconds", evaluation.seconds},
                                 {"objective", folder.model->model_config().objective}};
  if (folder.model->model_config().objective == "masked") {
    json["corruption"] = folder.data.corruption;
    json["mask_rate"] = folder.data.mask_rate;
  }
  return json.dump(2) + "\n";
}

std::string as_table(const Evaluation& evaluation, const ModelFolder& folder) {
  std::string text = fmt::format("{:<12}{:>10}{:>12}{:>12}\n", "", "accuracy", "perplexity", "tokens");
  const auto row = [&](const char* name, const data::Score& score) {
    if (score.tokens == 0) return;
    text += fmt::format("{:<12}{:>10.4f}{:>12.4f}{:>12}\n", name, score.accuracy(), score.perplexity(),
                        score.tokens);
  };
  row("model", evaluation.model);
  row("unigram", evaluation.unigram);
  row("bigram", evaluation.bigram);
  row("end marker", evaluation.end_marker);
  text += fmt::format("{} sequences, {:.1f} s", evaluation.sequences, evaluation.seconds);
  if (folder.model->model_config().objective == "masked") {
    text += fmt::format("; masked with mix {} at rate {}", folder.data.corruption, folder.data.mask_rate);
  }
  return text + "\n";
}

void run(const EvaluateOptions& options) {
  options.common.apply();
  Output out(options.output);
  ModelFolder folder = load_model(options.model);
  const data::SequenceStore store(options.files, std::filesystem::temp_directory_path().string());
  report_changes(store.counts());
  const Evaluation evaluation = evaluate(folder.model, store, folder.data, folder.baselines);
  out.write(options.json ? as_json(evaluation, folder) : as_table(evaluation, folder));
  out.finish();
}

}  // namespace

Action evaluate_command(CLI::App& app) {
  auto options = std::make_shared<EvaluateOptions>();
  app.add_option("MODEL", options->model, "model folder")->required();
  app.add_option("FILE", options->files, "FASTA, plain, gzip or zstd; - is standard input")->required();
  app.add_flag("--json", options->json, "JSON instead of a table");
  app.add_option("-o,--output", options->output, "where to write; - is standard output")
      ->type_name("FILE")
      ->capture_default_str();
  options->common.add_to(app);
  return [options] { run(*options); };
}

}  // namespace performer::cli
