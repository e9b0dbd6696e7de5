// SPDX-License-Identifier: Apache-2.0
// A corpus read from files, with bounded memory: its tokens lie in an unlinked temporary file that is mapped;
// seeded shuffling of files larger than memory costs page faults, not memory.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "performer/data/corpus.h"

namespace performer::data {

// Called for each record that the split takes, in order: whether the store takes it.
using RecordFilter = std::function<bool(const Record& record, const std::string& format)>;

class SequenceStore final : public Corpus {
 public:
  // Reads all files once; all have one format, one vocabulary and, for images, one shape: those of the first
  // file where `config` leaves them open. `directory` holds the temporary file: two bytes a token, gone when
  // the store is. With `vocabulary` (of a model) that one is used, whatever config.vocabulary says. Throws
  // InputError for bad input and when no sequence is left, UsageError for a fraction outside [0, 1) and as
  // open_reader() does, Error when the file cannot be written (disk full).
  SequenceStore(const std::vector<std::string>& files, const std::string& directory,
                const DataConfig& config = {}, const HashSplit& split = {},
                const std::optional<Vocabulary>& vocabulary = std::nullopt, const ReadProgress& progress = {},
                const RecordFilter& filter = {});
  ~SequenceStore() override;
  SequenceStore(const SequenceStore&) = delete;
  SequenceStore& operator=(const SequenceStore&) = delete;

  const Vocabulary& vocabulary() const override { return *vocabulary_; }
  int64_t size() const override { return static_cast<int64_t>(offsets_.size()) - 1; }
  std::span<const Token> tokens(int64_t index) const override {
    return {data_ + offsets_[index], static_cast<size_t>(offsets_[index + 1] - offsets_[index])};
  }
  int64_t total_tokens() const override { return offsets_.back(); }
  uint64_t fingerprint() const override { return fingerprint_; }
  const ReadReport& report() const override { return report_; }
  std::string format() const override { return format_; }
  std::optional<ImageShape> image_shape() const override { return shape_; }

 private:
  std::optional<Vocabulary> vocabulary_;  // set by the first file
  std::string format_;
  std::optional<ImageShape> shape_;
  std::vector<int64_t> offsets_{0};  // size() + 1
  void* map_ = nullptr;
  const Token* data_ = nullptr;
  ReadReport report_;
  uint64_t fingerprint_ = 0;
};

}  // namespace performer::data
