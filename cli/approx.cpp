// SPDX-License-Identifier: Apache-2.0
// performer approx: the approximation studies of the papers, or the same on a trained model.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/inputs.h"
#include "cli/options.h"
#include "cli/output.h"
#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/data/reader.h"
#include "performer/models/folder.h"
#include "performer/studies/model_study.h"
#include "performer/studies/studies.h"

namespace performer::cli {

namespace {

struct ApproxOptions {
  CommonOptions common;
  studies::StudyOptions study;
  studies::ModelStudyOptions on_model;
  std::vector<std::string> kinds, studies = {"output", "kernel", "propagation", "orderings"};
  std::vector<int64_t> features;
  std::string model, input, output;
  const CLI::Option* draws = nullptr;  // of both studies when it is given
};

// Everything a study found, as files that are each complete or not there.
class Folder {
 public:
  explicit Folder(const std::string& path) : path_(path) {
    if (!path_.empty()) make_directories(path_);
  }
  void add(const studies::Table& table) const {
    if (path_.empty()) return;
    write_file(fmt::format("{}/{}.tsv", path_, table.name), studies::to_tsv(table));
    write_file(fmt::format("{}/{}.json", path_, table.name), studies::to_json(table).dump(2) + "\n");
  }
  void add(const std::vector<std::pair<std::string, studies::Chart>>& charts) const {
    if (path_.empty()) return;
    for (const auto& [name, chart] : charts)
      write_file(fmt::format("{}/{}.svg", path_, name), studies::to_svg(chart));
  }

 private:
  std::string path_;
};

void note(const std::string& text) {
  spdlog::info("{}", text);
}

void run_studies(const ApproxOptions& options, const Folder& folder, Output& out) {
  using Run = studies::Study (*)(const studies::StudyOptions&, const studies::Progress&);
  static const std::vector<std::pair<std::string, Run>> known = {{"output", studies::output_error_study},
                                                                 {"kernel", studies::kernel_error_study},
                                                                 {"propagation", studies::propagation_study},
                                                                 {"orderings", studies::ordering_study}};
  for (const auto& [name, study] : known) {
    if (std::find(options.studies.begin(), options.studies.end(), name) == options.studies.end()) continue;
    const studies::Study found = study(options.study, note);
    folder.add(found.table);
    folder.add(found.charts);
    out.write(found.summary + "\n");
  }
}

void run_on_model(const ApproxOptions& options, const Folder& folder, Output& out) {
  ModelFolder model = load_model_before(options.model, {});
  check_model_inputs({options.input}, model);
  const auto reader = data::open_reader(options.input, model.data, model.vocabulary);
  const studies::ModelStudy found =
      studies::model_study(model.model, *reader, data::source_name(options.input), options.on_model, note);
  folder.add(found.heads);
  folder.add(found.errors);
  folder.add(found.charts);
  out.write(studies::to_text(found.heads));
  const auto heads = static_cast<int64_t>(found.heads.rows.size());
  out.write(
      fmt::format("\nExact softmax is the better choice in {} of {} heads (relative error above {:g}, or "
                  "sequences too short "
                  "to gain).\n",
                  found.exact_heads, heads, options.on_model.tolerance));
  if (found.left_out > 0) {
    spdlog::warn("{} sequences longer than --max-length {} were left out", found.left_out,
                 options.on_model.max_length);
  }
}

void run(ApproxOptions options) {
  options.common.apply();
  check<UsageError>(options.model.empty() == options.input.empty(),
                    "--model and --input go together: {} is missing",
                    options.model.empty() ? "--model" : "--input");
  if (!options.draws->empty()) options.on_model.draws = options.study.draws;
  if (!options.kinds.empty()) options.study.kinds = options.on_model.kinds = options.kinds;
  if (!options.features.empty()) options.study.features = options.on_model.features = options.features;
  std::sort(options.study.features.begin(), options.study.features.end());
  std::sort(options.on_model.features.begin(), options.on_model.features.end());
  if (options.model.empty()) studies::validate(options.study);
  const std::vector<std::string> inputs =
      options.input.empty() ? std::vector<std::string>{} : std::vector{options.input};
  refuse_input_as_folder(options.output, inputs, options.model, {".tsv", ".json", ".svg"});
  refuse_input_as_output("-", inputs, options.model);
  const Folder folder(options.output);
  Output out("-");
  if (options.model.empty()) {
    run_studies(options, folder, out);
  } else {
    run_on_model(options, folder, out);
  }
  out.finish();
}

}  // namespace

Action approx_command(CLI::App& app) {
  auto options = std::make_shared<ApproxOptions>();
  studies::StudyOptions& study = options->study;
  studies::ModelStudyOptions& on_model = options->on_model;
  const auto list = [](CLI::Option* option) { return option->delimiter(','); };
  constexpr WholeRange kSize{.least = 1, .most = 1 << 24};
  list(app.add_option("--kinds", options->kinds,
                      fmt::format("kinds to compare, KIND[:PROJECTION[:ROW_NORM]]; default {}",
                                  fmt::join(study.kinds, ","))));
  whole_list(app, "--features", options->features,
             fmt::format("numbers of random features; default {}, with --model {}",
                         fmt::join(study.features, ","), fmt::join(on_model.features, ",")),
             kSize);
  real_list(app, "--std", study.stds, "standard deviations of the entries of queries and keys", {.least = 0});
  whole_list(app, "--lengths", study.lengths, "sequence lengths", kSize);
  list(app.add_option("--studies", options->studies, "which studies: output, kernel, propagation, orderings")
           ->check(CLI::IsMember({"output", "kernel", "propagation", "orderings"}))
           ->capture_default_str());
  whole_option(app, "--head-size", study.head_size, "D", kSize);
  whole_option(app, "--layers", study.layers, "layers of the propagation study", kSize);
  options->draws =
      whole_option(app, "--draws", study.draws, "independent draws a number is the mean of", kSize);
  whole_option(app, "--seed", study.seed, "of data and projections");
  app.add_flag("--causal", study.causal, "attention of each token to those before it only");
  app.add_option("--model", options->model, "measure on the queries and keys of this model folder instead")
      ->type_name("DIR");
  app.add_option("--input", options->input,
                 "data that --model reads, as it was trained on; - is standard input")
      ->type_name("FILE");
  whole_option(app, "--sequences", on_model.sequences, "sequences of --input to measure on", {.least = 1});
  whole_option(app, "--max-length", on_model.max_length, "leave out longer sequences of --input",
               {.least = 1});
  real_option(app, "--tolerance", on_model.tolerance,
              "relative error of a head's output that is still acceptable", {.least = 0});
  app.add_option("-o,--output", options->output,
                 "folder for tables (TSV, JSON) and pictures (SVG); none: standard output only")
      ->type_name("DIR");
  options->common.add_to(app);
  app.footer(
      "Errors are relative to softmax attention; 'uniform' is attention that looks at no query: an "
      "approximation that is not\n"
      "better than it is none. Tables go to standard output as text.");
  return [options] { run(*options); };
}

}  // namespace performer::cli
