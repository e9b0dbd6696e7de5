// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/generate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "performer/base/error.h"
#include "performer/base/philox.h"

namespace performer {

namespace {

// A sequence in the making.
struct Row {
  Row(int64_t index, const std::vector<data::Token>& prompt, uint64_t seed)
      : tokens(prompt.begin(), prompt.end()),
        random(seed, static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32)) {
    sequence.index = index;
  }

  GeneratedSequence sequence;
  std::vector<int64_t> tokens;  // symbols so far, prompt included
  PhiloxStream random;
  bool finished = false;
};

// Draws the next token of a row from the model's logits [V] for it.
void extend(Row& row, const std::vector<float>& logits, const data::Vocabulary& vocabulary,
            const GenerateRequest& request) {
  std::vector<int64_t> forbidden = never_sampled(vocabulary);
  if (row.tokens.empty() || request.exact_length) forbidden.push_back(vocabulary.eos());
  const int64_t token =
      draw_token(filter_logits(logits, row.tokens, request.sampling, forbidden), row.random.uniform());
  row.sequence.log_likelihood += log_probabilities(logits)[token];
  ++row.sequence.sampled;
  if (token == vocabulary.eos()) {
    row.sequence.ended = true;
  } else {
    row.tokens.push_back(token);
  }
  row.finished = row.sequence.ended || std::ssize(row.tokens) == request.max_length;
}

// Reads sequences token by token: from the model's state or, where the attention kind does not stream, the
// whole prefix again for each token.
class PrefixReader {
 public:
  PrefixReader(const LanguageModel& model, int64_t batch_size) : model_(model) {
    if (!model_->streams()) {
      prefix_ = at::empty({batch_size, 0}, at::kLong);
    } else {
      state_ = model_->begin(batch_size);
    }
  }

  // Logits [B, V] after one or more further tokens [B, C] of each sequence.
  at::Tensor read(const at::Tensor& tokens) {
    if (!prefix_.defined()) {
      at::Tensor logits;
      for (const at::Tensor& token : tokens.unbind(1)) logits = model_->step(token, state_);
      return logits;
    }
    prefix_ = at::cat({prefix_, tokens}, 1);
    SequenceBatch batch;
    batch.tokens = prefix_;
    batch.positions = at::arange(prefix_.size(1), at::kLong).expand_as(prefix_);
    return model_->forward(batch).select(1, prefix_.size(1) - 1);
  }

  // A reader that goes on with these sequences of the batch.
  PrefixReader select(const at::Tensor& index) const {
    PrefixReader selected(model_);
    if (prefix_.defined()) {
      selected.prefix_ = prefix_.index_select(0, index);
    } else {
      selected.state_ = state_.select(index);
    }
    return selected;
  }

 private:
  explicit PrefixReader(const LanguageModel& model) : model_(model) {}

