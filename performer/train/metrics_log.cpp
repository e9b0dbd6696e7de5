// SPDX-License-Identifier: Apache-2.0
#include "performer/train/metrics_log.h"

#include <sys/resource.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/base/files.h"

namespace performer::train {
namespace {

void drop_records_after(const std::string& path, int64_t step) {
  if (!std::filesystem::exists(path)) return;
  std::ifstream lines(path);
  AtomicFile kept(path);
  for (std::string line; std::getline(lines, line);) {
    const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    const bool whole = record.is_object() && record.contains("step") && record["step"].is_number_integer();
    if (whole && record["step"] <= step && !record.contains("final")) kept.write(line + "\n");
  }
  kept.commit();
}

}  // namespace

double peak_memory_mib() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;  // Linux counts KiB
}

MetricsLog::MetricsLog(const std::string& directory, int64_t step)
    : path_(directory + "/metrics.jsonl"), tensorboard_(directory, step + 1) {
  drop_records_after(path_, step);
  file_.open(path_, std::ios::app);
  check(file_.good(), "cannot write {}: {}", path_, std::strerror(errno));
}

void MetricsLog::add(const StepMetrics& metrics) {
  const double memory = peak_memory_mib();
  nlohmann::ordered_json record = {{"step", metrics.step}, {"loss", metrics.loss}};
  std::vector<std::pair<std::string, double>> scalars = {{"train/loss", metrics.loss}};
  const auto add = [&](const std::string& key, const auto& value) {
    record[key] = value;
    scalars.emplace_back("train/" + key, value);
  };
  if (!std::isnan(metrics.accuracy)) {
    add("accuracy", metrics.accuracy);
    add("perplexity", std::exp(metrics.loss));
  }
  add("tokens", metrics.tokens);
  add("targets", metrics.targets);
  add("lr", metrics.learning_rate);
  add("grad_norm", metrics.gradient_norm);
  add("tokens_per_second", metrics.tokens_per_second);
  record["seconds"] = metrics.seconds;
  add("peak_memory_mib", memory);
  write(record);
  tensorboard_.add(metrics.step, scalars);
}

void MetricsLog::add(int64_t step, const EvaluationReport& report) {
  write({{"step", step}, {"valid", report.record}});
  std::vector<std::pair<std::string, double>> scalars;
  for (const auto& [name, value] : report.scalars) scalars.emplace_back("valid/" + name, value);
  tensorboard_.add(step, scalars);
}

void MetricsLog::finish(const RunState& state, double tokens_per_second,
                        const nlohmann::ordered_json& task_totals) {
  nlohmann::ordered_json totals = {{"tokens", state.tokens},
                                   {"targets", state.targets},
                                   {"seconds", state.seconds},
                                   {"tokens_per_second", tokens_per_second},
                                   {"peak_memory_mib", peak_memory_mib()}};
  if (state.best) totals["best_step"] = state.best_step;
  totals.update(task_totals);
  write({{"step", state.step}, {"final", totals}});
}

// A line is handed to the system at once, so that a killed process loses none.
void MetricsLog::write(const nlohmann::ordered_json& record) {
  file_ << record.dump() + "\n" << std::flush;
  check(file_.good(), "cannot write {}: {}", path_, std::strerror(errno));
}

}  // namespace performer::train
