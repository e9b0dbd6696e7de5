// SPDX-License-Identifier: Apache-2.0
// Held-out accuracy and perplexity of a model beside those of the unigram and bigram baselines.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "performer/data/baselines.h"
#include "performer/data/batches.h"
#include "performer/data/corpus.h"
#include "performer/distributed/communicator.h"
#include "performer/models/language_model.h"
#include "performer/nn/state_exchange.h"
#include "performer/train/breakdown.h"

namespace performer::train {

// All over the same symbols (end markers are counted apart, so that the three are comparable); masked models:
// over the chosen symbols. Perplexity is exp of the token-weighted mean over everything, never of batch
// means.
struct Evaluation {
  data::Score model, unigram;
  data::Score bigram;      // nothing is scored without a table of pairs (data::Baselines::has_bigram)
  data::Score end_marker;  // causal models: how well the end of sequences is predicted
  // What Score::bits() is called where a token is a byte or a value of a pixel: bits_key().
  std::string bits_key;
  Breakdown breakdown;  // of the model's symbols
  int64_t sequences = 0;
  double seconds = 0;
};

// One pass over `corpus`, in float32 and without dropout; leaves the model in the mode it found it in. The
// result does not depend on data.batch_tokens beyond rounding. A sequence longer than data.batch_tokens is
// read in chunks of so many tokens where the attention has a state of constant size, else whole. Throws
// InputError when the model or the baselines were made for a vocabulary of another size.
//
// `stop`, where it is given and set, ends the evaluation with Interrupted after the batch under way;
// `progress` is called after each batch with the sequences done and all of them.
struct EvaluationOptions {
  const std::atomic<bool>* stop = nullptr;
  std::function<void(int64_t done, int64_t total)> progress = {};
  // Several ranks, which all call it and predict a batch each in turn; the result is the same on all and that
  // of one, bit for bit. A stop on one rank ends all.
  distributed::Communicator* ranks = nullptr;
  // Over these ranks: long sequences lie in slices on all of them, and agree up to rounding with one process.
  std::shared_ptr<nn::StateExchange> exchange = nullptr;
};
Evaluation evaluate(LanguageModel& model, const data::Corpus& corpus, const DataConfig& data,
                    const data::Baselines& baselines, const EvaluationOptions& options = {});

// Whether `stop`, which may be null, is set on any rank. All call it together.
bool any_stops(const std::atomic<bool>* stop, distributed::Communicator& ranks);

// "bits_per_dimension" for images, "bits_per_byte" for text that is read byte by byte, else empty: elsewhere
// a token has no size that others could compare with.
std::string bits_key(const data::Corpus& corpus);
std::string bits_key(const data::Vocabulary& vocabulary, const std::string& format);

// {"model": {"accuracy", "perplexity", "tokens"}, "unigram": {...}, "bigram": {...}, "end_marker": {...},
// "sequences", "seconds"}; the first three with evaluation.bits_key beside "perplexity" where there is one;
// without "bigram" and "end_marker" when nothing was scored.
nlohmann::ordered_json to_json(const Evaluation& evaluation);

// A batch of the data layer as tensors (shares no memory with it).
SequenceBatch to_tensors(const data::Batch& batch);
at::Tensor target_tensor(const data::Batch& batch);  // int64 [rows, width]
at::Tensor weight_tensor(const data::Batch& batch);  // float32 [rows, width]

}  // namespace performer::train
