// SPDX-License-Identifier: Apache-2.0
#include "performer/data/store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/base/philox.h"
#include "performer/data/vocabulary.h"

namespace performer::data {
namespace {

uint64_t hash_of(std::span<const uint8_t> sequence) {
  return stable_hash({reinterpret_cast<const char*>(sequence.data()), sequence.size()});
}

// A file without a name: it vanishes with its descriptor and its map, however the process ends.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::string directory) : directory_(std::move(directory)) {
    std::string path = directory_ + "/performer-sequences-XXXXXX";
    descriptor_ = ::mkostemp(path.data(), O_CLOEXEC);
    check(descriptor_ >= 0, "cannot make a temporary file for the sequences in {}: {}", directory_,
          std::strerror(errno));
    ::unlink(path.c_str());
    pending_.reserve(kBuffer);
  }
  ~TemporaryFile() { ::close(descriptor_); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void append(std::span<const uint8_t> bytes) {
    if (pending_.size() + bytes.size() > kBuffer) flush();
    if (bytes.size() > kBuffer) return write(bytes);
    pending_.insert(pending_.end(), bytes.begin(), bytes.end());
  }

  // Read-only map of everything appended; at least one byte.
  void* map() {
    flush();
    // Written, not mapped for writing: so a full disk is an error here and never a SIGBUS later.
    void* map = ::mmap(nullptr, written_, PROT_READ, MAP_SHARED, descriptor_, 0);
    check(map != MAP_FAILED, "cannot map the temporary file of the sequences in {}: {}", directory_,
          std::strerror(errno));
    ::madvise(map, written_, MADV_RANDOM);  // advice only: training reads in a shuffled order
    return map;
  }

 private:
  static constexpr size_t kBuffer = size_t{1} << 20;

  void flush() {
    write(pending_);
    pending_.clear();
  }
  void write(std::span<const uint8_t> bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      check(count >= 0,
            "cannot write the temporary file of the sequences in {} after {} bytes: {}; it takes one byte a "
            "residue: free "
            "some space or choose a directory on another disk",
            directory_, written_, std::strerror(errno));
      written_ += static_cast<size_t>(count);
      bytes = bytes.subspan(static_cast<size_t>(count));
    }
  }

  std::string directory_;
  int descriptor_ = -1;
  std::vector<uint8_t> pending_;
  size_t written_ = 0;
};

void check_split(const HashSplit& split) {
  check<UsageError>(split.fraction >= 0 && split.fraction < 1,
                    "the fraction of sequences held out must be at least 0 and below 1, found {}",
                    split.fraction);
}

}  // namespace

bool HashSplit::takes(std::span<const uint8_t> sequence) const {
  if (side == Side::all) return true;
  constexpr uint32_t kPurpose = 0x484f4c44;  // "HOLD"
  const uint64_t hash = hash_of(sequence);
  const auto words = philox4x32({static_cast<uint32_t>(hash), static_cast<uint32_t>(hash >> 32), kPurpose, 0},
                                {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const bool held_out = words[0] * 0x1.0p-32 < fraction;
  return held_out == (side == Side::held_out);
}

SequenceStore::SequenceStore(const std::vector<std::string>& files, const std::string& directory,
                             const HashSplit& split) {
  check<UsageError>(!files.empty(), "no FASTA file is given: expected at least one");
  check_split(split);
  TemporaryFile file(directory);
  FastaRecord record;
  for (const std::string& path : files) {
    FastaReader reader(path);
    while (reader.next(record)) {
      if (!split.takes(record.tokens)) continue;
      file.append(record.tokens);
      note(record.tokens);
    }
    counts_ += reader.counts();
  }
  check_not_empty(split);
  map_ = file.map();
  data_ = static_cast<const uint8_t*>(map_);
}

SequenceStore::SequenceStore(const std::vector<std::vector<uint8_t>>& sequences, const HashSplit& split) {
  check_split(split);
  for (const std::vector<uint8_t>& sequence : sequences) {
    ++counts_.records;
    counts_.residues += static_cast<int64_t>(sequence.size());
    check<InputError>(!sequence.empty() && std::ranges::all_of(sequence, is_residue),
                      "sequence {} is not one of residues: expected ids 0 to {}, at least one",
                      counts_.records, kResidues - 1);
    if (!split.takes(sequence)) continue;
    memory_.insert(memory_.end(), sequence.begin(), sequence.end());
    note(sequence);
  }
  check_not_empty(split);
  data_ = memory_.data();
}

SequenceStore::~SequenceStore() {
  if (map_ != nullptr) ::munmap(map_, static_cast<size_t>(residues()));
}

void SequenceStore::note(std::span<const uint8_t> sequence) {
  check<InputError>(size() < std::numeric_limits<uint32_t>::max(),
                    "more than {} sequences: split the data into several sets", size());
  offsets_.push_back(offsets_.back() + static_cast<int64_t>(sequence.size()));
  const std::array<uint64_t, 2> words{fingerprint_, hash_of(sequence)};
  std::array<char, sizeof(words)> bytes;
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(words[i / 8] >> (8 * (i % 8)));
  fingerprint_ = stable_hash({bytes.data(), bytes.size()});
}

void SequenceStore::check_not_empty(const HashSplit& split) const {
  if (size() > 0) return;
  check<InputError>(split.side != HashSplit::Side::all, "no sequence is given");
  const char* part = split.side == HashSplit::Side::train ? "training" : "held-out";
  throw InputError(
      fmt::format("no sequence is left in the {} part of {} sequences with a held-out fraction of {}: give "
                  "more sequences, another "
                  "fraction or seed, or a validation file of its own",
                  part, counts_.records, split.fraction));
}

}  // namespace performer::data
