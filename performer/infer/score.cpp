// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/score.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <deque>
#include <numeric>
#include <utility>

#include "performer/base/error.h"
#include "performer/infer/likelihood.h"

namespace performer {
namespace {

constexpr int kPassesAhead = 4;  // a rank: several, so that the ranks have nearly equal work

class Scorer {
 public:
  Scorer(LanguageModel& model, const data::Vocabulary& vocabulary, const ScoreRequest& request,
         const ReadingRanks& ranks, const std::function<void(const SequenceScore&)>& sink,
         const std::function<void(const ScoreProgress&)>& progress)
      : model_(model),
        vocabulary_(vocabulary),
        request_(request),
        ranks_(ranks),
        sink_(sink),
        progress_(progress),
        causal_(model->model_config().objective == "causal"),
        reads_chunks_(causal_ && why_not_in_slices(model).empty()) {}

  void take(const data::Record& record) {
    const int64_t length = std::ssize(record.tokens), number = told_ + std::ssize(pending_);
    pending_.push_back({record.id, record.tokens, {}});
    if (!causal_) return hide_each(number);
    if (length > request_.batch_tokens && reads_chunks_) {
      end_group();
      if (ranks_.in_slices(length, request_.batch_tokens)) return score_in_slices();
      return add({.sequences = {number}, .in_chunks = true, .values = length, .tokens = length});
    }
    if (group_.tokens + length > request_.batch_tokens) end_group();
    group_.sequences.push_back(number);
    group_.values += length;
    group_.tokens += length;
  }

  void finish() {
    end_group();
    settle();
  }

 private:
  // One forward pass, or one sequence in chunks. Sequences count from 0 through the input.
  struct Pass {
    std::vector<int64_t> sequences;  // of a masked model one
    int64_t first = 0;               // masked: of the places that are hidden, `values` in number
    bool in_chunks = false;
    int64_t values = 0;  // that it gives
    int64_t tokens = 0;  // that it reads
  };

  SequenceScore& pending(int64_t number) { return pending_[static_cast<size_t>(number - told_)]; }

  void hide_each(int64_t number) {
    const std::vector<data::Token> tokens = pending(number).tokens;
    const int64_t length = std::ssize(tokens), copies = masked_copies(tokens, request_.batch_tokens);
    for (int64_t first = 0; first < length; first += copies) {
      const int64_t count = std::min(copies, length - first);
      add({.sequences = {number}, .first = first, .values = count, .tokens = count * (length + 2)});
    }
  }

  void end_group() {
    if (!group_.sequences.empty()) add(std::exchange(group_, {}));
  }

  void add(Pass pass) {
    passes_.push_back(std::move(pass));
    if (std::ssize(passes_) >= (ranks_.size() == 1 ? 1 : kPassesAhead * ranks_.size())) settle();
  }

  // Each rank makes its passes, and rank 0 gets the values of all.
  void settle() {
    std::vector<int64_t> costs;
    for (const Pass& pass : passes_) costs.push_back(pass.tokens);
    const std::vector<int> owners = divide_work(costs, ranks_.size());
    std::vector<at::Tensor> values;
    for (size_t i = 0; i < passes_.size(); ++i) {
      values.push_back(owners[i] == ranks_.rank() ? at::tensor(values_of(passes_[i]), at::kFloat)
                                                  : at::zeros({passes_[i].values}, at::kFloat));
    }
    for (size_t i = 0; i < passes_.size(); ++i) {
      ranks_.hand_over(values[i], owners[i]);
      take_values(passes_[i], values[i]);
    }
    passes_.clear();
    tell_finished();
  }

  std::vector<float> values_of(const Pass& pass) {
    if (pass.in_chunks) {
      return causal_log_probabilities_in_chunks(
          model_, vocabulary_, pending(pass.sequences[0]).tokens,
          {.chunk = request_.batch_tokens, .temporary_folder = request_.temporary_folder});
    }
    if (!causal_) {
      return masked_log_probabilities_at(model_, vocabulary_, pending(pass.sequences[0]).tokens, pass.first,
                                         pass.values);
    }
    TokenSequences sequences;
    for (const int64_t number : pass.sequences) sequences.push_back(&pending(number).tokens);
    std::vector<float> all;
    for (const std::vector<float>& each : causal_log_probabilities(model_, vocabulary_, sequences))
      all.insert(all.end(), each.begin(), each.end());
    return all;
  }

  // Other ranks than 0 go through the same sequences, whatever values they have.
  void take_values(const Pass& pass, const at::Tensor& values) {
    const float* next = values.const_data_ptr<float>();
    for (const int64_t number : pass.sequences) {
      SequenceScore& sequence = pending(number);
      const int64_t count = causal_ ? std::ssize(sequence.tokens) : pass.values;
      sequence.log_probabilities.insert(sequence.log_probabilities.end(), next, next + count);
      next += count;
      if (!causal_ && progress_ && ranks_.leads()) {
        progress_({sequence.id, std::ssize(sequence.log_probabilities), std::ssize(sequence.tokens)});
      }
    }
  }

