// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/score.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <numeric>

#include "performer/base/error.h"
#include "performer/infer/packing.h"

namespace performer {

double SequenceScore::total() const {
  return std::accumulate(log_probabilities.begin(), log_probabilities.end(), 0.0);
}

double SequenceScore::mean() const {
  return log_probabilities.empty() ? 0 : total() / static_cast<double>(log_probabilities.size());
}

namespace {

// log p(targets[i]) at place places[i] of the packed batch.
std::vector<float> log_probabilities(LanguageModel& model, const Packing& packing,
                                     const std::vector<int64_t>& places,
                                     const std::vector<int64_t>& targets) {
  const at::Tensor logits = model->forward(packing.batch())[0].index_select(0, at::tensor(places, at::kLong));
  const at::Tensor chosen = at::log_softmax(logits, -1, at::kFloat)
                                .gather(1, at::tensor(targets, at::kLong).unsqueeze(1))
                                .squeeze(1)
                                .contiguous();
  const float* values = chosen.data_ptr<float>();
  return {values, values + chosen.numel()};
}

// Scores all sequences of `group` in one forward pass: inputs start marker, x1 .. x(n-1), targets x1 .. xn.
void score_causal(LanguageModel& model, const data::Vocabulary& vocabulary,
                  std::vector<SequenceScore>& group) {
  Packing packing;
  std::vector<int64_t> targets;
  for (const SequenceScore& sequence : group) {
    int64_t previous = vocabulary.bos();
    for (const data::Token token : sequence.tokens) {
      packing.add(previous);
      targets.push_back(token);
      previous = token;
    }
    packing.end_segment();
  }
  std::vector<int64_t> places(targets.size());
  std::iota(places.begin(), places.end(), int64_t{0});
  const std::vector<float> values = log_probabilities(model, packing, places, targets);
  auto from = values.begin();
  for (SequenceScore& sequence : group) {
    const auto to = from + static_cast<int64_t>(sequence.tokens.size());
    sequence.log_probabilities.assign(from, to);
    from = to;
  }
}

// Copies of one sequence between its markers, each with one token hidden, as many a pass as batch_tokens
// allow.
void score_masked(LanguageModel& model, const data::Vocabulary& vocabulary, SequenceScore& sequence,
                  int64_t batch_tokens, const std::function<void(const ScoreProgress&)>& progress) {
  const auto length = static_cast<int64_t>(sequence.tokens.size());
  const int64_t copies = std::max<int64_t>(1, batch_tokens / (length + 2));
  for (int64_t first = 0; first < length; first += copies) {
    Packing packing;
    std::vector<int64_t> places, targets;
    for (int64_t hidden = first; hidden < std::min(first + copies, length); ++hidden) {
      places.push_back(packing.bounds.back() + 1 + hidden);
      targets.push_back(sequence.tokens[hidden]);
      packing.add(vocabulary.bos());
      for (int64_t i = 0; i < length; ++i) packing.add(i == hidden ? vocabulary.mask() : sequence.tokens[i]);
      packing.add(vocabulary.eos());
      packing.end_segment();
    }
    const std::vector<float> values = log_probabilities(model, packing, places, targets);
    sequence.log_probabilities.insert(sequence.log_probabilities.end(), values.begin(), values.end());
    if (progress) progress({sequence.id, std::ssize(sequence.log_probabilities), length});
  }
}

}  // namespace

data::ReadReport score(LanguageModel& model, data::Reader& reader, const std::string& source,
                       int64_t batch_tokens, const std::function<void(const SequenceScore&)>& sink,
                       const std::function<void(const ScoreProgress&)>& progress) {
  const at::NoGradGuard no_gradients;
  if (model->is_training()) model->eval();  // threads that score with one model write nothing to it
  const ModelConfig& config = model->model_config();
  const data::Vocabulary vocabulary = reader.vocabulary();
  check<UsageError>(model->vocabulary() == vocabulary.size(),
                    "the model has {} tokens, the vocabulary {} has {} with its markers: read {} with the "
                    "vocabulary of the model's folder",
                    model->vocabulary(), vocabulary.name(), vocabulary.size(), source);
  const bool causal = config.objective == "causal";
  const int64_t markers = causal ? 0 : 2;  // what the model reads beyond the sequence itself
  std::vector<SequenceScore> group;
  int64_t group_tokens = 0;
  const auto flush = [&] {
    if (group.empty()) return;
    if (causal) {
      score_causal(model, vocabulary, group);
    } else {
      for (SequenceScore& sequence : group) score_masked(model, vocabulary, sequence, batch_tokens, progress);
    }
    for (const SequenceScore& sequence : group) sink(sequence);
    group.clear();
    group_tokens = 0;
  };

  data::Record record;
  while (reader.next(record)) {
    const int64_t length = std::ssize(record.tokens);
    check<InputError>(
        !limits_length(config) || length + markers <= config.max_length,
        "{}: record {} ('{}'{}) has {} {}, but this model's positions cover {}: leave it out, or "
        "use a model with rotary or sinusoidal positions",
        source, record.number, record.id, record.line > 0 ? fmt::format(", line {}", record.line) : "",
        length, vocabulary.unit(), config.max_length - markers);
    if (group_tokens + length > batch_tokens) flush();
    group.push_back({record.id, record.tokens, {}});
    group_tokens += length;
  }
  flush();
  return reader.report();
}

}  // namespace performer
