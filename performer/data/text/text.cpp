// SPDX-License-Identifier: Apache-2.0
#include "performer/data/text/text.h"

#include <algorithm>
#include <string_view>

#include "performer/base/error.h"
#include "performer/data/record_id.h"

namespace performer::data {
namespace {

constexpr std::string_view kWhite = " \t\n\r\v\f";

bool is_blank(std::string_view line) {
  return line.find_first_not_of(kWhite) == std::string_view::npos;
}

// Line and column, from 1, of a place in a document that begins at `line`.
std::pair<int64_t, int64_t> place_of(std::string_view text, size_t at, int64_t line) {
  const std::string_view before = text.substr(0, at);
  const size_t last_end = before.rfind('\n');
  return {line + std::ranges::count(before, '\n'),
          static_cast<int64_t>(last_end == std::string_view::npos ? at + 1 : at - last_end)};
}

}  // namespace

Documents documents_from_name(const std::string& name) {
  if (name == "file") return Documents::file;
  if (name == "blank-line") return Documents::blank_line;
  throw UsageError(fmt::format("data.documents must be file or blank-line, found \"{}\"", name));
}

TextReader::TextReader(std::unique_ptr<ByteSource> source, const std::string& name, Documents documents,
                       const Vocabulary& vocabulary, int64_t longest)
    : source_(unpack(std::move(source), name)),
      name_(name),
      documents_(documents),
      vocabulary_(vocabulary),
      longest_(static_cast<size_t>(longest)),
      buffer_(new char[kReadBytes]) {
  check<UsageError>(vocabulary != Vocabulary::pixels(),
                    "the vocabulary pixels cannot be read from text: choose another data.vocabulary or "
                    "data.format");
}

bool TextReader::read_line(std::string& text) {
  const size_t before = text.size();
  while (text.size() == before || text.back() != '\n') {
    if (begin_ == end_) {
      begin_ = 0;
      end_ = source_->read(buffer_.get(), kReadBytes);
      if (end_ == 0) break;
    }
    const std::string_view unread(buffer_.get() + begin_, end_ - begin_);
    const size_t size = std::min(unread.find('\n'), unread.size() - 1) + 1;
    text.append(unread.substr(0, size));
    begin_ += size;
    check<InputError>(text.size() <= longest_,
                      "{}: document {} has more than {} bytes: split it, or set data.documents = blank-line",
                      name_, records_ + 1, longest_);
  }
  if (text.size() == before) return false;
  ++lines_;
  return true;
}

bool TextReader::read_document(std::string& text, int64_t& line) {
  text.clear();
  for (size_t before = 0; read_line(text); before = text.size()) {
    if (documents_ == Documents::blank_line && is_blank(std::string_view(text).substr(before))) {
      text.resize(before);
      if (!text.empty()) break;
      continue;
    }
    if (before == 0) line = lines_;
  }
  if (documents_ == Documents::blank_line) {
    if (text.ends_with('\n')) text.pop_back();
    if (text.ends_with('\r')) text.pop_back();
  }
  return !text.empty();
}

void TextReader::encode(const std::string& text, Record& record) {
  record.tokens.clear();
  record.tokens.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    at += vocabulary_.encode_prefix(std::string_view(text).substr(at), record.tokens);
    if (at == text.size()) break;
    if (kWhite.find(text[at]) == std::string_view::npos) {
      const auto [line, column] = place_of(text, at, record.line);
      throw InputError(fmt::format(
          "{}: line {}, column {}: {} is no symbol of the vocabulary {}: add it, or choose another "
          "data.vocabulary",
          name_, line, column, quoted(text[at]), vocabulary_.name()));
    }
    ++dropped_;
    ++at;
  }
}

bool TextReader::next(Record& record) {
  std::string text;
  while (read_document(text, record.line)) {
    encode(text, record);
    if (record.tokens.empty()) continue;
    record.number = ++records_;
    record.id = record_id(name_);
    if (documents_ == Documents::blank_line) record.id += fmt::format(":{}", record.number);
    record.header = name_;
    tokens_ += std::ssize(record.tokens);
    return true;
  }
  check<InputError>(lines_ > 0, "{} is empty: expected text", name_);
  check<InputError>(records_ > 0, "{} has no document: there is nothing but white space", name_);
  return false;
}

ReadReport TextReader::report() const {
  ReadReport report{records_, tokens_, "documents", vocabulary_.unit(), {}};
  report.add(dropped_,
             fmt::format("bytes of white space dropped, which are no symbols of {}", vocabulary_.name()));
  return report;
}

}  // namespace performer::data
