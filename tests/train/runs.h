// SPDX-License-Identifier: Apache-2.0
// Small training runs for tests: synthetic proteins, a model that trains in seconds, and what a run left
// behind.
#pragma once

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/base/philox.h"
#include "performer/data/baselines.h"
#include "performer/data/store.h"
#include "performer/data/vocabulary.h"
#include "performer/train/language_model_run.h"

namespace performer::testing {

// A folder that vanishes with the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    static std::atomic<int> count{0};
    path_ = (std::filesystem::temp_directory_path() /
             fmt::format("performer-train-test-{}-{}", ::getpid(), count.fetch_add(1)))
                .string();
    std::filesystem::create_directories(path_);
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// `count` random proteins of 8 to 40 residues, the same for the same seed.
inline std::vector<std::string> random_proteins(int count, uint64_t seed = 1) {
  PhiloxStream random(seed);
  std::vector<std::string> proteins(static_cast<size_t>(count));
  for (auto& protein : proteins) {
    const uint64_t length = 8 + random.below(33);
    for (uint64_t i = 0; i < length; ++i) protein += "ACDEFGHIKLMNPQRSTVWY"[random.below(20)];
  }
  return proteins;
}

inline std::string write_fasta(const std::string& path, const std::vector<std::string>& proteins) {
  std::string text;
  for (size_t i = 0; i < proteins.size(); ++i) text += fmt::format(">p{}\n{}\n", i, proteins[i]);
  write_file(path, text);
  return path;
}

// A causal FAVOR+ model with everything on that draws random numbers: dropout, redraws, accumulation.
inline train::LanguageModelRequest small_request(const std::string& fasta, const std::string& output) {
  at::set_num_threads(
      1);  // nothing here is worth a second thread, and waiting for one is slow on a busy machine
  train::LanguageModelRequest request;
  request.model = {.layers = 1, .width = 16, .heads = 2, .ffn = 32};
  request.attention.kind = "favor-softmax";
  request.attention.set("features", 8);
  request.attention.redraw_every = 3;
  request.data.length = 32;
  request.data.batch_tokens = 128;
  request.data.holdout = 0.2;
  request.train.steps = 10;
  request.train.learning_rate = 3e-3;
  request.train.accumulate = 2;
  request.train.evaluate_every = 5;
  request.train.checkpoint_every = 4;
  request.train.log_every = 1000;
  request.train_files = {fasta};
  request.output = output;
  return request;
}

// What tests of whole runs start from: a folder with forty proteins in it.
class RunTest : public ::testing::Test {
 protected:
  train::LanguageModelRequest request(const std::string& output) {
    return small_request(fasta_, folder_ / output);
  }
  // Message of the error that a run ends with, "" for none.
  static std::string failure(const train::LanguageModelRequest& request) {
    try {
      train::run(request);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
  TemporaryFolder folder_;
  std::string fasta_ = write_fasta(folder_ / "p.fasta", random_proteins(40));
};

inline std::vector<nlohmann::json> records(const std::string& directory) {
  std::ifstream file(directory + "/metrics.jsonl");
  std::vector<nlohmann::json> all;
  for (std::string line; std::getline(file, line);) all.push_back(nlohmann::json::parse(line));
  return all;
}

// Baselines of a corpus.
inline data::Baselines fitted(const data::Corpus& corpus) {
  data::Baselines baselines(corpus.vocabulary().symbols());
  for (int64_t i = 0; i < corpus.size(); ++i) baselines.add(corpus.tokens(i));
  return baselines;
}

// Loss of every step in the order of the file, bit for bit (JSON numbers round-trip).
inline std::vector<double> losses(const std::string& directory) {
  std::vector<double> found;
  for (const auto& record : records(directory)) {
    if (record.contains("loss")) found.push_back(record["loss"]);
  }
  return found;
}

}  // namespace performer::testing
