// SPDX-License-Identifier: Apache-2.0
// From sequences to training batches: epochs, shuffling, crops, packing or padding, objectives. No LibTorch
// here: a batch is plain vectors that the trainer wraps.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "performer/data/config.h"
#include "performer/data/corpus.h"
#include "performer/data/masking.h"

namespace performer::data {

// A batch: rows x width tokens, row-major. The packed layout has one row, in which cu_seqlens bounds the
// segments.
struct Batch {
  int64_t rows = 0, width = 0;
  std::vector<int64_t> inputs;     // what the model reads; PAD at padding
  std::vector<int64_t> targets;    // what it is asked for; PAD at padding
  std::vector<float> weights;      // 1 where the target counts, else 0
  std::vector<int64_t> positions;  // within the sequence (concatenated: within the row), from 0; 0 at padding
  std::vector<int64_t> cu_seqlens;  // packed only: bounds of the segments, from 0 to width; else empty
  std::vector<uint8_t> valid;       // padded only: 0 at padding, else 1; else empty
  std::vector<int64_t> sequences;   // packed, padded: of each segment or row, its number in the corpus

  int64_t tokens_read() const;      // inputs that are not padding
  int64_t targets_counted() const;  // targets with a weight
};

// What was cut, counted: nothing is ever shortened silently. Counts what this stream object handed out.
struct CropCounts {
  int64_t sequences = 0;  // begun
  int64_t cropped = 0;    // of them, longer than `length`, markers included: split into pieces or shortened
  int64_t tokens_dropped = 0;
  int64_t pieces = 0;  // segments or rows
};

// Where a stream of batches stands; stored in checkpoints. Setting it continues bit-exactly.
struct Cursor {
  int64_t epoch = 0;
  int64_t sequence = 0;  // position in the epoch's order of the next sequence
  int64_t offset = 0;    // token offset within it (split crop, concatenated layout)

  bool operator==(const Cursor&) const = default;
};

// Endless training batches: a seeded order for each epoch, crops and masks keyed by (seed, epoch, sequence),
// so that a batch depends on the cursor alone. Causal: inputs BOS x1 .. xn, targets x1 .. xn EOS. Masked:
// targets BOS x1 .. xn EOS, inputs the same corrupted at symbols; weight 1 where a symbol was chosen. Plain:
// inputs and targets BOS x1 .. xn EOS, for tasks with targets of their own. With weights of sequences, those
// of tokens are multiplied by them. A batch goes on into the next epoch.
//
// - packed, [1, up to batch_tokens]: pieces as segments, as many as fit; the next one waits.
// - padded, [batch_tokens / length, length]: one piece a row.
// - concatenated, [batch_tokens / length, length]: the stream x1 .. xn EOS x1 .. xn EOS .. of all sequences,
//   cut into rows. Causal: inputs are the row shifted right behind BOS; masked: the row, corrupted. Attention
//   crosses sequences.
//
// A piece is up to `length` consecutive inputs of one sequence. Pieces after the first (split) and windows
// (random) keep the positions of the sequence and begin with the symbol before as their first input, not
// with BOS.
class BatchStream {
 public:
  // `corpus` and `weights` (one for each of its sequences, or none) outlive the stream. Throws UsageError for
  // a bad config or objective ("causal", "masked", "plain"), InputError when a sequence is too long for
  // crop = error.
  BatchStream(const Corpus& corpus, const DataConfig& config, const std::string& objective,
              std::span<const float> weights = {});
  Batch next();
  const Cursor& cursor() const { return cursor_; }
  void seek(const Cursor& cursor);  // throws InputError for a place that this data and config do not have
  const CropCounts& crops() const { return crops_; }

 private:
  // Part of what the layout makes of one sequence.
  struct Piece {
    int64_t sequence = 0;  // index in the corpus
    int64_t begin = 0, size = 0;
  };
  int64_t index(const Cursor& cursor) const;                     // of its sequence in the corpus
  int64_t stream_size(int64_t sequence) const;                   // tokens that the layout makes of a sequence
  Piece piece() const;                                           // the one at the cursor
  void pass(const Piece& piece);                                 // counts it and moves the cursor behind it
  PhiloxStream draws(uint32_t purpose, int64_t sequence) const;  // of a sequence in the present epoch
  void append(Batch& batch, const Piece& piece);
  // Corrupts the last inputs, a piece whose first token is token `begin` of BOS x1 .. xn EOS, and weighs
  // them.
  void finish_last(Batch& batch, const Piece& piece, int64_t begin) const;
  void append_padded_row(Batch& batch);
  void append_concatenated_row(Batch& batch);
  Batch next_packed();

  const Corpus& corpus_;
  Vocabulary vocabulary_;
  DataConfig config_;
  std::span<const float> weights_;
  bool causal_, masked_, concatenated_;
  bool whole_;  // every token of a sequence is handed out, in pieces where it is long
  Corruption corruption_;
  Cursor cursor_;
  CropCounts crops_;
};

// One pass over `corpus` in order for evaluation and scoring; sequences are never cropped: packed batches of
// up to batch_tokens tokens, a longer sequence alone in its batch. Each sequence is one segment, in order.
// Masks are keyed by the tokens of the sequence itself and nothing else, so that metrics do not depend on
// batch size, order or seed. Of `config` only batch_tokens, mask_rate and corruption matter.
class EvaluationStream {
 public:
  EvaluationStream(const Corpus& corpus, const DataConfig& config, const std::string& objective);
  std::optional<Batch> next();  // nothing at the end
  // Of the batch returned last: segment s is sequence first() + s of the corpus, and its token i (from 0) is
  // the target at cu_seqlens[s] + symbol_offset() + i.
  int64_t first() const { return first_; }
  int64_t count() const { return at_ - first_; }
  int64_t symbol_offset() const { return causal_ ? 0 : 1; }

 private:
  const Corpus& corpus_;
  Vocabulary vocabulary_;
  DataConfig config_;
  bool causal_, masked_;
  Corruption corruption_;
  int64_t at_ = 0, first_ = 0;
};

}  // namespace performer::data
