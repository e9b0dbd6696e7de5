// SPDX-License-Identifier: Apache-2.0
// performer predict: classes and numbers that a fine-tuned model gives sequences or their tokens.
#include "performer/infer/predict.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>

#include "cli/chunk_options.h"
#include "cli/commands.h"
#include "cli/heartbeat.h"
#include "cli/inputs.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/ranks.h"
#include "cli/report.h"
#include "performer/base/error.h"
#include "performer/data/inputs.h"

namespace performer::cli {

namespace {

struct PredictOptions {
  CommonOptions common;
  std::string model, output = "-";
  std::vector<std::string> files;
  bool json = false, per_sequence = false;
  EmbedRequest request;
  ReadingOptions reading;
};

// The shortest decimal number of a float, which as a double has more digits.
double shortest(float value) {
  return std::isfinite(value) ? std::stod(fmt::format("{}", value)) : static_cast<double>(value);
}

// The lines of a sequence.
class PredictionLines {
 public:
  PredictionLines(const ModelFolder& folder, const data::Reader& reader, const PredictOptions& options)
      : head_(folder.head->config()),
        vocabulary_(folder.vocabulary),
        token_column_(reader.format() == "fasta" ? "residue" : "token"),
        json_(options.json),
        per_sequence_(options.per_sequence) {
    letters_ = std::ranges::all_of(
        head_.classes, [](const std::string& name) { return name != "," && utf8_size(name) == name.size(); });
  }

  std::string header() const {
    if (json_) return "";
    if (head_.per_token() && per_sequence_) return "id\tlabel\n";
    std::string line =
        head_.per_token() ? fmt::format("id\tposition\t{}\tprediction", token_column_) : "id\tprediction";
    for (const std::string& name : head_.classes) line += fmt::format("\tp_{}", name);
    return line + "\n";
  }

  std::string lines(const data::Record& record, const at::Tensor& values) const {
    const std::string id = printable(record.id);
    if (json_) return as_json(id, values);
    if (!head_.per_token()) return fmt::format("{}\t{}\n", id, cells(values, 0));
    if (per_sequence_) return fmt::format("{}\t{}\n", id, as_label(values));
    std::string text;
    for (int64_t i = 0; i < values.size(0); ++i) {
      text += fmt::format("{}\t{}\t{}\t{}\n", id, i + 1,
                          vocabulary_.symbol_text(record.tokens[static_cast<size_t>(i)]), cells(values, i));
    }
    return text;
  }

 private:
  std::span<const float> row(const at::Tensor& values, int64_t i) const {
    return {values.const_data_ptr<float>() + i * values.size(1), static_cast<size_t>(values.size(1))};
  }
  std::string prediction(std::span<const float> row) const {
    if (!head_.classifies()) return fmt::format("{:.6g}", row[0]);
    return head_.classes[static_cast<size_t>(std::ranges::max_element(row) - row.begin())];
  }
  std::string cells(const at::Tensor& values, int64_t i) const {
    std::string text = prediction(row(values, i));
    for (const float probability : row(values, i)) {
      if (head_.classifies()) text += fmt::format("\t{:.6f}", probability);
    }
    return text;
  }
  // As task.labels reads it.
  std::string as_label(const at::Tensor& values) const {
    std::string text;
    for (int64_t i = 0; i < values.size(0); ++i)
      text += (i == 0 || letters_and_classes() ? "" : ",") + prediction(row(values, i));
    return text;
  }
  bool letters_and_classes() const { return head_.classifies() && letters_; }

  std::string as_json(const std::string& id, const at::Tensor& values) const {
    nlohmann::ordered_json json = {{"id", id}};
    const int64_t rows = values.size(0);
    if (head_.per_token()) json["length"] = rows;
    const auto list = [&](auto&& value_of) {
      if (!head_.per_token()) return nlohmann::ordered_json(value_of(row(values, 0)));
      nlohmann::ordered_json all = nlohmann::ordered_json::array();
      for (int64_t i = 0; i < rows; ++i) all.push_back(value_of(row(values, i)));
      return all;
    };
    if (!head_.classifies()) {
      json["prediction"] = list([](std::span<const float> row) { return shortest(row[0]); });
    } else {
      json["prediction"] = list([&](std::span<const float> row) { return prediction(row); });
      for (size_t i = 0; i < head_.classes.size(); ++i)
        json["probabilities"][head_.classes[i]] =
            list([i](std::span<const float> row) { return shortest(row[i]); });
    }
    return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  }

