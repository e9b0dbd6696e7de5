// SPDX-License-Identifier: Apache-2.0
#include "performer/data/image/tar.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <optional>

#include "performer/base/error.h"

namespace performer::data {
namespace {

constexpr size_t kBlock = 512;
constexpr std::string_view kPosix("ustar", 6);  // with its NUL; GNU has a space there, and no prefix field
constexpr int64_t kMostExtension = 1 << 20;     // bytes of a long name or of pax records

// A field of the header up to its first NUL.
std::string_view text_field(std::string_view header, size_t at, size_t size) {
  const std::string_view field = header.substr(at, size);
  return field.substr(0, field.find('\0'));
}

// A number: octal digits between spaces and NULs, or, with the highest bit set, big-endian bytes (GNU).
// Nothing when it is neither, or too large.
std::optional<int64_t> number_field(std::string_view header, size_t at, size_t size) {
  std::string_view field = header.substr(at, size);
  if ((static_cast<unsigned char>(field[0]) & 0x80) != 0) {
    int64_t value = static_cast<unsigned char>(field[0]) & 0x7f;
    for (const unsigned char byte : field.substr(1)) {
      if (value > std::numeric_limits<int64_t>::max() / 512) return std::nullopt;
      value = value * 256 + byte;
    }
    return value;
  }
  field = field.substr(0, field.find('\0'));
  const size_t begin = std::min(field.find_first_not_of(' '), field.size());
  field = field.substr(begin, field.find_last_not_of(' ') + 1 - begin);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value, 8);
  if (field.empty()) return 0;
  if (error != std::errc() || end != field.data() + field.size() || value < 0) return std::nullopt;
  return value;
}

// The value of the last record "SIZE path=VALUE\n" of pax records, if any.
std::optional<std::string> pax_path(std::string_view records) {
  std::optional<std::string> path;
  while (!records.empty()) {
    size_t size = 0;
    const auto [end, error] = std::from_chars(records.data(), records.data() + records.size(), size);
    const size_t digits = static_cast<size_t>(end - records.data());
    if (error != std::errc() || size > records.size() || size < digits + 2) return path;
    const std::string_view record = records.substr(digits + 1, size - digits - 2);
    if (record.starts_with("path=")) path = std::string(record.substr(5));
    records.remove_prefix(size);
  }
  return path;
}

}  // namespace

bool is_tar(std::string_view head) {
  if (head.size() < kBlock || head[0] == '\0') return false;
  constexpr size_t kChecksum = 148, kChecksumSize = 8;
  int64_t sum = 0;
  for (size_t i = 0; i < kBlock; ++i) {
    const bool of_checksum = i >= kChecksum && i < kChecksum + kChecksumSize;
    sum += of_checksum ? ' ' : static_cast<unsigned char>(head[i]);
  }
  return number_field(head, kChecksum, kChecksumSize) == sum;
}

void TarReader::read_exactly(char* buffer, size_t size) {
  while (size > 0) {
    const size_t count = source_->read(buffer, size);
    check<InputError>(
        count > 0, "{} is truncated: the tar archive ends in the middle; copy or download it again", name_);
    buffer += count;
    size -= count;
  }
}

void TarReader::skip(int64_t size) {
  std::array<char, 1 << 14> buffer;
  while (size > 0) {
    const auto step = std::min(size, static_cast<int64_t>(buffer.size()));
    read_exactly(buffer.data(), static_cast<size_t>(step));
    size -= step;
  }
}

std::string TarReader::read_extension(int64_t size) {
  check<InputError>(size <= kMostExtension, "{} is damaged: a name in the tar archive has {} bytes", name_,
                    size);
  std::string content(static_cast<size_t>(size), '\0');
  read_exactly(content.data(), content.size());
  skip(-size & (kBlock - 1));
  return content;
}

bool TarReader::next(Entry& entry) {
  skip(left_ + padding_);
  left_ = padding_ = 0;
  std::optional<std::string> long_name;
  std::array<char, kBlock> block;
  while (true) {
    read_exactly(block.data(), block.size());
    const std::string_view header(block.data(), block.size());
    if (std::ranges::all_of(header, [](char byte) { return byte == '\0'; })) return false;
    const std::optional<int64_t> size = number_field(header, 124, 12);
    check<InputError>(is_tar(header) && size.has_value(),
                      "{} is damaged: a header of the tar archive fails its check; copy or download it again",
                      name_);
    const char type = header[156];
    if (type == 'L') {  // GNU: the name of the next entry
      long_name = read_extension(*size);
      long_name->resize(std::min(long_name->find('\0'), long_name->size()));
    } else if (type == 'x') {  // pax: facts about the next entry
      const std::string records = read_extension(*size);
      if (auto path = pax_path(records)) long_name = std::move(path);
    } else if (type == '0' || type == '\0' || type == '7') {
      const std::string_view prefix = header.substr(257, 6) == kPosix ? text_field(header, 345, 155) : "";
      entry.name = long_name
                       ? *long_name
                       : fmt::format("{}{}{}", prefix, prefix.empty() ? "" : "/", text_field(header, 0, 100));
      entry.size = left_ = *size;
      padding_ = -*size & static_cast<int64_t>(kBlock - 1);
      return true;
    } else {  // a folder, a link, a global header
      const bool has_content = type < '1' || type > '6';
      if (has_content) {
        skip(*size);
        skip(-*size & static_cast<int64_t>(kBlock - 1));
      }
      long_name.reset();
    }
  }
}

std::string TarReader::read(size_t most) {
  const auto size = std::min(left_, static_cast<int64_t>(most));
  std::string content;
  // Grown as the bytes come: what a damaged header claims is not taken from memory before.
  constexpr int64_t kStep = int64_t{1} << 20;
  for (int64_t at = 0; at < size; at += kStep) {
    const auto step = static_cast<size_t>(std::min(kStep, size - at));
    content.resize(content.size() + step);
    read_exactly(content.data() + content.size() - step, step);
  }
  left_ -= size;
  return content;
}

}  // namespace performer::data
