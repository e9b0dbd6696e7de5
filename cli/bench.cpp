// SPDX-License-Identifier: Apache-2.0
// performer bench: how fast attention, decoding and training are on this machine.
#include "performer/bench/bench.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "cli/options.h"
#include "cli/output.h"
#include "performer/base/error.h"
#include "performer/bench/report.h"

namespace performer::cli {

namespace {

struct BenchOptions {
  CommonOptions common;
  bench::Request request;
  std::string folder;
  bool json = false;
};

void run(const BenchOptions& options) {
  options.common.apply();
  bench::validate(options.request);
  std::optional<OutputFolder> folder;
  if (!options.folder.empty()) folder.emplace(options.folder);
  Output out("-");
  const bench::Report report =
      bench::run(options.request, [](const std::string& text) { spdlog::info("{}", text); });
  const std::string json = bench::to_json(report).dump(2) + "\n";
  if (folder) {
    folder->write("bench.json", json);
    const std::string picture = bench::to_svg(report);
    if (!picture.empty()) folder->write("bench.svg", picture);
  }
  out.write(options.json ? json : bench::to_text(report));
  out.finish();
  check(report.all_right(),
        "rows differ from the definition and were not timed: see 'failure' in the results");
}

constexpr WholeRange kSize{.least = 1, .most = 1 << 24}, kSizeOrDefault{.least = 0, .most = 1 << 24};

CLI::Option* word_list(CLI::App& app, const char* name, std::vector<std::string>& values,
                       const std::string& help) {
  return app.add_option(name, values, help)->delimiter(',');
}

void add_rows(CLI::App& app, bench::Request& request) {
  app.add_option(
         "--op", request.op,
         "favor (the attention kernels), decode (one token of each sequence of a batch) or train (training "
         "steps of a language model)")
      ->check(CLI::IsMember({"favor", "decode", "train"}))
      ->capture_default_str();
  whole_list(app, "--lengths", request.lengths,
             fmt::format("tokens of a sequence; default {}, of train {}",
                         fmt::join(bench::default_lengths("favor"), ","),
                         fmt::join(bench::default_lengths("train"), ",")),
             kSize);
  word_list(
      app, "--kinds", request.kinds,
      fmt::format(
          "kinds of attention, KIND[:PROJECTION[:ROW_NORM]]; favor: favor-* kinds, exact and identity "
          "(values copied), default {}; "
          "decode: favor-* kinds; train: all kinds and identity+qk (identity with its queries and keys "
          "computed), default {}",
          fmt::join(bench::default_kinds("favor"), ","), fmt::join(bench::default_kinds("train"), ",")));
  word_list(app, "--dtype", request.dtypes,
            "float32, bfloat16, float16 (not train); default float32,bfloat16, of decode float32");
  word_list(app, "--directions", request.directions,
            "bidirectional, causal; default both, of train causal (bidirectional: a masked model)");
  word_list(app, "--passes", request.passes,
            "forward, forward_backward (train: the whole training step); default both");
  word_list(app, "--targets", request.targets,
            "CPU targets of the kernels, or all; default the best (performer info names it)");
}

void add_sizes(CLI::App& app, bench::Request& request) {
  whole_option(app, "--heads", request.heads, "heads; train takes those of --preset", kSize);
  whole_option(app, "--head-size", request.head_size, "size of a head; train as above", kSize);
  whole_option(app, "--features", request.features, "random features of kinds that have them", kSize);
  whole_option(app, "--batch", request.batch, "sequences; 0: 1, of decode 64", kSizeOrDefault);
  app.add_option("--preset", request.preset, "size of the model of --op train")
      ->type_name("NAME")
      ->capture_default_str();
}

constexpr const char* kBenchFooter =
    "Every row is compared with the definition in double precision before it is timed; one that differs is "
    "not.\n"
    "ns are those of the fastest sample, divided by tokens and heads. The limit is what this processor does "
    "in\n"
    "multiply-adds (decode: in passes over memory) with the same threads, measured first. "
    "docs/performance.md\n"
    "says more.";

}  // namespace

Action bench_command(CLI::App& app) {
  auto options = std::make_shared<BenchOptions>();
  bench::Request& request = options->request;
  add_rows(app, request);
  add_sizes(app, request);
  whole_option(app, "--repetitions", request.timing.repetitions,
               "samples of each row, taken by turns; 0: 7, of train 3", {.least = 0, .most = 100000});
  real_option(
      app, "--seconds", request.timing.seconds,
      "no more samples of a row once they took this long together, but at least 3; 0: 0.4, of train 60",
      {.least = 0});
  app.add_flag("--json", options->json, "print a list of objects instead of tables: one a row");
  app.add_option("-o,--output", options->folder,
                 "folder for bench.json (as --json) and bench.svg (time and memory against length)")
      ->type_name("DIR");
  options->common.add_to(app);
  app.footer(kBenchFooter);
  return [options] { run(*options); };
}

}  // namespace performer::cli
