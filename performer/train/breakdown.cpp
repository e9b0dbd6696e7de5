// SPDX-License-Identifier: Apache-2.0
#include "performer/train/breakdown.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

namespace performer::train {
namespace {

using Json = nlohmann::ordered_json;

Json score_json(const data::Score& score) {
  if (score.tokens == 0) return nullptr;
  return {{"accuracy", score.accuracy()}, {"perplexity", score.perplexity()}, {"tokens", score.tokens}};
}

}  // namespace

void Breakdown::add(const ScoredSymbol& symbol) {
  data::Score& score = symbols_[symbol.target].score;
  const bool correct = symbol.best == symbol.target;
  score.log_likelihood += symbol.log_probability;
  score.correct += correct;
  ++score.tokens;
  ++symbols_[symbol.best].predicted;
  const auto bin = static_cast<int64_t>(symbol.confidence * static_cast<double>(kBins));
  Bin& bins = bins_[static_cast<size_t>(std::clamp<int64_t>(bin, 0, kBins - 1))];
  bins.confidence += symbol.confidence;
  bins.correct += correct;
  ++bins.tokens;
}

void Breakdown::add(int64_t length, const data::Score& model, const data::Score& unigram,
                    const data::Score& bigram) {
  int64_t longest = kShortest;
  while (longest < length) longest *= 2;
  Length& found = lengths_[longest];
  ++found.sequences;
  found.model += model;
  found.unigram += unigram;
  found.bigram += bigram;
}

Json Breakdown::to_json(const data::Vocabulary& vocabulary, const data::Baselines& baselines) const {
  Json json = {{"by_length", Json::array()}, {"by_symbol", Json::array()}};
  for (const auto& [longest, length] : lengths_) {
    json["by_length"].push_back({{"from", longest == kShortest ? 1 : longest / 2 + 1},
                                 {"to", longest},
                                 {"sequences", length.sequences},
                                 {"model", score_json(length.model)},
                                 {"unigram", score_json(length.unigram)},
                                 {"bigram", score_json(length.bigram)}});
  }
  for (const auto& [id, symbol] : symbols_) {
    Json row = {{"symbol", vocabulary.symbol_text(id)}, {"tokens", symbol.score.tokens}};
    row["accuracy"] = row["perplexity"] = row["unigram_perplexity"] = nullptr;
    if (symbol.score.tokens > 0) {
      row["accuracy"] = symbol.score.accuracy();
      row["perplexity"] = symbol.score.perplexity();
      data::Score unigram;
      baselines.add_unigram(unigram, std::array{static_cast<data::Token>(id)});
      row["unigram_perplexity"] = unigram.perplexity();
    }
    row["predicted"] = symbol.predicted;
    json["by_symbol"].push_back(std::move(row));
  }
  int64_t tokens = 0;
  double error = 0;
  Json bins = Json::array();
  for (int64_t i = 0; i < kBins; ++i) {
    const Bin& bin = bins_[static_cast<size_t>(i)];
    const auto count = static_cast<double>(bin.tokens), correct = static_cast<double>(bin.correct);
    tokens += bin.tokens;
    error += std::abs(bin.confidence - correct);
    const auto mean = [&](double sum) { return bin.tokens > 0 ? Json(sum / count) : Json(nullptr); };
    bins.push_back({{"from", static_cast<double>(i) / kBins},
                    {"to", static_cast<double>(i + 1) / kBins},
                    {"tokens", bin.tokens},
                    {"confidence", mean(bin.confidence)},
                    {"accuracy", mean(correct)}});
  }
  json["calibration"] = std::move(bins);
  json["calibration_error"] = nullptr;
  if (tokens > 0) json["calibration_error"] = error / static_cast<double>(tokens);
  return json;
}

}  // namespace performer::train
