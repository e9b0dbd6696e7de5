// SPDX-License-Identifier: Apache-2.0
#include "performer/train/evaluation.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>

#include "performer/base/error.h"
#include "performer/models/long_sequence.h"

namespace performer::train {
namespace {

template <class T>
at::Tensor copy_to_tensor(const std::vector<T>& values, at::IntArrayRef shape, at::ScalarType type) {
  at::Tensor tensor = at::empty(shape, type);
  std::memcpy(tensor.data_ptr(), values.data(), values.size() * sizeof(T));
  return tensor;
}

struct Predictions {
  at::Tensor log_probabilities;  // float32 [N], of the targets
  at::Tensor best;               // int64 [N]
  at::Tensor highest;            // float32 [N], log-probabilities of `best`
};

// Logits [N, vocabulary] and targets [N].
Predictions predictions_of(const at::Tensor& logits, const at::Tensor& targets) {
  const at::Tensor log_probabilities = at::log_softmax(logits, -1, at::kFloat);
  return {log_probabilities.gather(1, targets.unsqueeze(1)).squeeze(1).contiguous(),
          logits.argmax(-1).contiguous(), log_probabilities.amax(-1).contiguous()};
}

// Of one long sequence, in chunks; with slices of this rank's alone.
Predictions predict_in_chunks(LanguageModel& model, const data::Batch& batch, int64_t chunk,
                              const std::shared_ptr<const nn::Slices>& slices) {
  const at::Tensor tokens = to_tensors(batch).tokens[0], targets = target_tensor(batch)[0];
  ChunkedRequest request{{std::ssize(model->blocks())}, chunk};
  request.temporary_folder = std::filesystem::temp_directory_path().string();
  request.slices = slices;
  std::vector<at::Tensor> values, best, highest;
  represent_in_chunks(model, tokens, request, [&](int64_t, int64_t first, const at::Tensor& rows) {
    const Predictions found = predictions_of(model->logits(rows), targets.narrow(0, first, rows.size(0)));
    values.push_back(found.log_probabilities);
    best.push_back(found.best);
    highest.push_back(found.highest);
  });
  return {at::cat(values), at::cat(best), at::cat(highest)};
}

// The model on the targets begin .. end - 1 of a batch: `symbols` gets the score of symbols.
void add_model(Evaluation& evaluation, data::Score& symbols, const data::Batch& batch, int64_t begin,
               int64_t end, const Predictions& predictions, const data::Vocabulary& vocabulary) {
  const float* log_probabilities = predictions.log_probabilities.const_data_ptr<float>();
  const float* highest = predictions.highest.const_data_ptr<float>();
  const int64_t* best = predictions.best.const_data_ptr<int64_t>();
  for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
    if (batch.weights[i] == 0) continue;
    const bool symbol = vocabulary.is_symbol(batch.targets[i]);
    data::Score& score = symbol ? symbols : evaluation.end_marker;
    score.log_likelihood += log_probabilities[i];
    score.correct += best[i] == batch.targets[i];
    ++score.tokens;
    if (symbol)
      evaluation.breakdown.add({batch.targets[i], best[i], log_probabilities[i], std::exp(highest[i])});
  }
}

// A batch of the stream, and which sequences of the corpus it holds.
struct Piece {
  data::Batch batch;
  int64_t first = 0, count = 0;
  bool in_chunks = false;  // one sequence, longer than a batch
};

// The sequences of a batch: the model, and the baselines on the symbols that it was scored on.
void add_sequences(Evaluation& evaluation, const Piece& piece, const Predictions& predictions,
                   const data::EvaluationStream& stream, const data::Corpus& corpus,
                   const data::Baselines& baselines) {
  const data::Batch& batch = piece.batch;
  for (int64_t segment = 0; segment < piece.count; ++segment) {
    const auto sequence = corpus.tokens(piece.first + segment);
    const int64_t begin = batch.cu_seqlens[static_cast<size_t>(segment)];
    const int64_t end = batch.cu_seqlens[static_cast<size_t>(segment) + 1];
    const auto weights = std::span(batch.weights)
                             .subspan(static_cast<size_t>(begin + stream.symbol_offset()), sequence.size());
    data::Score model, unigram, bigram;
    add_model(evaluation, model, batch, begin, end, predictions, corpus.vocabulary());
    baselines.add_unigram(unigram, sequence, weights);
    baselines.add_bigram(bigram, sequence, weights);
    evaluation.model += model;
    evaluation.unigram += unigram;
    evaluation.bigram += bigram;
    evaluation.breakdown.add(std::ssize(sequence), model, unigram, bigram);
  }
  evaluation.sequences += piece.count;
}

// The next batches, one for each rank as far as there are any.
std::vector<Piece> next_round(data::EvaluationStream& stream, int ranks, int64_t longest_whole) {
  std::vector<Piece> round;
  while (std::ssize(round) < ranks) {
    std::optional<data::Batch> batch = stream.next();
    if (!batch) break;
    const bool in_chunks = batch->width > longest_whole;
    round.push_back({std::move(*batch), stream.first(), stream.count(), in_chunks});
  }
  return round;
}

class RoundOfRanks {
 public:
  RoundOfRanks(LanguageModel& model, int64_t chunk, distributed::Communicator& ranks,
               const std::shared_ptr<nn::StateExchange>& exchange)
      : model_(model), chunk_(chunk), ranks_(ranks), exchange_(exchange) {}

