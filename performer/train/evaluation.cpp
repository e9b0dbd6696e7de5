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

// The sequences of the stream's last batch: the model, and the baselines on the symbols that it was scored
// on.
void add_sequences(Evaluation& evaluation, const data::Batch& batch, const Predictions& predictions,
                   const data::EvaluationStream& stream, const data::Corpus& corpus,
                   const data::Baselines& baselines) {
  for (int64_t segment = 0; segment < stream.count(); ++segment) {
    const auto sequence = corpus.tokens(stream.first() + segment);
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
  evaluation.sequences += stream.count();
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
  while (const auto batch = stream.next()) {
    add_sequences(evaluation, *batch, predict(model, *batch), stream, corpus, baselines);
    if (options.progress) options.progress(evaluation.sequences, corpus.size());
    if (options.stop != nullptr && options.stop->load()) {
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
