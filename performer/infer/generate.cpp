// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/generate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <utility>

#include "performer/base/error.h"

namespace performer {

namespace {

constexpr double kDropped = -std::numeric_limits<double>::infinity();

void normalize(std::vector<double>& logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const double x : logits) sum += std::exp(x - largest);
  const double log_sum = largest + std::log(sum);
  for (double& x : logits) x -= log_sum;
}

// Once a token, however often it was seen.
void penalize_repetition(std::vector<double>& logits, const std::vector<int64_t>& recent,
                         const SamplingOptions& options) {
  const auto seen = std::min<int64_t>(options.repetition_window, static_cast<int64_t>(recent.size()));
  const std::span<const int64_t> window(recent.end() - seen, recent.end());
  for (int64_t token = 0; token < static_cast<int64_t>(logits.size()); ++token) {
    if (std::find(window.begin(), window.end(), token) == window.end()) continue;
    double& x = logits[token];
    x = x > 0 ? x / options.repetition_penalty : x * options.repetition_penalty;
  }
}

void keep_top_k(std::vector<double>& logits, int64_t k) {
  if (k <= 0 || k >= static_cast<int64_t>(logits.size())) return;
  std::vector<double> sorted = logits;
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
  const double threshold = sorted[k - 1];
  for (double& x : logits) {
    if (x < threshold) x = kDropped;
  }
}

void keep_top_p(std::vector<double>& log_probabilities, double p) {
  if (p >= 1) return;
  std::vector<size_t> order(log_probabilities.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return log_probabilities[a] > log_probabilities[b]; });
  double kept = 0;
  for (const size_t token : order) {
    const double probability = std::exp(log_probabilities[token]);
    if (kept >= p) log_probabilities[token] = kDropped;
    kept += probability;
  }
  normalize(log_probabilities);
}

}  // namespace

void validate(const SamplingOptions& options) {
  check<UsageError>(options.temperature >= 0 && std::isfinite(options.temperature),
                    "temperature must be a finite number of at least 0, but is {}", options.temperature);
  check<UsageError>(options.top_k >= 0, "top-k must be at least 0 (0: no limit), but is {}", options.top_k);
  check<UsageError>(options.top_p > 0 && options.top_p <= 1, "top-p must be in (0, 1], but is {}",
                    options.top_p);
  check<UsageError>(options.repetition_penalty > 0 && std::isfinite(options.repetition_penalty),
                    "repetition-penalty must be a finite number above 0 (1: none), but is {}",
                    options.repetition_penalty);
  check<UsageError>(options.repetition_window >= 0, "repetition-window must be at least 0, but is {}",
                    options.repetition_window);
}

std::vector<double> filter_logits(const std::vector<float>& logits, const std::vector<int64_t>& recent,
                                  const SamplingOptions& options, const std::vector<int64_t>& forbidden) {
  const bool greedy = options.temperature == 0;
  std::vector<double> result(logits.begin(), logits.end());
  for (double& x : result) {
    check(x < std::numeric_limits<double>::infinity(),
          "the model's logits are not finite: its weights are damaged, or training diverged");
    if (!greedy) x /= options.temperature;
  }
  for (const int64_t token : forbidden) result[token] = kDropped;
  if (options.repetition_penalty != 1) penalize_repetition(result, recent, options);
  const auto best = std::max_element(result.begin(), result.end());
  check(*best != kDropped, "no token may be drawn: all {} are forbidden or have logits of -infinity",
        result.size());
  if (greedy) {
    const auto token = best - result.begin();
    std::fill(result.begin(), result.end(), kDropped);
    result[token] = 0;
    return result;
  }
  keep_top_k(result, options.top_k);
  normalize(result);
  keep_top_p(result, options.top_p);
  return result;
}

int64_t draw_token(const std::vector<double>& log_probabilities, double u) {
  double cumulative = 0;
  int64_t last = -1;
  for (size_t token = 0; token < log_probabilities.size(); ++token) {
    const double probability = std::exp(log_probabilities[token]);
    if (probability == 0) continue;
    cumulative += probability;
    last = static_cast<int64_t>(token);
    if (u <= cumulative) break;
  }
  check(last >= 0, "no token can be drawn: all have probability 0");
  return last;
}

namespace {

// A sequence in the making.
struct Row {
  Row(int64_t index, std::vector<int64_t> prompt, uint64_t seed)
      : tokens(std::move(prompt)),
        random(seed, static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32)) {
    sequence.index = index;
  }

  GeneratedSequence sequence;
  std::vector<int64_t> tokens;  // residues so far, prompt included
  PhiloxStream random;
  bool finished = false;
};

