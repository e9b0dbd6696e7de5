// SPDX-License-Identifier: Apache-2.0
// performer score: log-likelihoods as a table.
#include "performer/infer/score.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numbers>
#include <optional>

#include "cli/commands.h"
#include "cli/heartbeat.h"
#include "cli/inputs.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/ranks.h"
#include "cli/report.h"
#include "performer/data/inputs.h"
#include "performer/models/folder.h"
#include "performer/train/evaluation.h"

namespace performer::cli {

namespace {

struct ScoreOptions {
  CommonOptions common;
  std::string model, output = "-";
  std::vector<std::string> files;
  bool per_token = false;
  ReadingOptions reading;
};

// The table: its header line, and the lines of a sequence.
class Table {
 public:
  Table(const data::Reader& reader, bool per_token)
      : vocabulary_(reader.vocabulary()),
        per_token_(per_token),
        token_column_(reader.format() == "fasta" ? "residue" : "token"),
        bits_key_(train::bits_key(reader.vocabulary(), reader.format())) {}

  std::string header() const {
    if (per_token_) return fmt::format("id\tposition\t{}\tlog_probability\n", token_column_);
    return fmt::format("id\tlength\ttotal_log_likelihood\tmean_log_likelihood\tperplexity{}{}\n",
                       bits_key_.empty() ? "" : "\t", bits_key_);
  }

  std::string lines(const SequenceScore& score) const {
    if (!per_token_) return sequence_line(score);
    std::string text;
    for (size_t i = 0; i < score.tokens.size(); ++i) {
      text += fmt::format("{}\t{}\t{}\t{:.6f}\n", score.id, i + 1, vocabulary_.symbol_text(score.tokens[i]),
                          score.log_probabilities[i]);
    }
    return text;
  }

 private:
  std::string sequence_line(const SequenceScore& score) const {
    std::string line = fmt::format("{}\t{}\t{:.6f}\t{:.6f}\t{:.6f}", score.id, score.tokens.size(),
                                   score.total(), score.mean(), std::exp(-score.mean()));
    if (!bits_key_.empty()) line += fmt::format("\t{:.6f}", -score.mean() / std::numbers::ln2);
    return line + "\n";
  }

  data::Vocabulary vocabulary_;
  bool per_token_;
  std::string token_column_, bits_key_;
};

// How far the scoring is, said every ten seconds. Each token of a masked model takes a pass over its
// sequence, so that a sequence of L tokens is L * L of work, and one of a causal model L.
class WorkDone {
 public:
  WorkDone(const std::vector<std::string>& files, const ModelFolder& folder)
      : masked_(folder.model->model_config().objective == "masked") {
    // Reading is quick beside the passes of a masked model; what can be read only once has no estimate.
    if (!masked_ || !std::ranges::all_of(files, data::can_be_read_twice)) return;
    const auto reader = data::open_reader(files, folder.data, folder.vocabulary, tell_reading());
    for (data::Record record; reader->next(record);) total_ += work_of(std::ssize(record.tokens));
  }

  void tell(int64_t tokens, int64_t length) { say(done_ + (masked_ ? tokens * length : tokens)); }
  void finish(int64_t length) {
    done_ += work_of(length);
    ++sequences_;
    say(done_);
  }

 private:
  int64_t work_of(int64_t length) const { return masked_ ? length * length : length; }
  void say(int64_t done) {
    beat_.tell(
        done, total_,
        fmt::format("{} scored", sequences_ == 1 ? "1 sequence" : fmt::format("{} sequences", sequences_)));
  }

  bool masked_;
  int64_t total_ = 0, done_ = 0, sequences_ = 0;  // total_ 0: not known
  Heartbeat beat_;
};

void run_on(const ReadingRanks& ranks, const ScoreOptions& options) {
  std::optional<Output> out;
  if (ranks.leads()) out.emplace(options.output);
  ModelFolder folder = load_model_before(options.model, options.files);
  check_model_inputs(options.files, folder);
  std::optional<WorkDone> work;
  if (ranks.leads()) {
    check_lengths(options.files, folder, scoring_markers(folder));
    work.emplace(options.files, folder);
  }
  const ScoreRequest request{folder.data.batch_tokens, &ranks, temporary_folder()};
  bool first = true;
  for (const std::string& file : options.files) {
    const auto reader = data::open_reader(file, folder.data, folder.vocabulary);
    const Table table(*reader, options.per_token);
    if (first && out) out->write(table.header());
    first = false;
    report_changes(score(
        folder.model, *reader, data::source_name(file), request,
        [&](const SequenceScore& score) {
          out->write(table.lines(score));
          work->finish(std::ssize(score.tokens));
        },
        [&](const ScoreProgress& at) { work->tell(at.done, at.total); }));
  }
  if (out) out->finish();
}

void run(const ScoreOptions& options) {
  refuse_input_as_output(options.output, options.files, options.model);
  run_as_ranks(options.reading, options.common, options.files,
               [&](const ReadingRanks& ranks) { run_on(ranks, options); });
}

}  // namespace

Action score_command(CLI::App& app) {
  auto options = std::make_shared<ScoreOptions>();
  app.add_option("MODEL", options->model, "model folder")->required();
  app.add_option("FILE", options->files,
                 "what to score: FASTA, text or images, as the model was trained on; files (plain, gzip or "
                 "zstd) or folders of them; - is standard input")
      ->required();
  app.add_option("-o,--output", options->output, "TSV with a header line; - is standard output")
      ->type_name("FILE")
      ->capture_default_str();
  app.add_flag("--per-token,--per-residue", options->per_token, "one line a token instead of one a sequence");
  options->reading.add_to(app);
  options->common.add_to(app);
  app.footer(
      "Log-likelihoods are natural logarithms, of tokens given those before (causal models) or of each token "
      "hidden alone\n"
      "(masked models: pseudo-likelihood, one forward pass a token). The end of the sequence is not scored. "
      "Totals grow\n"
      "with length and so favour short sequences: compare those of different lengths by their mean. "
      "For text read\n"
      "byte by byte and for images there is a column of bits per byte or per dimension. Causal models whose "
      "attention\n"
      "has a state of constant size read long sequences in chunks, in memory that hardly grows with the "
      "length.");
  return [options] { run(*options); };
}

}  // namespace performer::cli
