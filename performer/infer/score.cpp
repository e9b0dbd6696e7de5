// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/score.h"

#include <ATen/core/grad_mode.h>

#include <numeric>
#include <utility>

#include "performer/base/error.h"
#include "performer/infer/likelihood.h"

namespace performer {

double SequenceScore::total() const {
  return std::accumulate(log_probabilities.begin(), log_probabilities.end(), 0.0);
}

double SequenceScore::mean() const {
  return log_probabilities.empty() ? 0 : total() / static_cast<double>(log_probabilities.size());
}

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
  const std::optional<int64_t> longest = nn::longest_of(model->attention_config());
  std::vector<SequenceScore> group;
  int64_t group_tokens = 0;
  const auto flush = [&] {
    if (group.empty()) return;
    if (causal) {
      TokenSequences sequences;
      for (const SequenceScore& sequence : group) sequences.push_back(&sequence.tokens);
      std::vector<std::vector<float>> values = causal_log_probabilities(model, vocabulary, sequences);
      for (size_t i = 0; i < group.size(); ++i) group[i].log_probabilities = std::move(values[i]);
    } else {
      for (SequenceScore& sequence : group) {
        sequence.log_probabilities =
            masked_log_probabilities(model, vocabulary, sequence.tokens, batch_tokens, [&](int64_t done) {
              if (progress) progress({sequence.id, done, std::ssize(sequence.tokens)});
            });
      }
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
    check<InputError>(
        !longest || length + markers <= *longest,
        "{}: record {} ('{}'{}) has {} {}, but this model's attention takes {}: leave it out, or use a model "
        "with a larger attention.length or of another kind",
        source, record.number, record.id, record.line > 0 ? fmt::format(", line {}", record.line) : "",
        length, vocabulary.unit(), *longest - markers);
    if (group_tokens + length > batch_tokens) flush();
    group.push_back({record.id, record.tokens, {}});
    group_tokens += length;
  }
  flush();
  return reader.report();
}

}  // namespace performer
