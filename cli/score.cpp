// SPDX-License-Identifier: Apache-2.0
// performer score: log-likelihoods as a table.
#include "performer/infer/score.h"

#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "cli/commands.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/report.h"
#include "performer/data/vocabulary.h"
#include "performer/models/folder.h"

namespace performer::cli {

namespace {

struct ScoreOptions {
  CommonOptions common;
  std::string model, output = "-";
  std::vector<std::string> files;
  bool per_residue = false;
};

std::string residue_lines(const SequenceScore& score) {
  std::string text;
  for (size_t i = 0; i < score.tokens.size(); ++i) {
    text += fmt::format("{}\t{}\t{}\t{:.6f}\n", score.id, i + 1, data::letter(score.tokens[i]),
                        score.log_probabilities[i]);
  }
  return text;
}

std::string sequence_line(const SequenceScore& score) {
  return fmt::format("{}\t{}\t{:.6f}\t{:.6f}\t{:.6f}\n", score.id, score.tokens.size(), score.total(),
                     score.mean(), std::exp(-score.mean()));
}

void run(const ScoreOptions& options) {
  options.common.apply();
  Output out(options.output);
  ModelFolder folder = load_model(options.model);
  out.write(options.per_residue ? "id\tposition\tresidue\tlog_probability\n"
                                : "id\tlength\ttotal_log_likelihood\tmean_log_likelihood\tperplexity\n");
  for (const auto& file : options.files) {
    const auto counts =
        score_file(folder.model, file, folder.data.batch_tokens, [&](const SequenceScore& score) {
          out.write(options.per_residue ? residue_lines(score) : sequence_line(score));
        });
    report_changes(counts);
  }
  out.finish();
}

}  // namespace

Action score_command(CLI::App& app) {
  auto options = std::make_shared<ScoreOptions>();
  app.add_option("MODEL", options->model, "model folder")->required();
  app.add_option("FILE", options->files, "FASTA, plain, gzip or zstd; - is standard input")->required();
  app.add_option("-o,--output", options->output, "TSV with a header line; - is standard output")
      ->type_name("FILE")
      ->capture_default_str();
  app.add_flag("--per-residue", options->per_residue, "one line a residue instead of one a sequence");
  options->common.add_to(app);
  app.footer(
      "Log-likelihoods are natural logarithms, of residues given those before (causal models) or of each "
      "residue hidden\n"
      "alone (masked models: pseudo-likelihood, one forward pass a residue). The end of the sequence is not "
      "scored.");
  return [options] { run(*options); };
}

}  // namespace performer::cli
