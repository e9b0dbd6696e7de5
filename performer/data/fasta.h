// SPDX-License-Identifier: Apache-2.0
// FASTA, plain, gzip or zstd, read as a stream with memory bounded by the longest record (and 64 bits a name,
// to count duplicates). The rules are stated in docs/formats.md.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "performer/data/byte_source.h"

namespace performer::data {

// What the reader changed or met, by a stated rule each (docs/formats.md); reported, never silent.
struct FastaCounts {
  int64_t records = 0, residues = 0;
  int64_t lower_case = 0;       // letters upper-cased
  int64_t stops = 0;            // '*' at the end of a record, dropped ('*' elsewhere is an error)
  int64_t gaps = 0;             // '-' and '.', dropped
  int64_t j_to_x = 0;           // J (leucine or isoleucine) read as X
  int64_t duplicate_names = 0;  // names seen before in the same file; kept, since results follow record order

  FastaCounts& operator+=(const FastaCounts& other);
};

struct FastaRecord {
  std::string id;               // header up to the first white space; empty for a bare '>'
  std::string header;           // whole header line without '>' and without white space at either end
  std::vector<uint8_t> tokens;  // residue ids, 0..24, at least one
  int64_t number = 0;           // from 1, within its file
  int64_t line = 0;             // of the header, from 1
};

// Reads one file, or standard input for "-". The format is recognised by content, not by name. Throws
// InputError naming file, record, line, column, what was expected and what was found: missing or empty file,
// not FASTA, a record without sequence, an illegal letter, truncated or damaged compression.
class FastaReader {
 public:
  explicit FastaReader(const std::string& path);
  // Reads FASTA, packed or not, from any source; `name` is used in messages.
  FastaReader(std::unique_ptr<ByteSource> source, const std::string& name);
  ~FastaReader();
  FastaReader(FastaReader&&) noexcept;
  bool next(FastaRecord& record);  // false at the end
  const FastaCounts& counts() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Writes one record, residues wrapped at `width` letters (0: not wrapped).
std::string format_fasta(const std::string& header, const std::string& residues, int width = 80);

}  // namespace performer::data
