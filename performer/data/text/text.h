// SPDX-License-Identifier: Apache-2.0
// Text, plain, gzip or zstd, with memory bounded by the longest document. The rules are stated in
// docs/formats.md.
#pragma once

#include <memory>
#include <string>

#include "performer/data/reader.h"

namespace performer::data {

enum class Documents {
  file,        // the whole input is one document, byte for byte
  blank_line,  // lines up to the next line of white space only, without the line end before it
};
Documents documents_from_name(const std::string& name);  // UsageError for other than file and blank-line

// Reads documents. With the vocabulary of bytes every byte is a token; with another, white space that is no
// symbol is dropped and counted. A record's id is the file's name without folders, for documents between
// blank lines followed by ':' and the document's number. Throws InputError for an input without a document,
// for what is no symbol (naming line and column), and for truncated or damaged compression; UsageError for
// the vocabulary pixels.
class TextReader final : public Reader {
 public:
  // `name` is used in messages. A document of more than `longest` bytes is an error.
  TextReader(std::unique_ptr<ByteSource> source, const std::string& name, Documents documents,
             const Vocabulary& vocabulary = Vocabulary::bytes(), int64_t longest = kLongestRecord);

  bool next(Record& record) override;
  ReadReport report() const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  std::string format() const override { return "text"; }

 private:
  // Appends the next line with its end to the document; false when there is none.
  bool read_line(std::string& text);
  // The next document as it is in the file, and its first line; false when there is none.
  bool read_document(std::string& text, int64_t& line);
  void encode(const std::string& text, Record& record);

  std::unique_ptr<ByteSource> source_;
  std::string name_;
  Documents documents_;
  Vocabulary vocabulary_;
  size_t longest_;
  std::unique_ptr<char[]> buffer_;  // read from the source, not yet handed out: from begin_ to end_
  size_t begin_ = 0, end_ = 0;
  int64_t lines_ = 0;  // read so far
  int64_t records_ = 0, tokens_ = 0, dropped_ = 0;
};

}  // namespace performer::data
