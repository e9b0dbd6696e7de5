// SPDX-License-Identifier: Apache-2.0
#include "performer/train/evaluation.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>

#include "performer/base/error.h"

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

Predictions predict(LanguageModel& model, const data::Batch& batch) {
  const at::Tensor logits = model->forward(to_tensors(batch)).flatten(0, 1);
  const at::Tensor targets = target_tensor(batch).reshape({-1, 1});
  const at::Tensor log_probabilities = at::log_softmax(logits, -1, at::kFloat);
  return {log_probabilities.gather(1, targets).squeeze(1).contiguous(), logits.argmax(-1).contiguous(),
          log_probabilities.amax(-1).contiguous()};
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
std::vector<Piece> next_round(data::EvaluationStream& stream, int ranks) {
  std::vector<Piece> round;
  while (std::ssize(round) < ranks) {
    std::optional<data::Batch> batch = stream.next();
    if (!batch) break;
    round.push_back({std::move(*batch), stream.first(), stream.count()});
  }
  return round;
}

// Those of all batches of a round, of which each rank computes one.
std::vector<Predictions> predict(LanguageModel& model, const std::vector<Piece>& round,
                                 distributed::Communicator& ranks) {
  if (ranks.size() == 1) return {predict(model, round[0].batch)};
  int64_t widest = 0;
  for (const Piece& piece : round) widest = std::max(widest, piece.batch.width);
  const at::Tensor sent = at::zeros({3, widest}, at::kFloat);
  if (ranks.rank() < std::ssize(round)) {
    const Predictions own = predict(model, round[static_cast<size_t>(ranks.rank())].batch);
    const at::Tensor part = sent.narrow(1, 0, own.best.size(0));
    part[0].copy_(own.log_probabilities);
    part[1].copy_(own.best);  // ids of 16 bits are exact in float32
    part[2].copy_(own.highest);
  }
  const at::Tensor all = ranks.gather(sent);
  std::vector<Predictions> found;
  for (int64_t i = 0; i < std::ssize(round); ++i) {
    const at::Tensor one = all[i].narrow(1, 0, round[static_cast<size_t>(i)].batch.width);
    found.push_back({one[0].contiguous(), one[1].to(at::kLong), one[2].contiguous()});
  }
  return found;
}

bool any_stops(const std::atomic<bool>* stop, distributed::Communicator& ranks) {
  const at::Tensor flag = at::full({1}, stop != nullptr && stop->load() ? 1 : 0, at::kLong);
  ranks.maximum(flag);
  return flag.item<int64_t>() != 0;
}

nlohmann::ordered_json to_json(const data::Score& score, const std::string& bits_key) {
  nlohmann::ordered_json json = {{"accuracy", score.accuracy()}, {"perplexity", score.perplexity()}};
  if (!bits_key.empty()) json[bits_key] = score.bits();
  json["tokens"] = score.tokens;
  return json;
}

}  // namespace

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
  for (std::vector<Piece> round; !(round = next_round(stream, ranks.size())).empty();) {
    const std::vector<Predictions> predictions = predict(model, round, ranks);
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
