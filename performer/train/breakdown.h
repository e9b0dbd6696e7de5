// SPDX-License-Identifier: Apache-2.0
// An evaluation taken apart: by the length of sequences, by symbol, and by how sure the model was.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "performer/data/baselines.h"
#include "performer/data/vocabulary.h"

namespace performer::train {

// One scored symbol.
struct ScoredSymbol {
  int64_t target = 0, best = 0;  // best: the most probable token
  double log_probability = 0;    // of the target
  double confidence = 0;         // the probability of `best`
};

class Breakdown {
 public:
  static constexpr int64_t kBins = 10;  // of confidence, equally wide
  static constexpr int64_t kShortest = 64;

  void add(const ScoredSymbol& symbol);
  // A whole sequence of `length` symbols with what was scored in it.
  void add(int64_t length, const data::Score& model, const data::Score& unigram, const data::Score& bigram);

  // {"by_length": [{"from", "to", "sequences", "model", "unigram", "bigram"}], "by_symbol": [{"symbol",
  // "tokens", "accuracy", "perplexity", "predicted", "unigram_perplexity"}], "calibration": [{"from",
  // "to", "tokens", "confidence", "accuracy"}], "calibration_error"}. Lengths are 1 to 64 and then double,
  // and only those that occur are listed, as are symbols. The expected calibration error is the mean of
  // |confidence - accuracy| over the parts, weighted by their tokens. null: nothing was scored.
  nlohmann::ordered_json to_json(const data::Vocabulary& vocabulary, const data::Baselines& baselines) const;

 private:
  struct Length {
    int64_t sequences = 0;
    data::Score model, unigram, bigram;
  };
  struct Symbol {
    data::Score score;
    int64_t predicted = 0;
  };
  struct Bin {
    int64_t tokens = 0, correct = 0;
    double confidence = 0;
  };
  std::map<int64_t, Length> lengths_;  // by the longest
  std::map<int64_t, Symbol> symbols_;  // by id
  std::vector<Bin> bins_ = std::vector<Bin>(kBins);
};

}  // namespace performer::train
