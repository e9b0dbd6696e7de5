// SPDX-License-Identifier: Apache-2.0
#include "performer/data/corpus.h"

#include <algorithm>
#include <array>
#include <limits>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/base/philox.h"
#include "performer/data/fingerprint.h"

namespace performer::data {

bool HashSplit::takes(std::span<const Token> sequence, const Vocabulary& vocabulary) const {
  if (side == Side::all) return true;
  constexpr uint32_t kPurpose = 0x484f4c44;  // "HOLD"
  const uint64_t hash = sequence_hash(sequence, vocabulary);
  const auto words = philox4x32({static_cast<uint32_t>(hash), static_cast<uint32_t>(hash >> 32), kPurpose, 0},
                                {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const bool held_out = words[0] * 0x1.0p-32 < fraction;
  return held_out == (side == Side::held_out);
}

uint64_t extended_fingerprint(uint64_t fingerprint, uint64_t sequence) {
  const std::array<uint64_t, 2> words{fingerprint, sequence};
  std::array<char, sizeof(words)> bytes;
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(words[i / 8] >> (8 * (i % 8)));
  return stable_hash({bytes.data(), bytes.size()});
}

void check_split(const HashSplit& split) {
  check<UsageError>(split.fraction >= 0 && split.fraction < 1,
                    "the fraction of sequences held out must be at least 0 and below 1, found {}",
                    split.fraction);
}

void check_not_empty(int64_t size, int64_t records, const HashSplit& split) {
  if (size > 0) return;
  check<InputError>(split.side != HashSplit::Side::all, "no sequence is given");
  const char* part = split.side == HashSplit::Side::train ? "training" : "held-out";
  throw InputError(
      fmt::format("no sequence is left in the {} part: of {} sequences a fraction of {} is held out, by a "
                  "hash of each; hold "
                  "none out (data.holdout = 0), or give more sequences or a validation file of its own",
                  part, records, split.fraction));
}

void check_room(int64_t size) {
  check<InputError>(size < std::numeric_limits<uint32_t>::max(),
                    "more than {} sequences: split the data into several sets", size);
}

void record_source(DataConfig& config, const Corpus& corpus) {
  if (corpus.format() != "memory") config.format = corpus.format();
  config.vocabulary = corpus.vocabulary().name();
  if (const auto shape = corpus.image_shape()) config.image_shape = to_text(*shape);
}

MemoryCorpus::MemoryCorpus(const std::vector<std::vector<Token>>& sequences, const Vocabulary& vocabulary,
                           const HashSplit& split, const std::optional<ImageShape>& shape)
    : vocabulary_(vocabulary),
      report_{0, 0, shape ? "images" : "sequences", vocabulary.unit(), {}},
      shape_(shape) {
  check_split(split);
  for (const std::vector<Token>& sequence : sequences) {
    ++report_.records;
    report_.tokens += std::ssize(sequence);
    check<InputError>(
        !sequence.empty() &&
            std::ranges::all_of(sequence, [&](Token token) { return vocabulary.is_symbol(token); }),
        "sequence {} is not one of {}: expected ids 0 to {}, at least one", report_.records,
        vocabulary.unit(), vocabulary.symbols() - 1);
    check<InputError>(!shape || std::ssize(sequence) == shape->tokens(),
                      "sequence {} has {} tokens, but an image of shape {} has {}", report_.records,
                      sequence.size(), shape ? to_text(*shape) : "", shape ? shape->tokens() : 0);
    if (!split.takes(sequence, vocabulary)) continue;
    check_room(size());
    sequences_.push_back(sequence);
    total_ += std::ssize(sequence);
    fingerprint_ = extended_fingerprint(fingerprint_, sequence_hash(sequence, vocabulary));
  }
  check_not_empty(size(), report_.records, split);
}

}  // namespace performer::data
