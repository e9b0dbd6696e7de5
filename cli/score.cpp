// SPDX-License-Identifier: Apache-2.0
// performer score: log-likelihoods as a table.
#include "performer/infer/score.h"

#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <numbers>

#include "cli/commands.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/report.h"
#include "performer/models/folder.h"
#include "performer/train/evaluation.h"

namespace performer::cli {

namespace {

struct ScoreOptions {
  CommonOptions common;
  std::string model, output = "-";
  std::vector<std::string> files;
  bool per_token = false;
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

void run(const ScoreOptions& options) {
  options.common.apply();
  Output out(options.output);
  ModelFolder folder = load_model(options.model);
  bool first = true;
  for (const std::string& file : options.files) {
    const auto reader = data::open_reader(file, folder.data, folder.vocabulary);
    const Table table(*reader, options.per_token);
    if (first) out.write(table.header());
    first = false;
    report_changes(score(folder.model, *reader, data::source_name(file), folder.data.batch_tokens,
                         [&](const SequenceScore& score) { out.write(table.lines(score)); }));
  }
  out.finish();
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
  options->common.add_to(app);
  app.footer(
      "Log-likelihoods are natural logarithms, of tokens given those before (causal models) or of each token "
      "hidden alone\n"
      "(masked models: pseudo-likelihood, one forward pass a token). The end of the sequence is not scored. "
      "For text read\n"
      "byte by byte and for images there is a column of bits per byte or per dimension.");
  return [options] { run(*options); };
}

}  // namespace performer::cli
