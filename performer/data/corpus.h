// SPDX-License-Identifier: Apache-2.0
// All sequences of a data set, with random access.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "performer/data/reader.h"
#include "performer/data/vocabulary.h"

namespace performer::data {

// Which part of a set to take: by a hash of the tokens, so that exact duplicates are never on both sides.
struct HashSplit {
  enum class Side { all, train, held_out } side = Side::all;
  double fraction = 0;  // of sequences held out, in [0, 1)
  uint64_t seed = 0;

  // Whether a sequence belongs to this part.
  bool takes(std::span<const Token> sequence, const Vocabulary& vocabulary) const;
};

// At least one sequence, each of at least one symbol of one vocabulary. Never changes; threads may share it.
class Corpus {
 public:
  virtual ~Corpus() = default;
  virtual const Vocabulary& vocabulary() const = 0;
  virtual int64_t size() const = 0;  // sequences; below 2^32
  virtual std::span<const Token> tokens(int64_t index) const = 0;
  virtual int64_t total_tokens() const = 0;
  // Of all sequences in order: a resumed run checks that its data is the same.
  virtual uint64_t fingerprint() const = 0;
  virtual const ReadReport& report() const = 0;  // of the input, before the split
  // What it was read from: fasta, text, image, or memory.
  virtual std::string format() const = 0;
  // The shape that all its sequences have when they are images.
  virtual std::optional<ImageShape> image_shape() const { return std::nullopt; }
};

// Writes into the configuration what was automatic in it: format, vocabulary and image_shape of the corpus.
// A model folder records the result. The format of a corpus from memory is left as it is.
void record_source(DataConfig& config, const Corpus& corpus);

// Sequences in memory. Throws InputError for an empty sequence, an id that is no symbol, a sequence that does
// not have the size of `shape`, and when no sequence is left by the split; UsageError for a fraction outside
// [0, 1).
class MemoryCorpus final : public Corpus {
 public:
  MemoryCorpus(const std::vector<std::vector<Token>>& sequences, const Vocabulary& vocabulary,
               const HashSplit& split = {}, const std::optional<ImageShape>& shape = std::nullopt);

  const Vocabulary& vocabulary() const override { return vocabulary_; }
  int64_t size() const override { return static_cast<int64_t>(sequences_.size()); }
  std::span<const Token> tokens(int64_t index) const override { return sequences_[index]; }
  int64_t total_tokens() const override { return total_; }
  uint64_t fingerprint() const override { return fingerprint_; }
  const ReadReport& report() const override { return report_; }
  std::string format() const override { return "memory"; }
  std::optional<ImageShape> image_shape() const override { return shape_; }

 private:
  Vocabulary vocabulary_;
  std::vector<std::vector<Token>> sequences_;
  int64_t total_ = 0;
  uint64_t fingerprint_ = 0;
  ReadReport report_;
  std::optional<ImageShape> shape_;
};

}  // namespace performer::data
