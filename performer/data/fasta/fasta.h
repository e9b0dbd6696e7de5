// SPDX-License-Identifier: Apache-2.0
// FASTA, plain, gzip or zstd, read as a stream with memory bounded by the longest record and, to count
// duplicates, by the names of the first 16 million records. The rules are stated in docs/formats.md.
#pragma once

#include <memory>
#include <string>

#include "performer/data/reader.h"

namespace performer::data {

// Reads one file, or standard input for "-". The format is recognised by content, not by name. The
// constructor throws InputError for a missing or empty file and for what is not FASTA, saying what it is
// where that can be told; UsageError for a vocabulary without letters (pixels) or of all bytes. next() throws
// InputError naming file, record, line, column, what was expected and what was found: a record without
// sequence, an illegal letter, a line of words, a header or a sequence that is too long, truncated or damaged
// compression.
//
// Reported: lower case read as upper case (where it is no symbol of its own), '*' at the end of a record ('*'
// elsewhere is an error), gaps '-' and '.', blanks and bare carriage returns within lines, the vocabulary's
// aliases, headers of several entries, names with control characters, names seen before in the same file
// (those records are kept, since results follow record order), and sequences read as proteins that look like
// nucleotides.
class FastaReader final : public Reader {
 public:
  explicit FastaReader(const std::string& path, const Vocabulary& vocabulary = Vocabulary::protein());
  // Reads FASTA, packed or not, from any source; `name` is used in messages. A sequence of more than
  // `longest` letters is an error.
  FastaReader(std::unique_ptr<ByteSource> source, const std::string& name,
              const Vocabulary& vocabulary = Vocabulary::protein(), int64_t longest = kLongestRecord);
  ~FastaReader() override;
  FastaReader(FastaReader&&) noexcept;

  bool next(Record& record) override;
  ReadReport report() const override;
  const Vocabulary& vocabulary() const override;
  std::string format() const override { return "fasta"; }

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Writes one record, its sequence wrapped at `width` letters (0: not wrapped).
std::string format_fasta(const std::string& header, const std::string& sequence, int width = 80);

}  // namespace performer::data
