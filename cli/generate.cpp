// SPDX-License-Identifier: Apache-2.0
// performer generate: new sequences as FASTA.
#include "performer/infer/generate.h"

#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "cli/options.h"
#include "cli/output.h"
#include "performer/data/fasta.h"
#include "performer/models/folder.h"

namespace performer::cli {

namespace {

struct GenerateOptions {
  CommonOptions common;
  std::string model, output = "-";
  GenerateRequest request;
};

std::string record(const GeneratedSequence& sequence) {
  const double mean =
      sequence.sampled > 0 ? sequence.log_likelihood / static_cast<double>(sequence.sampled) : 0;
  return data::format_fasta(
      fmt::format("generated_{} length={} mean_log_likelihood={:.4f} ended={}", sequence.index + 1,
                  sequence.residues.size(), mean, sequence.ended ? "yes" : "no"),
      sequence.residues);
}

void run(const GenerateOptions& options) {
  options.common.apply();
  Output out(options.output);
  ModelFolder folder = load_model(options.model);
  generate(folder.model, options.request,
           [&](const GeneratedSequence& sequence) { out.write(record(sequence)); });
  out.finish();
}

}  // namespace

Action generate_command(CLI::App& app) {
  auto options = std::make_shared<GenerateOptions>();
  GenerateRequest& request = options->request;
  app.add_option("MODEL", options->model, "model folder (causal)")->required();
  app.add_option("-n,--count", request.count, "number of sequences")->capture_default_str();
  app.add_option("--prompt", request.prompt, "residues that every sequence starts with")
      ->type_name("SEQUENCE");
  app.add_option("--max-length", request.max_length, "residues at most, prompt included")
      ->capture_default_str();
  app.add_option("--temperature", request.sampling.temperature,
                 "divides the logits; 0: always the most probable residue")
      ->capture_default_str();
  app.add_option("--top-k", request.sampling.top_k, "draw from the K most probable; 0: from all")
      ->capture_default_str();
  app.add_option("--top-p", request.sampling.top_p,
                 "draw from the smallest set with at least this probability")
      ->capture_default_str();
  app.add_option("--repetition-penalty", request.sampling.repetition_penalty,
                 "for residues among the last few: positive logits divided by it, others multiplied")
      ->capture_default_str();
  app.add_option("--repetition-window", request.sampling.repetition_window,
                 "how many residues the penalty looks back")
      ->capture_default_str();
  app.add_option("--batch-size", request.batch_size, "sequences sampled side by side")->capture_default_str();
  app.add_option("--seed", request.seed, "sequence i is drawn from stream (seed, i)")->capture_default_str();
  app.add_option("-o,--output", options->output, "FASTA; - is standard output")
      ->type_name("FILE")
      ->capture_default_str();
  options->common.add_to(app);
  app.footer(
      "Headers give the length, the mean log-likelihood of what was drawn (natural logarithm, under the "
      "model itself)\n"
      "and whether the sequence ended by itself or was stopped by --max-length.");
  return [options] { run(*options); };
}

}  // namespace performer::cli