  void tell_finished() {
    for (; !pending_.empty(); pending_.pop_front(), ++told_) {
      const SequenceScore& sequence = pending_.front();
      if (sequence.log_probabilities.size() < sequence.tokens.size()) return;
      if (ranks_.leads()) sink_(sequence);
    }
  }

  // The sequence that was taken last, with all ranks.
  void score_in_slices() {
    settle();
    SequenceScore& sequence = pending_.back();
    const auto slices = ranks_.slices_of(std::ssize(sequence.tokens));
    const std::vector<float> own = causal_log_probabilities_in_chunks(
        model_, vocabulary_, sequence.tokens,
        {.chunk = request_.batch_tokens, .temporary_folder = request_.temporary_folder, .slices = slices});
    for (int rank = 0; rank < ranks_.size(); ++rank) {
      const int64_t count =
          slices->cuts[static_cast<size_t>(rank) + 1] - slices->cuts[static_cast<size_t>(rank)];
      const at::Tensor part =
          rank == ranks_.rank() ? at::tensor(own, at::kFloat) : at::zeros({count}, at::kFloat);
      ranks_.hand_over(part, rank);
      const float* values = part.const_data_ptr<float>();
      sequence.log_probabilities.insert(sequence.log_probabilities.end(), values, values + count);
    }
    tell_finished();
  }

  LanguageModel& model_;
  const data::Vocabulary& vocabulary_;
  const ScoreRequest& request_;
  const ReadingRanks& ranks_;
  const std::function<void(const SequenceScore&)>& sink_;
  const std::function<void(const ScoreProgress&)>& progress_;
  bool causal_, reads_chunks_;
  std::deque<SequenceScore> pending_;  // taken and not yet told, in the order of the input
  int64_t told_ = 0;
  Pass group_;  // of short sequences of a causal model
  std::vector<Pass> passes_;
};

void check_length(const data::Record& record, const std::string& source, const LanguageModel& model,
                  const data::Vocabulary& vocabulary) {
  const ModelConfig& config = model->model_config();
  const int64_t markers = config.objective == "causal" ? 0 : 2;  // that the model reads beside the sequence
  const std::optional<int64_t> longest = nn::longest_of(model->attention_config());
  const int64_t length = std::ssize(record.tokens);
  check<InputError>(!limits_length(config) || length + markers <= config.max_length,
                    "{}: record {} ('{}'{}) has {} {}, but this model's positions cover {}: leave it out, or "
                    "use a model with rotary or sinusoidal positions",
                    source, record.number, record.id,
                    record.line > 0 ? fmt::format(", line {}", record.line) : "", length, vocabulary.unit(),
                    config.max_length - markers);
  check<InputError>(
      !longest || length + markers <= *longest,
      "{}: record {} ('{}'{}) has {} {}, but this model's attention takes {}: leave it out, or use a model "
      "with a larger attention.length or of another kind",
      source, record.number, record.id, record.line > 0 ? fmt::format(", line {}", record.line) : "", length,
      vocabulary.unit(), *longest - markers);
}

}  // namespace

double SequenceScore::total() const {
  return std::accumulate(log_probabilities.begin(), log_probabilities.end(), 0.0);
}

double SequenceScore::mean() const {
  return log_probabilities.empty() ? 0 : total() / static_cast<double>(log_probabilities.size());
}

data::ReadReport score(LanguageModel& model, data::Reader& reader, const std::string& source,
                       const ScoreRequest& request, const std::function<void(const SequenceScore&)>& sink,
                       const std::function<void(const ScoreProgress&)>& progress) {
  const at::NoGradGuard no_gradients;
  if (model->is_training()) model->eval();  // threads that score with one model write nothing to it
  const data::Vocabulary vocabulary = reader.vocabulary();
  check<UsageError>(model->vocabulary() == vocabulary.size(),
                    "the model has {} tokens, the vocabulary {} has {} with its markers: read {} with the "
                    "vocabulary of the model's folder",
                    model->vocabulary(), vocabulary.name(), vocabulary.size(), source);
  const ReadingRanks alone;
  const ReadingRanks& ranks = request.ranks != nullptr ? *request.ranks : alone;
  ranks.check_slices(model);
  check<UsageError>(
      !ranks.exchange() || model->model_config().objective == "causal",
      "--sequence-parallel {}: a masked model is scored by a forward pass for each token, and the "
      "ranks divide these passes: leave it out",
      ranks.size());
  Scorer scorer(model, vocabulary, request, ranks, sink, progress);
  for (data::Record record; reader.next(record);) {
    check_length(record, source, model, vocabulary);
    scorer.take(record);
  }
  scorer.finish();
  return reader.report();
}

}  // namespace performer
