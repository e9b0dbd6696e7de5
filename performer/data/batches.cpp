// SPDX-License-Identifier: Apache-2.0
#include "performer/data/batches.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "performer/base/error.h"
#include "performer/base/philox.h"
#include "performer/data/permutation.h"

namespace performer::data {
namespace {

// What a stream of draws is for; part of its name, so that no two purposes share numbers.
enum Purpose : uint32_t { kCrop = 0x43524f50, kTrainMask = 0x544d534b, kEvaluationMask = 0x454d534b };

bool is_causal(const std::string& objective) {
  check<UsageError>(objective == "causal" || objective == "masked" || objective == "plain",
                    "the objective must be causal, masked or plain, found \"{}\"", objective);
  return objective == "causal";
}

// Token i of BOS x1 .. xn EOS.
struct Marked {
  std::span<const Token> sequence;
  Token bos, eos;
  Marked(std::span<const Token> tokens, const Vocabulary& vocabulary)
      : sequence(tokens), bos(vocabulary.bos()), eos(vocabulary.eos()) {}
  int64_t operator[](int64_t i) const {
    if (i == 0) return bos;
    return i <= std::ssize(sequence) ? sequence[i - 1] : eos;
  }
};

// Inputs that a whole sequence makes: BOS x1 .. xn, or BOS x1 .. xn EOS.
int64_t input_size(std::span<const Token> sequence, bool causal) {
  return std::ssize(sequence) + (causal ? 1 : 2);
}

// Appends tokens [begin, begin + size) of BOS x1 .. xn EOS as inputs, those `shift` further on as targets,
// weights of 1 and their places as positions.
void append_tokens(Batch& batch, const Marked& sequence, int64_t begin, int64_t size, int64_t shift) {
  for (int64_t i = begin; i < begin + size; ++i) {
    batch.inputs.push_back(sequence[i]);
    batch.targets.push_back(sequence[i + shift]);
    batch.weights.push_back(1);
    batch.positions.push_back(i);
  }
}

// Corrupts the last `size` inputs, the first of which is token `begin` of its sequence.
void mask_last(Batch& batch, int64_t begin, int64_t size, const PhiloxStream& draws, double rate,
               const Corruption& corruption, const Vocabulary& vocabulary) {
  corrupt_symbols(std::span(batch.inputs).last(size), std::span(batch.weights).last(size), draws, begin, rate,
                  corruption, vocabulary);
}

}  // namespace

int64_t Batch::tokens_read() const {
  return std::ssize(inputs) - std::ranges::count(valid, uint8_t{0});
}

int64_t Batch::targets_counted() const {
  return std::ranges::count_if(weights, [](float weight) { return weight != 0; });
}

BatchStream::BatchStream(const Corpus& corpus, const DataConfig& config, const std::string& objective,
                         std::span<const float> weights)
    : corpus_(corpus),
      vocabulary_(corpus.vocabulary()),
      config_(config),
      weights_(weights),
      causal_(is_causal(objective)),
      masked_(objective == "masked"),
      concatenated_(config.layout == "concatenated"),
      whole_(concatenated_ || config.crop == "split"),
      corruption_(corruption_from_name(config.corruption)) {
  validate(config);
  check(weights.empty() || std::ssize(weights) == corpus.size(), "{} weights for {} sequences",
        weights.size(), corpus.size());
  if (config.crop != "error") return;
  for (int64_t i = 0; i < corpus.size(); ++i) {
    const int64_t size = stream_size(i);
    check<InputError>(size <= config.length,
                      "sequence {} of the training set has {} tokens, data.length is {} and data.crop is "
                      "error: set a larger "
                      "data.length, or data.crop to split, random or start",
                      i + 1, size, config.length);
  }
}

void BatchStream::seek(const Cursor& cursor) {
  bool valid =
      cursor.epoch >= 0 && cursor.sequence >= 0 && cursor.sequence < corpus_.size() && cursor.offset >= 0;
  if (valid && cursor.offset > 0) {
    const bool between_pieces = concatenated_ || cursor.offset % config_.length == 0;
    valid = whole_ && between_pieces && cursor.offset < stream_size(index(cursor));
  }
  check<InputError>(valid,
                    "the training data has no place of epoch {}, sequence {}, token {}: the data or its "
                    "configuration is not "
                    "that of the checkpoint",
                    cursor.epoch, cursor.sequence, cursor.offset);
  cursor_ = cursor;
}

int64_t BatchStream::index(const Cursor& cursor) const {
  const Permutation order(static_cast<uint64_t>(corpus_.size()), static_cast<uint64_t>(config_.seed),
                          static_cast<uint64_t>(cursor.epoch));
  return static_cast<int64_t>(order(static_cast<uint64_t>(cursor.sequence)));
}

int64_t BatchStream::stream_size(int64_t sequence) const {
  const auto tokens = corpus_.tokens(sequence);
  return concatenated_ ? std::ssize(tokens) + 1 : input_size(tokens, causal_);
}

PhiloxStream BatchStream::draws(uint32_t purpose, int64_t sequence) const {
  return PhiloxStream(static_cast<uint64_t>(config_.seed), purpose, static_cast<uint32_t>(cursor_.epoch),
                      static_cast<uint32_t>(sequence));
}

BatchStream::Piece BatchStream::piece() const {
  const int64_t sequence = index(cursor_), total = stream_size(sequence);
  int64_t begin = cursor_.offset;
  if (config_.crop == "random" && total > config_.length) {
    const auto windows = static_cast<uint64_t>(total - config_.length + 1);
    begin = static_cast<int64_t>(draws(kCrop, sequence).below(windows));
  }
  return {sequence, begin, std::min(config_.length, total - begin)};
}

void BatchStream::pass(const Piece& piece) {
  const int64_t total = stream_size(piece.sequence), behind = piece.begin + piece.size;
  if (cursor_.offset == 0) {
    ++crops_.sequences;
    crops_.cropped += !concatenated_ && total > config_.length;
  }
  if (whole_ && behind < total) {
    cursor_.offset = behind;
    return;
  }
  if (!whole_) {
    // Symbols are tokens 1 .. n; causal models are asked for them one token after reading the one before.
    const int64_t n = std::ssize(corpus_.tokens(piece.sequence)), shift = causal_ ? 1 : 0;
    crops_.tokens_dropped +=
        n - (std::min(behind - 1 + shift, n) - std::max<int64_t>(piece.begin + shift, 1) + 1);
  }
  cursor_.offset = 0;
  if (++cursor_.sequence < corpus_.size()) return;
  cursor_.sequence = 0;
  ++cursor_.epoch;
}

void BatchStream::append(Batch& batch, const Piece& piece) {
  append_tokens(batch, {corpus_.tokens(piece.sequence), vocabulary_}, piece.begin, piece.size,
                causal_ ? 1 : 0);
  finish_last(batch, piece, piece.begin);
  batch.sequences.push_back(piece.sequence);
  ++crops_.pieces;
}

void BatchStream::finish_last(Batch& batch, const Piece& piece, int64_t begin) const {
  if (masked_) {
    mask_last(batch, begin, piece.size, draws(kTrainMask, piece.sequence), config_.mask_rate, corruption_,
              vocabulary_);
  }
  if (weights_.empty()) return;
  const float weight = weights_[static_cast<size_t>(piece.sequence)];
  for (float& each : std::span(batch.weights).last(static_cast<size_t>(piece.size))) each *= weight;
}

void BatchStream::append_padded_row(Batch& batch) {
  const Piece next = piece();
  append(batch, next);
  pass(next);
  batch.valid.resize(batch.inputs.size(), 1);
  const size_t end = batch.inputs.size() + static_cast<size_t>(config_.length - next.size);
  batch.inputs.resize(end, vocabulary_.pad());
  batch.targets.resize(end, vocabulary_.pad());
  batch.weights.resize(end, 0);
  batch.positions.resize(end, 0);
  batch.valid.resize(end, 0);
}

void BatchStream::append_concatenated_row(Batch& batch) {
  for (int64_t filled = 0; filled < config_.length;) {
    Piece next = piece();
    next.size = std::min(next.size, config_.length - filled);
    // This layout has no BOS: token i of a sequence in its stream is token i + 1 of BOS x1 .. xn EOS.
    append_tokens(batch, {corpus_.tokens(next.sequence), vocabulary_}, next.begin + 1, next.size, 0);
    finish_last(batch, next, next.begin + 1);
    pass(next);
    filled += next.size;
  }
  ++crops_.pieces;
  std::iota(batch.positions.end() - config_.length, batch.positions.end(), int64_t{0});
  if (!causal_) return;
  const auto row = batch.inputs.end() - config_.length;
  std::shift_right(row, batch.inputs.end(), 1);
  *row = vocabulary_.bos();
}

Batch BatchStream::next_packed() {
  Batch batch;
  batch.cu_seqlens.push_back(0);
  for (Piece next = piece(); batch.cu_seqlens.back() + next.size <= config_.batch_tokens; next = piece()) {
    append(batch, next);
    pass(next);
    batch.cu_seqlens.push_back(std::ssize(batch.inputs));
  }
  batch.rows = 1;
  batch.width = std::ssize(batch.inputs);
  return batch;
}

Batch BatchStream::next() {
  if (config_.layout == "packed") return next_packed();
  Batch batch;
  batch.rows = config_.batch_tokens / config_.length;
  batch.width = config_.length;
  for (int64_t row = 0; row < batch.rows; ++row) {
    if (concatenated_) {
      append_concatenated_row(batch);
    } else {
      append_padded_row(batch);
    }
  }
  return batch;
}

EvaluationStream::EvaluationStream(const Corpus& corpus, const DataConfig& config,
                                   const std::string& objective)
    : corpus_(corpus),
      vocabulary_(corpus.vocabulary()),
      config_(config),
      causal_(is_causal(objective)),
      masked_(objective == "masked"),
      corruption_(corruption_from_name(config.corruption)) {
  check<UsageError>(config.batch_tokens > 0, "data.batch_tokens must be above 0, found {}",
                    config.batch_tokens);
}

std::optional<Batch> EvaluationStream::next() {
  first_ = at_;
  if (at_ == corpus_.size()) return std::nullopt;
  Batch batch;
  batch.cu_seqlens.push_back(0);
  for (; at_ < corpus_.size(); ++at_) {
    const auto sequence = corpus_.tokens(at_);
    const int64_t size = input_size(sequence, causal_);
    if (at_ > first_ && batch.cu_seqlens.back() + size > config_.batch_tokens) break;
    append_tokens(batch, {sequence, vocabulary_}, 0, size, causal_ ? 1 : 0);
    if (masked_) {
      const uint64_t key = sequence_hash(sequence, vocabulary_);
      mask_last(batch, 0, size, PhiloxStream(key, kEvaluationMask), config_.mask_rate, corruption_,
                vocabulary_);
    }
    batch.cu_seqlens.push_back(std::ssize(batch.inputs));
  }
  batch.rows = 1;
  batch.width = std::ssize(batch.inputs);
  return batch;
}

}  // namespace performer::data