  LanguageModel model_;
  DecodeState state_;
  at::Tensor prefix_;  // [B, T], undefined with a state
};

// What every sequence starts from: what was read, and the logits [1, V], after the start marker and the
// prompt.
struct Start {
  PrefixReader reader;
  at::Tensor logits;
};

Start read_prompt(const LanguageModel& model, const data::Vocabulary& vocabulary,
                  const std::vector<data::Token>& prompt) {
  std::vector<int64_t> tokens = {vocabulary.bos()};
  tokens.insert(tokens.end(), prompt.begin(), prompt.end());
  Start start{PrefixReader(model, 1), {}};
  start.logits = start.reader.read(at::tensor(tokens, at::kLong).unsqueeze(0));
  return start;
}

// All sequences of one batch, from the shared start to the last end; finished rows leave the batch.
void generate_batch(const data::Vocabulary& vocabulary, const GenerateRequest& request, const Start& start,
                    std::vector<Row>& rows) {
  std::vector<int64_t> active(rows.size());
  std::iota(active.begin(), active.end(), int64_t{0});
  const at::Tensor copies = at::zeros({static_cast<int64_t>(rows.size())}, at::kLong);
  PrefixReader reader = start.reader.select(copies);
  at::Tensor logits = start.logits.index_select(0, copies);
  while (true) {
    logits = logits.to(at::kFloat).contiguous();
    std::vector<int64_t> places, kept, next;
    for (size_t i = 0; i < active.size(); ++i) {
      Row& row = rows[active[i]];
      const float* of_row = logits.data_ptr<float>() + static_cast<int64_t>(i) * vocabulary.size();
      extend(row, {of_row, of_row + vocabulary.size()}, vocabulary, request);
      if (row.finished) continue;
      places.push_back(static_cast<int64_t>(i));
      kept.push_back(active[i]);
      next.push_back(row.tokens.back());
    }
    if (kept.empty()) return;
    if (kept.size() < active.size()) reader = reader.select(at::tensor(places, at::kLong));
    active = std::move(kept);
    logits = reader.read(at::tensor(next, at::kLong).unsqueeze(1));
  }
}

void check_request(const LanguageModel& model, const data::Vocabulary& vocabulary,
                   const GenerateRequest& request) {
  validate(request.sampling);
  const ModelConfig& config = model->model_config();
  const std::string& unit = vocabulary.unit();
  check<UsageError>(config.objective == "causal",
                    "this model was trained with model.objective = '{}': only causal models can generate",
                    config.objective);
  check<UsageError>(model->vocabulary() == vocabulary.size(),
                    "the model has {} tokens, the vocabulary {} has {} with its markers: give the vocabulary "
                    "of the model's folder",
                    model->vocabulary(), vocabulary.name(), vocabulary.size());
  check<UsageError>(request.count >= 0, "the number of sequences must be at least 0, but is {}",
                    request.count);
  check<UsageError>(request.batch_size >= 1, "the batch size must be at least 1, but is {}",
                    request.batch_size);
  check<UsageError>(request.max_length >= 1, "the maximum length must be at least 1, but is {}",
                    request.max_length);
  check<UsageError>(
      !limits_length(config) || request.max_length <= config.max_length,
      "this model's positions cover {} {} (model.max_length), but a maximum length of {} was asked for: ask "
      "for less",
      config.max_length, unit, request.max_length);
  check<UsageError>(std::ssize(request.prompt) < request.max_length,
                    "the prompt has {} {} and the maximum length, prompt included, is {}: nothing would be "
                    "generated; raise the maximum length",
                    request.prompt.size(), unit, request.max_length);
  for (const data::Token token : request.prompt) {
    check<UsageError>(vocabulary.is_symbol(token),
                      "token {} of the prompt is no symbol of the vocabulary {}, which has the ids 0 to {}",
                      token, vocabulary.name(), vocabulary.symbols() - 1);
  }
}

}  // namespace

std::vector<data::Token> encode_prompt(const data::Vocabulary& vocabulary, const std::string& text) {
  try {
    return vocabulary.encode_symbols(text);
  } catch (const InputError& error) {
    throw InputError(fmt::format("the prompt: {}", error.what()));
  }
}

void generate(LanguageModel& model, const data::Vocabulary& vocabulary, const GenerateRequest& request,
              const std::function<void(const GeneratedSequence&)>& sink) {
  check_request(model, vocabulary, request);
  const at::NoGradGuard no_gradients;
  if (model->is_training()) model->eval();  // threads that generate with one model write nothing to it
  if (!model->streams()) {
    spdlog::info("attention.kind = {} does not stream: for each token, all before it are read again",
                 model->attention_config().kind);
  }
  const Start start = read_prompt(model, vocabulary, request.prompt);
  for (int64_t first = 0; first < request.count; first += request.batch_size) {
    std::vector<Row> rows;
    for (int64_t i = first; i < std::min(first + request.batch_size, request.count); ++i) {
      rows.emplace_back(i, request.prompt, request.seed);
    }
    generate_batch(vocabulary, request, start, rows);
    for (Row& row : rows) {
      row.sequence.tokens.assign(row.tokens.begin(), row.tokens.end());
      sink(row.sequence);
    }
  }
}

}  // namespace performer
