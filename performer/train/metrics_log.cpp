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

namespace performer {
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
  const double perplexity = std::exp(metrics.loss);
  const double memory = peak_memory_mib();
  write({{"step", metrics.step},
         {"loss", metrics.loss},
         {"accuracy", metrics.accuracy},
         {"perplexity", perplexity},
         {"tokens", metrics.tokens},
         {"lr", metrics.learning_rate},
         {"grad_norm", metrics.gradient_norm},
         {"tokens_per_second", metrics.tokens_per_second},
         {"seconds", metrics.seconds},
         {"peak_memory_mib", memory}});
  tensorboard_.add(metrics.step, {{"train/loss", metrics.loss},
                                  {"train/accuracy", metrics.accuracy},
                                  {"train/perplexity", perplexity},
                                  {"train/lr", metrics.learning_rate},
                                  {"train/grad_norm", metrics.gradient_norm},
                                  {"train/tokens_per_second", metrics.tokens_per_second},
                                  {"train/peak_memory_mib", memory}});
}

void MetricsLog::add(int64_t step, const Evaluation& evaluation) {
  write({{"step", step}, {"valid", nlohmann::ordered_json(to_json(evaluation))}});
  tensorboard_.add(step, {{"valid/accuracy", evaluation.model.accuracy()},
                          {"valid/perplexity", evaluation.model.perplexity()},
                          {"valid/unigram_perplexity", evaluation.unigram.perplexity()},
                          {"valid/bigram_perplexity", evaluation.bigram.perplexity()}});
}

void MetricsLog::finish(const RunState& state, double tokens_per_second) {
  write({{"step", state.step},
         {"final",
          {{"tokens", state.tokens},
           {"seconds", state.seconds},
           {"tokens_per_second", tokens_per_second},
           {"peak_memory_mib", peak_memory_mib()},
           {"sequences", state.crops.sequences},
           {"cropped", state.crops.cropped},
           {"residues_dropped", state.crops.residues_dropped},
           {"pieces", state.crops.pieces}}}});
}

// A line is handed to the system at once, so that a killed process loses none.
void MetricsLog::write(const nlohmann::ordered_json& record) {
  file_ << record.dump() + "\n" << std::flush;
  check(file_.good(), "cannot write {}: {}", path_, std::strerror(errno));
}

}  // namespace performer