  const HeadConfig& head_;
  data::Vocabulary vocabulary_;
  std::string token_column_;
  bool json_, per_sequence_;
  bool letters_ = false;  // each class is one character
};

void check_options(const PredictOptions& options, const ModelFolder& folder) {
  check<UsageError>(
      !folder.head.is_empty(),
      "{} predicts nothing but tokens: fine-tune it with labels first (performer train --from {} "
      "--task KIND --labels TABLE)",
      options.model, options.model);
  const HeadConfig& head = folder.head->config();
  check<UsageError>(!options.per_sequence || head.per_token(),
                    "--per-sequence is for predictions of tokens, and {} predicts by sequence ({})",
                    options.model, head.kind);
}

void run_on(const ReadingRanks& ranks, PredictOptions options) {
  std::optional<Output> out;
  if (ranks.leads()) out.emplace(options.output);
  ModelFolder folder = load_model_before(options.model, options.files);
  check_options(options, folder);
  check_model_inputs(options.files, folder);
  if (ranks.leads()) check_lengths(options.files, folder, embedding_markers(folder.model));
  options.request.temporary_folder = temporary_folder();
  options.request.batch_tokens = folder.data.batch_tokens;
  options.request.ranks = &ranks;
  const int64_t total = ranks.leads() ? count_tokens(options.files, folder) : 0;
  const auto reader = data::open_reader(options.files, folder.data, folder.vocabulary);
  const PredictionLines table(folder, *reader, options);
  if (out) out->write(table.header());
  Heartbeat beat;
  EmbedProgress progress;
  progress.note = [](const std::string& text) { spdlog::info("{}", text); };
  progress.done = [&](int64_t sequences, int64_t tokens) {
    beat.tell(tokens, total, fmt::format("{} sequences predicted", sequences));
  };
  report_changes(predict(
      folder, *reader, sources_text(options.files), options.request,
      [&](const data::Record& record, const at::Tensor& values) { out->write(table.lines(record, values)); },
      progress));
  if (out) out->finish();
}

void run(const PredictOptions& options) {
  refuse_input_as_output(options.output, options.files, options.model);
  run_as_ranks(options.reading, options.common, options.files,
               [&](const ReadingRanks& ranks) { run_on(ranks, options); });
}

constexpr const char* kPredictFooter =
    "One line a sequence: id, prediction, and the probability of each class (columns p_CLASS); or a line for "
    "each\n"
    "token, with its position from 1. --per-sequence writes the labels of tokens as one cell, as a table of "
    "labels\n"
    "has them. --json: a line is an object with id, prediction (a list, of tokens) and probabilities. "
    "Sequences "
    "longer\n"
    "than --chunk are read in chunks, as performer embed does.";

}  // namespace

Action predict_command(CLI::App& app) {
  auto options = std::make_shared<PredictOptions>();
  app.add_option("MODEL", options->model, "model folder that was fine-tuned with labels")->required();
  app.add_option("FILE", options->files,
                 "what to predict of: FASTA, text or images, as the model was trained on; files (plain, gzip "
                 "or zstd) or folders of them; - is standard input")
      ->required();
  app.add_option("-o,--output", options->output, "TSV with a header line; - is standard output")
      ->type_name("FILE")
      ->capture_default_str();
  app.add_flag("--json", options->json, "JSON lines instead of TSV");
  app.add_flag("--per-sequence", options->per_sequence, "labels of tokens: one line a sequence");
  add_chunk_options(app, options->request);
  options->reading.add_to(app);
  options->common.add_to(app);
  app.footer(kPredictFooter);
  return [options] { run(*options); };
}

}  // namespace performer::cli