// Draws the next token of a row from the model's logits [V] for it.
void extend(Row& row, const float* logits, const GenerateRequest& request) {
  const std::vector<float> model_logits(logits, logits + data::kVocabularySize);
  std::vector<int64_t> forbidden = kNeverSampled;
  if (row.tokens.empty()) forbidden.push_back(data::kEos);
  const int64_t token =
      draw_token(filter_logits(model_logits, row.tokens, request.sampling, forbidden), row.random.uniform());
  std::vector<double> log_probabilities(model_logits.begin(), model_logits.end());
  normalize(log_probabilities);
  row.sequence.log_likelihood += log_probabilities[token];
  ++row.sequence.sampled;
  if (token == data::kEos) {
    row.sequence.ended = true;
  } else {
    row.tokens.push_back(token);
  }
  row.finished = row.sequence.ended || static_cast<int64_t>(row.tokens.size()) == request.max_length;
}

// Reads sequences token by token: from the model's state or, where the attention kind does not stream, the
// whole prefix again for each token.
class Reader {
 public:
  Reader(const LanguageModel& model, int64_t batch_size) : model_(model) {
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
  Reader select(const at::Tensor& index) const {
    Reader selected(model_);
    if (prefix_.defined()) {
      selected.prefix_ = prefix_.index_select(0, index);
    } else {
      selected.state_ = state_.select(index);
    }
    return selected;
  }

 private:
  explicit Reader(const LanguageModel& model) : model_(model) {}

  LanguageModel model_;
  DecodeState state_;
  at::Tensor prefix_;  // [B, T], undefined with a state
};

// What every sequence starts from: what was read, and the logits [1, V], after the start marker and the
// prompt.
struct Start {
  Reader reader;
  at::Tensor logits;
};

Start read_prompt(const LanguageModel& model, const std::vector<int64_t>& prompt) {
  std::vector<int64_t> tokens = {data::kBos};
  tokens.insert(tokens.end(), prompt.begin(), prompt.end());
  Start start{Reader(model, 1), {}};
  start.logits = start.reader.read(at::tensor(tokens, at::kLong).unsqueeze(0));
  return start;
}

// All sequences of one batch, from the shared start to the last end; finished rows leave the batch.
void generate_batch(const GenerateRequest& request, const Start& start, std::vector<Row>& rows) {
  std::vector<int64_t> active(rows.size());
  std::iota(active.begin(), active.end(), int64_t{0});
  const at::Tensor copies = at::zeros({static_cast<int64_t>(rows.size())}, at::kLong);
  Reader reader = start.reader.select(copies);
  at::Tensor logits = start.logits.index_select(0, copies);
  while (true) {
    logits = logits.to(at::kFloat).contiguous();
    std::vector<int64_t> places, kept, next;
    for (size_t i = 0; i < active.size(); ++i) {
      Row& row = rows[active[i]];
      extend(row, logits.data_ptr<float>() + static_cast<int64_t>(i) * data::kVocabularySize, request);
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

std::vector<int64_t> check_request(const LanguageModel& model, const GenerateRequest& request) {
  validate(request.sampling);
  const ModelConfig& config = model->model_config();
  check<UsageError>(config.objective == "causal",
                    "this model was trained with model.objective = '{}': only causal models can generate",
                    config.objective);
  check<UsageError>(request.count >= 0, "the number of sequences must be at least 0, but is {}",
                    request.count);
  check<UsageError>(request.batch_size >= 1, "the batch size must be at least 1, but is {}",
                    request.batch_size);
  check<UsageError>(request.max_length >= 1, "the maximum length must be at least 1, but is {}",
                    request.max_length);
  check<UsageError>(
      !limits_length(config) || request.max_length <= config.max_length,
      "this model's learned positions cover {} residues (model.max_length), but a maximum length of {} was "
      "asked for: ask for less",
      config.max_length, request.max_length);
  std::vector<int64_t> prompt;
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    prompt.push_back(data::token_of(request.prompt[i]));
    check<InputError>(prompt.back() >= 0,
                      "prompt, position {}: '{}' is not a residue; expected upper-case letters of {}", i + 1,
                      request.prompt[i], data::kLetters.substr(0, data::kResidues));
  }
  check<UsageError>(static_cast<int64_t>(prompt.size()) < request.max_length,
                    "the prompt has {} residues and the maximum length, prompt included, is {}: nothing "
                    "would be generated; "
                    "raise the maximum length",
                    prompt.size(), request.max_length);
  return prompt;
}

}  // namespace

void generate(LanguageModel& model, const GenerateRequest& request,
              const std::function<void(const GeneratedSequence&)>& sink) {
  const std::vector<int64_t> prompt = check_request(model, request);
  const at::NoGradGuard no_gradients;
  model->eval();
  if (!model->streams()) {
    spdlog::info("attention.kind = {} does not stream: for each token, all before it are read again",
                 model->attention_config().kind);
  }
  const Start start = read_prompt(model, prompt);
  for (int64_t first = 0; first < request.count; first += request.batch_size) {
    std::vector<Row> rows;
    for (int64_t i = first; i < std::min(first + request.batch_size, request.count); ++i) {
      rows.emplace_back(i, prompt, request.seed);
    }
    generate_batch(request, start, rows);
    for (Row& row : rows) {
      row.sequence.residues = data::decode(row.tokens);
      sink(row.sequence);
    }
  }
}

}  // namespace performer
