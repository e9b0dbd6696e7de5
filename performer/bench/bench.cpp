// SPDX-License-Identifier: Apache-2.0
#include "performer/bench/bench.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <set>

#include "performer/base/error.h"
#include "performer/bench/cases.h"
#include "performer/models/sizes.h"
#include "performer/nn/attention/kind.h"
#include "performer/ops/executor.h"
#include "performer/studies/estimator.h"

namespace performer::bench {
namespace {

constexpr int64_t kLargest = int64_t{1} << 24;

void check_known(const std::string& option, const std::vector<std::string>& given,
                 const std::vector<std::string>& known) {
  for (const std::string& name : given) {
    check<UsageError>(std::find(known.begin(), known.end(), name) != known.end(), "{}: '{}' is none of {}",
                      option, name, fmt::join(known, ", "));
  }
  check<UsageError>(std::set<std::string>(given.begin(), given.end()).size() == given.size(),
                    "{}: {} names something twice", option, fmt::join(given, ","));
}

void check_size(const std::string& option, int64_t value, int64_t least = 1) {
  check<UsageError>(value >= least && value <= kLargest, "{} must be between {} and {}, not {}", option,
                    least, kLargest, value);
}

// The request with the defaults of its op filled in.
Request complete(Request request) {
  const bool favor = request.op == "favor", decode = request.op == "decode";
  if (request.kinds.empty()) request.kinds = default_kinds(request.op);
  if (request.lengths.empty()) request.lengths = default_lengths(request.op);
  std::sort(request.lengths.begin(), request.lengths.end());
  request.lengths.erase(std::unique(request.lengths.begin(), request.lengths.end()), request.lengths.end());
  if (request.dtypes.empty())
    request.dtypes =
        decode ? std::vector<std::string>{"float32"} : std::vector<std::string>{"float32", "bfloat16"};
  if (request.directions.empty()) {
    request.directions =
        favor ? std::vector<std::string>{"bidirectional", "causal"} : std::vector<std::string>{"causal"};
  }
  if (request.batch == 0) request.batch = decode ? 64 : 1;
  if (request.timing.repetitions == 0) request.timing.repetitions = request.op == "train" ? 3 : 7;
  if (request.timing.seconds == 0) request.timing.seconds = request.op == "train" ? 60 : 0.4;
  return request;
}

std::vector<const kernels::FavorKernels*> chosen_targets(const std::vector<std::string>& names) {
  if (names.empty()) return {&kernels::favor_kernels()};
  const auto available = kernels::available_favor_kernels();
  if (names.size() == 1 && names[0] == "all") {
    // Not the reference: it is what the others are compared with, and far too slow.
    return {available.begin(), available.end() - 1};
  }
  std::vector<const kernels::FavorKernels*> chosen;
  std::vector<std::string> known;
  for (const auto* table : available) known.push_back(table->name);
  for (const std::string& name : names) {
    const auto found = std::find(known.begin(), known.end(), name);
    check<UsageError>(found != known.end(), "--targets: {} is not available here; usable are all, {}", name,
                      fmt::join(known, ", "));
    chosen.push_back(available[static_cast<size_t>(found - known.begin())]);
  }
  return chosen;
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

std::vector<std::pair<std::string, Limit>> limits_of(const Request& request) {
  ops::TorchExecutor executor;
  std::vector<std::string> targets;
  for (const auto* table : kernels::available_favor_kernels()) targets.push_back(table->name);
  if (request.op == "train") targets = {"amx", "bf16"};  // what LibTorch's matrix products use
  std::vector<std::pair<std::string, Limit>> limits;
  for (const std::string& dtype : request.dtypes) {
    // float16 is converted to float32 on the way in.
    limits.emplace_back(dtype,
                        dtype == "bfloat16" ? bfloat16_limit(executor, targets) : float_limit(executor));
  }
  return limits;
}

void verify(std::vector<Case>& cases, const Progress& progress) {
  int64_t done = 0;
  for (Case& each : cases) {
    ++done;
    if (progress) progress(fmt::format("comparing rows with the definition, {} of {}", done, cases.size()));
    try {
      each.verify(each.row);
    } catch (const c10::Error& error) {
      each.row.failure = error.what_without_backtrace();
    }
  }
}

// Rows that are right are timed by turns; the others keep their failure.
void measure(std::vector<Case>& cases, const Request& request, const Progress& progress, Report& report) {
  verify(cases, progress);
  std::vector<std::function<void()>> works;
  for (const Case& each : cases) {
    if (each.row.failure.empty()) works.push_back(each.work);
  }
  const std::vector<Timing> timings = time_by_turns(works, request.timing, progress);
  size_t next = 0;
  for (Case& each : cases) {
    Row& row = each.row;
    if (row.failure.empty()) {
      const Timing& timing = timings[next++];
      const double units = static_cast<double>(row.length) * static_cast<double>(row.batch * row.heads);
      row.ns = timing.fastest * 1e9 / units;
      row.ns_median = timing.median * 1e9 / units;
      row.repetitions = timing.repetitions;
    }
    report.rows.push_back(row);
  }
}

// At most a line every two seconds.
Progress seldom(const Progress& progress) {
  if (!progress) return {};
  using Clock = std::chrono::steady_clock;
  return [progress, last = std::make_shared<Clock::time_point>()](const std::string& text) {
    if (Clock::now() - *last < std::chrono::seconds(2)) return;
    *last = Clock::now();
    progress(text);
  };
}

bool same_setting(const Row& a, const Row& b) {
  return a.op == b.op && a.direction == b.direction && a.pass == b.pass && a.dtype == b.dtype;
}

const Row* find_exact(const std::vector<Row>& rows, const Row& other) {
  for (const Row& row : rows) {
    if (row.kind == "exact" && row.timed() && row.length == other.length && same_setting(row, other))
      return &row;
  }
  return nullptr;
}

}  // namespace

bool Report::all_right() const {
  return std::all_of(rows.begin(), rows.end(), [](const Row& row) { return row.failure.empty(); });
}

std::vector<std::string> default_kinds(const std::string& op) {
  if (op == "favor") return {"favor-softmax", "favor-relu", "favor-trigonometric", "exact", "identity"};
  if (op == "decode") return {"favor-softmax", "favor-relu"};
  return {"favor-softmax", "favor-relu", "exact", "identity", "identity+qk"};
}

std::vector<int64_t> default_lengths(const std::string& op) {
  if (op == "favor") return {128, 256, 512, 1024};
  if (op == "decode") return {1};
  return {1024};
}

void validate(const Request& given) {
  check_known("--op", {given.op}, {"favor", "decode", "train"});
  const Request request = complete(given);
  const bool train = request.op == "train";
  check_known("--dtype", request.dtypes,
              train ? std::vector<std::string>{"float32", "bfloat16"}
                    : std::vector<std::string>{"float32", "bfloat16", "float16"});
  check_known("--directions", request.directions, {"bidirectional", "causal"});
  check_known("--passes", request.passes, {"forward", "forward_backward"});
  check<UsageError>(!request.passes.empty(), "--passes: give forward, forward_backward or both");
  check_size("--heads", request.heads);
  check_size("--head-size", request.head_size);
  check_size("--features", request.features);
  check_size("--batch", request.batch);
  check_size("--repetitions", request.timing.repetitions);
  check<UsageError>(request.timing.seconds > 0, "--seconds must be above 0, not {}", request.timing.seconds);
  for (const int64_t length : request.lengths) check_size("--lengths", length, train ? 3 : 1);
  check<UsageError>(request.op != "decode" || (given.lengths.empty() && given.directions.empty()),
                    "--op decode reads one token of each sequence, whatever came before: leave --lengths and "
                    "--directions out");
  chosen_targets(request.targets);
  check<UsageError>(!train || request.targets.empty(),
                    "--targets is for the kernels; a model takes the one that PERFORMER_CPU_TARGET names");
  if (train) preset(request.preset);
  std::set<std::string> seen;
  for (const std::string& kind : request.kinds) {
    check<UsageError>(seen.insert(kind).second, "--kinds: {} is given twice", kind);
    nn::find_kind(kind_name(kind));
    if (kind_name(kind) != kind && kind != "identity+qk") studies::parse_estimator(kind);
    if (train || (request.op == "favor" && (kind == "exact" || kind == "identity"))) continue;
    kernel_map(kind, request.heads, request.head_size, request.features);
  }
}

Report run(const Request& given, const Progress& every) {
  const Progress progress = seldom(every);
  validate(given);
  const Request request = complete(given);
  Report report;
  if (progress) progress("measuring what the processor can do at most");
  report.machine = fmt::format("{}, {} thread{}", processor_name(), at::get_num_threads(),
                               at::get_num_threads() == 1 ? "" : "s");
  Machine machine{chosen_targets(request.targets), {}};
  if (request.op != "decode") machine.limits = report.limits = limits_of(request);
  if (request.op == "train") {
    for (const int64_t length : request.lengths) {
      if (progress) progress(fmt::format("making models for sequences of {} tokens", length));
      std::vector<Case> cases = train_cases(request, machine, length);
      measure(cases, request, progress, report);
    }
  } else {
    std::vector<Case> cases =
        request.op == "favor" ? favor_cases(request, machine) : decode_cases(request, machine);
    measure(cases, request, progress, report);
  }
  report.break_even = break_even(report.rows);
  return report;
}

std::vector<BreakEven> break_even(const std::vector<Row>& rows) {
  std::vector<BreakEven> found;
  std::set<std::tuple<std::string, std::string, std::string, std::string, std::string>> seen;
  for (const Row& first : rows) {
    if (first.op != "favor" || !first.timed() || first.kind == "exact" || first.kind == "identity") continue;
    if (!seen.insert({first.kind, first.direction, first.pass, first.dtype, first.target}).second) continue;
    std::vector<std::pair<double, double>> points;  // log of the length, log of exact over linear
    for (const Row& row : rows) {
      if (!row.timed() || row.kind != first.kind || row.target != first.target || !same_setting(row, first))
        continue;
      if (const Row* exact = find_exact(rows, row))
        points.emplace_back(std::log(static_cast<double>(row.length)), std::log(exact->ns / row.ns));
    }
    if (points.empty()) continue;
    std::sort(points.begin(), points.end());
    BreakEven crossing{first.kind, first.direction, first.pass, first.dtype, first.target};
    // From the last length at which exact attention is not slower.
    size_t next = points.size();
    while (next > 0 && points[next - 1].second > 0) --next;
    if (next == 0) {
      crossing.length = std::exp(points.front().first), crossing.relation = '<';
    } else if (next == points.size()) {
      crossing.length = std::exp(points.back().first), crossing.relation = '>';
    } else {
      const auto& [x0, y0] = points[next - 1];
      const auto& [x1, y1] = points[next];
      crossing.length = std::exp(x0 - y0 * (x1 - x0) / (y1 - y0));
    }
    found.push_back(crossing);
  }
  return found;
}

}  // namespace performer::bench
