// SPDX-License-Identifier: Apache-2.0
// performer evaluate: a model beside its baselines on held-out sequences.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "cli/commands.h"
#include "cli/heartbeat.h"
#include "cli/inputs.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/ranks.h"
#include "cli/report.h"
#include "performer/base/error.h"
#include "performer/data/labels.h"
#include "performer/data/store.h"
#include "performer/infer/predict.h"
#include "performer/models/folder.h"
#include "performer/train/evaluation.h"
#include "performer/train/prediction_metrics.h"

namespace performer::cli {

namespace {

struct EvaluateOptions {
  CommonOptions common;
  std::string model, output = "-";
  std::vector<std::string> files;
  std::string labels;
  data::LabelColumns columns;
  bool json = false, language_model = false;
  EmbedRequest request;
  ReadingOptions reading;
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

// Whether labels are evaluated, and not tokens.
bool by_labels(const EvaluateOptions& options, const ModelFolder& folder) {
  const bool given = !options.labels.empty();
  check<UsageError>(
      !given || !folder.head.is_empty(),
      "--labels: {} predicts nothing but tokens; fine-tune it with labels first (performer train "
      "--from {})",
      options.model, options.model);
  check<UsageError>(!given || !options.language_model,
                    "--labels and --language-model exclude each other: leave one out");
  check<UsageError>(given || folder.head.is_empty() || options.language_model,
                    "{} predicts labels ({}): give their table, --labels FILE, or evaluate it on tokens with "
                    "--language-model",
                    options.model, folder.head.is_empty() ? "" : folder.head->config().kind);
  return given;
}

// What the model predicts of labelled sequences, beside their labels.
void evaluate_labels(EvaluateOptions options, ModelFolder& folder, const ReadingRanks& ranks,
                     std::optional<Output>& out) {
  const HeadConfig& head = folder.head->config();
  const std::optional<std::vector<std::string>> classes =
      head.classifies() ? std::optional(head.classes) : std::nullopt;
  const data::LabelTable table(options.labels, {head.classifies(), head.per_token()}, options.columns,
                               classes);
  check_model_inputs(options.files, folder);
  if (ranks.leads()) check_lengths(options.files, folder, embedding_markers(folder.model));
  options.request.ranks = &ranks;
  options.request.temporary_folder = temporary_folder();
  options.request.batch_tokens = folder.data.batch_tokens;
  const auto reader = data::open_reader(options.files, folder.data, folder.vocabulary, tell_reading());
  data::LabelledSequences labelled(&table, nullptr);
  train::PredictionMetrics metrics(head);
  report_changes(predict(folder, *reader, sources_text(options.files), options.request,
                         [&](const data::Record& record, const at::Tensor& values) {
                           if (!labelled.take(record, reader->format())) return;
                           metrics.add(values, labelled.values(labelled.size() - 1));
                         }));
  if (!out) return;  // what was predicted is on rank 0
  for (const std::string& line : labelled.report("sequences")) spdlog::warn("{}", line);
  const std::string unused = unused_labels(table, {&labelled});
  if (!unused.empty()) spdlog::warn("{}", unused);
  check<InputError>(metrics.labels() > 0, "none of the sequences has a label in {}", table.name());
  out->write(options.json ? metrics.to_json().dump(2) + "\n" : metrics.to_text());
  out->finish();
}

void run_on(const ReadingRanks& ranks, const EvaluateOptions& options) {
  std::optional<Output> out;
  if (ranks.leads()) out.emplace(options.output);
  ModelFolder folder = load_model_before(options.model, options.files);
  ranks.check_slices(folder.model);
  if (by_labels(options, folder)) return evaluate_labels(options, folder, ranks, out);
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
  watch.ranks = &ranks.all();
  watch.exchange = ranks.exchange();
  watch.progress = [&](int64_t done, int64_t total) {
    beat.tell(done, total, fmt::format("{} of {} sequences evaluated", done, total));
  };
  const train::Evaluation evaluation =
      train::evaluate(folder.model, corpus, folder.data, folder.baselines, watch);
  if (!out) return;
  out->write(options.json ? as_json(evaluation, folder) : as_table(evaluation, folder));
  out->finish();
}

void run(const EvaluateOptions& options) {
  std::vector<std::string> inputs = options.files;
  if (!options.labels.empty()) inputs.push_back(options.labels);
  refuse_input_as_output(options.output, inputs, options.model);
  run_as_ranks(options.reading, options.common, inputs,
               [&](const ReadingRanks& ranks) { run_on(ranks, options); });
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
  app.add_option("--labels", options->labels,
                 "fine-tuned models: table of ids and labels to compare predictions with (CSV or TSV)")
      ->type_name("FILE");
  app.add_option("--id-column", options->columns.id,
                 "column of ids in --labels; default id, name ... or the first")
      ->type_name("NAME");
  app.add_option("--label-column", options->columns.label,
                 "column of labels in --labels; default label, class, value ... or the second")
      ->type_name("NAME");
  app.add_flag("--language-model", options->language_model,
               "evaluate a fine-tuned model on tokens, as other models");
  app.add_flag("--json", options->json, "JSON instead of a table");
  app.add_option("-o,--output", options->output, "where to write; - is standard output")
      ->type_name("FILE")
      ->capture_default_str();
  options->reading.add_to(app);
  options->common.add_to(app);
  return [options] { run(*options); };
}

}  // namespace performer::cli