  // Those of all batches, of which each rank computes one, and of those in slices its own.
  std::vector<Predictions> predict(const std::vector<Piece>& round) const {
    if (ranks_.size() == 1) return {predict_whole(round[0])};
    std::vector<Predictions> found(round.size());
    std::vector<int64_t> widths(round.size(), 0);
    for (size_t i = 0; i < round.size(); ++i) {
      if (in_slices(round[i])) {
        found[i] = predict_in_slices(round[i]);
      } else {
        widths[i] = round[i].batch.width;
      }
    }
    const auto own = static_cast<size_t>(ranks_.rank());
    const bool has_own = own < round.size() && widths[own] > 0;
    const std::vector<Predictions> others =
        exchanged(has_own ? predict_whole(round[own]) : Predictions{}, widths);
    for (size_t i = 0; i < round.size(); ++i) {
      if (widths[i] > 0) found[i] = others[i];
    }
    return found;
  }

 private:
  bool in_slices(const Piece& piece) const {
    return exchange_ && piece.in_chunks && piece.batch.width >= ranks_.size();
  }

  Predictions predict_whole(const Piece& piece) const {
    if (piece.in_chunks) return predict_in_chunks(model_, piece.batch, chunk_, nullptr);
    const at::Tensor logits = model_->forward(to_tensors(piece.batch)).flatten(0, 1);
    return predictions_of(logits, target_tensor(piece.batch).flatten());
  }

  Predictions predict_in_slices(const Piece& piece) const {
    const auto slices = slices_of_sequence(piece.batch.width, ranks_.size(), exchange_);
    std::vector<int64_t> widths;
    for (size_t i = 0; i + 1 < slices->cuts.size(); ++i)
      widths.push_back(slices->cuts[i + 1] - slices->cuts[i]);
    const std::vector<Predictions> parts =
        exchanged(predict_in_chunks(model_, piece.batch, chunk_, slices), widths);
    const auto joined = [&](at::Tensor Predictions::*member) {
      std::vector<at::Tensor> all;
      for (const Predictions& part : parts) all.push_back(part.*member);
      return at::cat(all);
    };
    return {joined(&Predictions::log_probabilities), joined(&Predictions::best),
            joined(&Predictions::highest)};
  }

  // What rank i predicted of widths[i] targets, for all of them.
  std::vector<Predictions> exchanged(const Predictions& own, const std::vector<int64_t>& widths) const {
    const int64_t widest = *std::ranges::max_element(widths);
    if (widest == 0) return {};
    const at::Tensor sent = at::zeros({3, widest}, at::kFloat);
    if (own.best.defined()) {
      const at::Tensor part = sent.narrow(1, 0, own.best.size(0));
      part[0].copy_(own.log_probabilities);
      part[1].copy_(own.best);  // ids of 16 bits are exact in float32
      part[2].copy_(own.highest);
    }
    const at::Tensor all = ranks_.gather(sent);
    std::vector<Predictions> found;
    for (int64_t i = 0; i < std::ssize(widths); ++i) {
      const at::Tensor one = all[i].narrow(1, 0, widths[static_cast<size_t>(i)]);
      found.push_back({one[0].contiguous(), one[1].to(at::kLong), one[2].contiguous()});
    }
    return found;
  }

  LanguageModel& model_;
  int64_t chunk_;
  distributed::Communicator& ranks_;
  const std::shared_ptr<nn::StateExchange>& exchange_;
};

nlohmann::ordered_json to_json(const data::Score& score, const std::string& bits_key) {
  nlohmann::ordered_json json = {{"accuracy", score.accuracy()}, {"perplexity", score.perplexity()}};
  if (!bits_key.empty()) json[bits_key] = score.bits();
  json["tokens"] = score.tokens;
  return json;
}

}  // namespace

