// SPDX-License-Identifier: Apache-2.0
// performer evaluate: a model beside its baselines on held-out sequences.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>

#include "cli/commands.h"
#include "cli/heartbeat.h"
#include "cli/inputs.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/report.h"
#include "performer/base/error.h"
#include "performer/data/store.h"
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

std::string as_json(const train::Evaluation& evaluation, const ModelFolder& folder) {
  const nlohmann::ordered_json found = train::to_json(evaluation);
  nlohmann::ordered_json json;
  for (const char* part : {"model", "unigram", "bigram", "end_marker"}) {  // null: nothing was scored
    json[part] = nullptr;
    const bool of_counts = std::string_view(part).ends_with("gram");
    if (of_counts && !folder.has_baselines) continue;  // imported: there are no counts of its training data
    if (found.contains(part) && found[part]["tokens"] > 0) json[part] = found[part];
  }
  json["sequences"] = evaluation.sequences;
  json["seconds"] = evaluation.seconds;
  json["objective"] = folder.model->model_config().objective;
  if (folder.model->model_config().objective == "masked") {
    json["corruption"] = folder.data.corruption;
    json["mask_rate"] = folder.data.mask_rate;
  }
  json.update(evaluation.breakdown.to_json(folder.vocabulary, folder.baselines));
  return json.dump(2) + "\n";
}

std::string as_table(const train::Evaluation& evaluation, const ModelFolder& folder) {
  const std::string& key = evaluation.bits_key;
  const std::string bits = key.empty() ? "" : key == "bits_per_byte" ? "bits/byte" : "bits/dimension";
  const auto bits_column = [&](const std::string& cell) {
    return bits.empty() ? "" : fmt::format("{:>16}", cell);
  };
  std::string text =
      fmt::format("{:<12}{:>10}{:>12}{}{:>12}\n", "", "accuracy", "perplexity", bits_column(bits), "tokens");
  const auto row = [&](const char* name, const data::Score& score, bool of_symbols = true) {
    if (score.tokens == 0) return;
    text += fmt::format("{:<12}{:>10.4f}{:>12.4f}{}{:>12}\n", name, score.accuracy(), score.perplexity(),
                        bits_column(of_symbols ? fmt::format("{:.4f}", score.bits()) : ""), score.tokens);
  };
  row("model", evaluation.model);
  if (folder.has_baselines) {
    row("unigram", evaluation.unigram);
    row("bigram", evaluation.bigram);
  }
  row("end marker", evaluation.end_marker, false);
  text += fmt::format("{} sequences, {:.1f} s", evaluation.sequences, evaluation.seconds);
  if (folder.model->model_config().objective == "masked") {
    text += fmt::format("; masked with mix {} at rate {}", folder.data.corruption, folder.data.mask_rate);
  }
  return text + "\n";
}

void run(const EvaluateOptions& options) {
  options.common.apply();
  refuse_input_as_output(options.output, options.files, options.model);
  Output out(options.output);
  ModelFolder folder = load_model_before(options.model, options.files);
  check<InputError>(
      folder.has_baselines || !folder.vocabulary.source_ids().empty(),
      "{} has no baselines.json, the counts of the training sequences that a model is evaluated "
      "beside: copy it from where the model was trained (score and generate need none)",
      options.model);
  const std::string temporary = temporary_folder();
  check_model_inputs(options.files, folder);
  const data::SequenceStore corpus(options.files, temporary, folder.data, {}, folder.vocabulary,
                                   tell_reading());
  report_changes(corpus.report());
  check_lengths(corpus, folder);
  Heartbeat beat;
  train::EvaluationOptions watch;
  watch.progress = [&](int64_t done, int64_t total) {
    beat.tell(done, total, fmt::format("{} of {} sequences evaluated", done, total));
  };
  const train::Evaluation evaluation =
      train::evaluate(folder.model, corpus, folder.data, folder.baselines, watch);
  out.write(options.json ? as_json(evaluation, folder) : as_table(evaluation, folder));
  out.finish();
}

}  // namespace

Action evaluate_command(CLI::App& app) {
  auto options = std::make_shared<EvaluateOptions>();
  app.add_option("MODEL", options->model, "model folder")->required();
  app.add_option(
         "FILE", options->files,
         "sequences of the kind the model was trained on, as files (plain, gzip or zstd) or folders; - is "
         "standard input")
      ->required();
  app.add_flag("--json", options->json, "JSON instead of a table");
  app.add_option("-o,--output", options->output, "where to write; - is standard output")
      ->type_name("FILE")
      ->capture_default_str();
  options->common.add_to(app);
  return [options] { run(*options); };
}

}  // namespace performer::cli
