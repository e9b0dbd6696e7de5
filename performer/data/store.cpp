// SPDX-License-Identifier: Apache-2.0
#include "performer/data/store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <span>

#include "performer/base/error.h"
#include "performer/data/fingerprint.h"

namespace performer::data {
namespace {

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

  void append(std::span<const Token> tokens) {
    const auto bytes = std::as_bytes(tokens);
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
  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      check(count >= 0,
            "cannot write the temporary file of the sequences in {} after {} bytes: {}; it takes two bytes "
            "a token: free "
            "some space or choose a directory on another disk",
            directory_, written_, std::strerror(errno));
      written_ += static_cast<size_t>(count);
      bytes = bytes.subspan(static_cast<size_t>(count));
    }
  }

  std::string directory_;
  int descriptor_ = -1;
  std::vector<std::byte> pending_;
  size_t written_ = 0;
};

}  // namespace

SequenceStore::SequenceStore(const std::vector<std::string>& files, const std::string& directory,
                             const DataConfig& config, const HashSplit& split,
                             const std::optional<Vocabulary>& vocabulary, const ReadProgress& progress,
                             const RecordFilter& filter) {
  check_split(split);
  const std::unique_ptr<Reader> reader = open_reader(files, config, vocabulary, progress);
  vocabulary_ = reader->vocabulary();
  format_ = reader->format();
  TemporaryFile file(directory);
  Record record;
  int64_t filtered = 0;
  while (reader->next(record)) {
    if (!split.takes(record.tokens, *vocabulary_)) continue;
    if (filter && !filter(record, format_)) {
      ++filtered;
      continue;
    }
    check_room(size());
    file.append(record.tokens);
    offsets_.push_back(offsets_.back() + std::ssize(record.tokens));
    fingerprint_ = extended_fingerprint(fingerprint_, sequence_hash(record.tokens, *vocabulary_));
  }
  shape_ = reader->image_shape();
  report_ = reader->report();
  check<InputError>(size() > 0 || filtered == 0, "none of the {} {} read has a label of its id", filtered,
                    report_.records_name);
  check_not_empty(size(), report_.records, split);
  map_ = file.map();
  data_ = static_cast<const Token*>(map_);
}

SequenceStore::~SequenceStore() {
  if (map_ != nullptr) ::munmap(map_, static_cast<size_t>(total_tokens()) * sizeof(Token));
}

}  // namespace performer::data