bool any_stops(const std::atomic<bool>* stop, distributed::Communicator& ranks) {
  const at::Tensor flag = at::full({1}, stop != nullptr && stop->load() ? 1 : 0, at::kLong);
  ranks.maximum(flag);
  return flag.item<int64_t>() != 0;
}

SequenceBatch to_tensors(const data::Batch& batch) {
  const std::array<int64_t, 2> shape{batch.rows, batch.width};
  SequenceBatch tensors;
  tensors.tokens = copy_to_tensor(batch.inputs, shape, at::kLong);
  tensors.positions = copy_to_tensor(batch.positions, shape, at::kLong);
  if (!batch.valid.empty()) tensors.key_mask = copy_to_tensor(batch.valid, shape, at::kByte).to(at::kBool);
  if (!batch.cu_seqlens.empty()) {
    tensors.cu_seqlens =
        copy_to_tensor(batch.cu_seqlens, {static_cast<int64_t>(batch.cu_seqlens.size())}, at::kLong);
  }
  return tensors;
}

at::Tensor target_tensor(const data::Batch& batch) {
  return copy_to_tensor(batch.targets, {batch.rows, batch.width}, at::kLong);
}

at::Tensor weight_tensor(const data::Batch& batch) {
  return copy_to_tensor(batch.weights, {batch.rows, batch.width}, at::kFloat);
}

Evaluation evaluate(LanguageModel& model, const data::Corpus& corpus, const DataConfig& data,
                    const data::Baselines& baselines, const EvaluationOptions& options) {
  const int64_t symbols = corpus.vocabulary().symbols();
  check<InputError>(
      model->vocabulary() == corpus.vocabulary().size() && baselines.symbols() == symbols,
      "a model of {} tokens with baselines of {} symbols cannot be evaluated on sequences of the vocabulary "
      "{}, which has {} symbols and 4 markers",
      model->vocabulary(), baselines.symbols(), corpus.vocabulary().name(), symbols);
  const auto started = std::chrono::steady_clock::now();
  const c10::NoGradGuard no_grad;
  const bool was_training = model->is_training();
  model->eval();
  Evaluation evaluation;
  evaluation.bits_key = bits_key(corpus);
  data::EvaluationStream stream(corpus, data, model->model_config().objective);
  const auto alone = distributed::single_rank();
  distributed::Communicator& ranks = options.ranks != nullptr ? *options.ranks : *alone;
  constexpr auto kAny = std::numeric_limits<int64_t>::max();
  const int64_t longest_whole = why_not_in_slices(model).empty() ? data.batch_tokens : kAny;
  const RoundOfRanks together(model, data.batch_tokens, ranks, options.exchange);
  for (std::vector<Piece> round; !(round = next_round(stream, ranks.size(), longest_whole)).empty();) {
    const std::vector<Predictions> predictions = together.predict(round);
    for (size_t i = 0; i < round.size(); ++i) {
      add_sequences(evaluation, round[i], predictions[i], stream, corpus, baselines);
    }
    if (options.progress) options.progress(evaluation.sequences, corpus.size());
    if (any_stops(options.stop, ranks)) {
      model->train(was_training);
      throw Interrupted("interrupted in an evaluation");
    }
  }
  model->train(was_training);
  evaluation.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return evaluation;
}

std::string bits_key(const data::Corpus& corpus) {
  return bits_key(corpus.vocabulary(), corpus.format());
}

std::string bits_key(const data::Vocabulary& vocabulary, const std::string& format) {
  if (vocabulary == data::Vocabulary::pixels()) return "bits_per_dimension";
  const bool text = vocabulary == data::Vocabulary::bytes() || format == "text";
  return text && vocabulary.has_letters() ? "bits_per_byte" : "";
}

nlohmann::ordered_json to_json(const Evaluation& evaluation) {
  const std::string& bits = evaluation.bits_key;
  nlohmann::ordered_json json = {{"model", to_json(evaluation.model, bits)},
                                 {"unigram", to_json(evaluation.unigram, bits)}};
  if (evaluation.bigram.tokens > 0) json["bigram"] = to_json(evaluation.bigram, bits);
  if (evaluation.end_marker.tokens > 0) json["end_marker"] = to_json(evaluation.end_marker, "");
  json["sequences"] = evaluation.sequences;
  json["seconds"] = evaluation.seconds;
  return json;
}

}  // namespace performer::train
