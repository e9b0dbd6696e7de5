// SPDX-License-Identifier: Apache-2.0
// performer report: one page about one or several runs.
#include <fmt/format.h>
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
#include "performer/studies/experiment.h"
#include "performer/studies/report.h"

namespace performer::cli {

namespace {

struct ReportOptions {
  CommonOptions common;
  std::vector<std::string> runs;
  std::string output = "report.html", results, title;
  bool unfinished = false;
};

std::string title_of(const ReportOptions& options, const nlohmann::ordered_json& numbers) {
  if (!options.title.empty()) return options.title;
  const auto& runs = numbers["runs"];
  if (runs.size() == 1) return fmt::format("Run {}", runs[0]["name"].get<std::string>());
  return fmt::format("{} runs compared", runs.size());
}

void run(const ReportOptions& options) {
  options.common.apply();
  for (size_t i = 0; i < options.runs.size(); ++i) {
    for (size_t k = 0; k < i; ++k) {
      check<UsageError>(!same_file(options.runs[i], options.runs[k]),
                        "{} and {} are the same folder: name it once", options.runs[k], options.runs[i]);
    }
    refuse_input_as_output(options.output, {}, options.runs[i]);
    if (!options.results.empty()) refuse_input_as_output(options.results, {}, options.runs[i]);
  }
  check<UsageError>(options.results.empty() || !same_file(options.results, options.output),
                    "-o and --results are the same file, {}", options.output);
  std::vector<studies::Experiment> runs;
  for (const std::string& path : options.runs)
    runs.push_back(studies::read_experiment(path, options.unfinished));
  const nlohmann::ordered_json numbers = studies::report_numbers(runs);
  Output out(options.output);
  out.write(studies::report_html(runs, numbers, title_of(options, numbers),
                                 "Made by performer report, version " PERFORMER_VERSION "."));
  if (!options.results.empty()) {
    Output results(options.results);
    results.write(numbers.dump(2) + "\n");
    results.finish();
  }
  out.finish();
}

}  // namespace

Action report_command(CLI::App& app) {
  auto options = std::make_shared<ReportOptions>();
  app.add_option("RUN", options->runs, "folders that performer train -o wrote")->required();
  app.add_option("-o,--output", options->output, "the page, one HTML file; - is standard output")
      ->type_name("FILE")
      ->capture_default_str();
  app.add_option("--results", options->results, "write the numbers of the page as JSON too")
      ->type_name("FILE");
  app.add_option("--title", options->title, "heading of the page; default: the name of the run")
      ->type_name("TEXT");
  app.add_flag("--unfinished", options->unfinished,
               "show runs that have not reached their end as far as they are");
  options->common.add_to(app);
  app.footer(
      "Beside what training writes, the page shows what lies in the folders of the runs: evaluation*.json "
      "(evaluate\n"
      "--json), results.json, samples*.* and generated*.*, and there or one folder deeper attention.json "
      "(attention -o)\n"
      "and the tables of approx --model -o.");
  return [options] { run(*options); };
}

}  // namespace performer::cli
