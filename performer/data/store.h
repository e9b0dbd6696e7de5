// SPDX-License-Identifier: Apache-2.0
// All sequences of a data set with random access and bounded memory: tokens, one byte each, lie in an
// unlinked temporary file that is mapped; seeded shuffling of files larger than memory costs page faults, not
// memory.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "performer/data/fasta.h"

namespace performer::data {

// Which part of a set to take: by a hash of the residues, so that exact duplicates are never on both sides.
struct HashSplit {
  enum class Side { all, train, held_out } side = Side::all;
  double fraction = 0;  // of sequences held out, in [0, 1)
  uint64_t seed = 0;

  // Whether a sequence of residue ids belongs to this part.
  bool takes(std::span<const uint8_t> sequence) const;
};

class SequenceStore {
 public:
  // Reads all files once. `directory` holds the temporary file: one byte a residue, gone when the store is.
  // Throws InputError for bad input and when no sequence is left, UsageError for a fraction outside [0, 1),
  // Error when the file cannot be written (disk full).
  SequenceStore(const std::vector<std::string>& files, const std::string& directory,
                const HashSplit& split = {});
  // Holds sequences of residue ids in memory. Throws InputError for an empty sequence, an id that is no
  // residue, and when no sequence is left.
  explicit SequenceStore(const std::vector<std::vector<uint8_t>>& sequences, const HashSplit& split = {});
  ~SequenceStore();
  SequenceStore(const SequenceStore&) = delete;
  SequenceStore& operator=(const SequenceStore&) = delete;

  int64_t size() const { return static_cast<int64_t>(offsets_.size()) - 1; }  // below 2^32
  int64_t residues() const { return offsets_.back(); }
  std::span<const uint8_t> tokens(int64_t index) const {
    return {data_ + offsets_[index], static_cast<size_t>(offsets_[index + 1] - offsets_[index])};
  }
  const FastaCounts& counts() const { return counts_; }  // of the input, before the split
  // Of all sequences in order: a resumed run checks that its data is the same.
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  void note(std::span<const uint8_t> sequence);  // extends offsets and fingerprint
  void check_not_empty(const HashSplit& split) const;

  std::vector<int64_t> offsets_{0};  // size() + 1
  std::vector<uint8_t> memory_;      // of the in-memory form
  void* map_ = nullptr;              // of the file form
  const uint8_t* data_ = nullptr;    // whichever of the two
  FastaCounts counts_;
  uint64_t fingerprint_ = 0;
};

// A pseudo-random order of 0..n-1 named by (seed, epoch) without a table: element `i` of it, in O(1) memory.
// A Feistel network over a power of four (at least n, at least 256), walked along its cycle until it falls
// below n (Black and Rogaway, CT-RSA 2002); its round keys are Philox words. 0 < n <= 2^62.
class Permutation {
 public:
  Permutation(uint64_t n, uint64_t seed, uint64_t epoch);
  uint64_t operator()(uint64_t i) const;  // i < n

 private:
  uint64_t n_;
  int half_bits_ = 4;  // of each half; fewer mix badly
  std::array<uint32_t, 8> keys_;
};

}  // namespace performer::data
