// SPDX-License-Identifier: Apache-2.0
#include "performer/train/evaluation.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <array>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>

namespace performer {
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
};

Predictions predict(LanguageModel& model, const data::Batch& batch) {
  const at::Tensor logits = model->forward(to_tensors(batch)).flatten(0, 1);
  const at::Tensor targets = target_tensor(batch).reshape({-1, 1});
  const at::Tensor log_probabilities = at::log_softmax(logits, -1, at::kFloat);
  return {log_probabilities.gather(1, targets).squeeze(1).contiguous(), logits.argmax(-1).contiguous()};
}

void add_model(Evaluation& evaluation, const data::Batch& batch, const Predictions& predictions) {
  const float* log_probabilities = predictions.log_probabilities.const_data_ptr<float>();
  const int64_t* best = predictions.best.const_data_ptr<int64_t>();
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    if (batch.weights[i] == 0) continue;
    data::Score& score = data::is_residue(batch.targets[i]) ? evaluation.model : evaluation.end_marker;
    score.log_likelihood += log_probabilities[i];
    score.correct += best[i] == batch.targets[i];
    ++score.tokens;
  }
}

// The baselines on the residues of the stream's last batch that the model was scored on.
void add_baselines(Evaluation& evaluation, const data::Batch& batch, const data::EvaluationStream& stream,
                   const data::SequenceStore& store, const data::Baselines& baselines) {
  for (int64_t segment = 0; segment < stream.count(); ++segment) {
    const auto sequence = store.tokens(stream.first() + segment);
    const auto begin =
        static_cast<size_t>(batch.cu_seqlens[static_cast<size_t>(segment)] + stream.residue_offset());
    const auto weights = std::span(batch.weights).subspan(begin, sequence.size());
    baselines.add_unigram(evaluation.unigram, sequence, weights);
    baselines.add_bigram(evaluation.bigram, sequence, weights);
  }
  evaluation.sequences += stream.count();
}

nlohmann::json to_json(const data::Score& score) {
  return {{"accuracy", score.accuracy()}, {"perplexity", score.perplexity()}, {"tokens", score.tokens}};
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

Evaluation evaluate(LanguageModel& model, const data::SequenceStore& store, const DataConfig& data,
                    const data::Baselines& baselines) {
  const auto started = std::chrono::steady_clock::now();
  const c10::NoGradGuard no_grad;
  const bool was_training = model->is_training();
  model->eval();
  Evaluation evaluation;
  data::EvaluationStream stream(store, data, model->model_config().objective);
  while (const auto batch = stream.next()) {
    add_model(evaluation, *batch, predict(model, *batch));
    add_baselines(evaluation, *batch, stream, store, baselines);
  }
  model->train(was_training);
  evaluation.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return evaluation;
}

nlohmann::json to_json(const Evaluation& evaluation) {
  nlohmann::json json{{"model", to_json(evaluation.model)},
                      {"unigram", to_json(evaluation.unigram)},
                      {"bigram", to_json(evaluation.bigram)},
                      {"sequences", evaluation.sequences},
                      {"seconds", evaluation.seconds}};
  if (evaluation.end_marker.tokens > 0) json["end_marker"] = to_json(evaluation.end_marker);
  return json;
}

}  // namespace performer
