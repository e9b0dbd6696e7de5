// SPDX-License-Identifier: Apache-2.0
// A corpus read from files, with bounded memory: its tokens lie in an unlinked temporary file that is mapped;
// seeded shuffling of files larger than memory costs page faults, not memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "performer/data/corpus.h"
#include "performer/data/labels.h"
#include "performer/data/section_file.h"

namespace performer::data {

class SequenceStore final : public Corpus {
 public:
  // Reads all files once; all have one format, one vocabulary and, for images, one shape: those of the first
  // file where `config` leaves them open. `directory` holds the temporary file: two bytes a token and eight a
  // sequence, gone when the store is. With `vocabulary` (of a model) that one is used, whatever
  // config.vocabulary says. With `labels` the store holds the sequences that these take, and its file their
  // labels, too. Throws InputError for bad input and when no sequence is left, UsageError for a fraction
  // outside [0, 1) and as open_reader() does, Error when the file cannot be written (disk full).
  SequenceStore(const std::vector<std::string>& files, const std::string& directory,
                const DataConfig& config = {}, const HashSplit& split = {},
                const std::optional<Vocabulary>& vocabulary = std::nullopt, const ReadProgress& progress = {},
                LabelledSequences* labels = nullptr);
  // The corpus in the file of another store, which may be one of another process. Throws InputError naming
  // the file where it is damaged: nothing that is read from it leads out of it, and all tokens are symbols.
  explicit SequenceStore(SectionFile file);
  SequenceStore(const SequenceStore&) = delete;  // nor moved: LabelledSequences may point into its file

  // Everything that the corpus is, and the labels of its sequences.
  const SectionFile& file() const { return file_; }
  // size() + 1 places: where each sequence begins, and where the last one ends.
  std::span<const int64_t> offsets() const { return offsets_; }

  const Vocabulary& vocabulary() const override { return *vocabulary_; }
  int64_t size() const override { return std::ssize(offsets_) - 1; }
  std::span<const Token> tokens(int64_t index) const override {
    const auto at = static_cast<size_t>(index);
    return {tokens_.data() + offsets_[at], static_cast<size_t>(offsets_[at + 1] - offsets_[at])};
  }
  int64_t total_tokens() const override { return offsets_.back(); }
  uint64_t fingerprint() const override { return fingerprint_; }
  const ReadReport& report() const override { return report_; }
  std::string format() const override { return format_; }
  std::optional<ImageShape> image_shape() const override { return shape_; }

 private:
  enum class Origin { own, other };  // who wrote the file: this process has no reason to check its own tokens
  SequenceStore(SectionFile file, Origin origin);
  void read_description();
  void check_offsets() const;
  void check_tokens() const;

  SectionFile file_;
  std::optional<Vocabulary> vocabulary_;
  std::string format_;
  std::optional<ImageShape> shape_;
  std::span<const Token> tokens_;
  std::span<const int64_t> offsets_;
  ReadReport report_;
  uint64_t fingerprint_ = 0;
};

}  // namespace performer::data
