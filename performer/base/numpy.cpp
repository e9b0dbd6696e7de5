// SPDX-License-Identifier: Apache-2.0
#include "performer/base/numpy.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "performer/base/printable.h"

namespace performer {
namespace {

static_assert(std::endian::native == std::endian::little, "values are written as they lie in memory");

constexpr size_t kAlignment = 64;  // of the values, as NumPy writes them

// CRC-32 of zip (ISO 3309), byte by byte.
constexpr std::array<uint32_t, 256> make_checksums() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0xEDB88320U : 0U);
    table[i] = value;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kChecksums = make_checksums();

uint32_t checksum(uint32_t before, std::string_view bytes) {
  uint32_t value = ~before;
  for (const char byte : bytes)
    value = (value >> 8) ^ kChecksums[(value ^ static_cast<uint8_t>(byte)) & 0xFFU];
  return ~value;
}

template <class Number>
void append(std::string& record, Number number) {
  char bytes[sizeof(Number)];
  std::memcpy(bytes, &number, sizeof(Number));
  record.append(bytes, sizeof(Number));
}

constexpr uint32_t kBeyond32 = 0xFFFFFFFFU;
constexpr uint16_t kNeeds = 45;      // version 4.5: ZIP64
constexpr uint16_t kUtf8 = 1 << 11;  // names are UTF-8
constexpr uint16_t kZip64 = 1;       // id of the extra field
constexpr uint16_t kDay = 33;  // 1980-01-01, the first day that the format knows: equal contents, equal bytes

// What the local header and the directory say alike.
void append_common(std::string& record, uint32_t checksum, const std::string& name, uint16_t extra) {
  append<uint16_t>(record, kNeeds);
  append<uint16_t>(record, kUtf8);
  append<uint16_t>(record, 0);  // stored
  append<uint16_t>(record, 0);  // time
  append<uint16_t>(record, kDay);
  append<uint32_t>(record, checksum);
  append<uint32_t>(record, kBeyond32);  // sizes are in the extra field
  append<uint32_t>(record, kBeyond32);
  append<uint16_t>(record, static_cast<uint16_t>(name.size()));
  append<uint16_t>(record, extra);
}

}  // namespace

std::string npy_header(const std::string& type, const std::vector<int64_t>& shape) {
  std::string dictionary = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", type,
                                       fmt::join(shape, ", "), shape.size() == 1 ? "," : "");
  std::string header = "\x93NUMPY";
  append<uint8_t>(header, 1);
  append<uint8_t>(header, 0);
  const size_t before = header.size() + sizeof(uint16_t);
  const size_t total = (before + dictionary.size() + 1 + kAlignment - 1) / kAlignment * kAlignment;
  dictionary.resize(total - before - 1, ' ');
  dictionary += '\n';
  append<uint16_t>(header, static_cast<uint16_t>(dictionary.size()));
  return header + dictionary;
}

NumpyTexts numpy_texts(const std::vector<std::string>& texts) {
  std::vector<std::vector<char32_t>> characters;
  size_t longest = 1;
  for (const std::string& text : texts) {
    std::vector<char32_t>& line = characters.emplace_back();
    for (std::string_view rest = text; !rest.empty();) {
      const size_t size = utf8_size(rest);
      line.push_back(size > 0 ? utf8_character(rest) : U'\xFFFD');
      rest.remove_prefix(std::max<size_t>(size, 1));
    }
    longest = std::max(longest, line.size());
  }
  NumpyTexts result{fmt::format("<U{}", longest), {}};
  for (std::vector<char32_t>& line : characters) {
    line.resize(longest, U'\0');
    for (const char32_t character : line) append<uint32_t>(result.values, character);
  }
  return result;
}

void ZipWriter::write(std::string_view bytes) {
  out_.write(bytes);
  written_ += bytes.size();
}

void ZipWriter::add(const std::string& name, const std::function<void(const Bytes&)>& produce) {
  Member member{name, 0, 0, written_};
  produce([&](std::string_view bytes) {
    member.checksum = checksum(member.checksum, bytes);
    member.size += bytes.size();
  });
  std::string header;
  append<uint32_t>(header, 0x04034b50);
  constexpr uint16_t kSizes = 2 * sizeof(uint64_t);
  append_common(header, member.checksum, name, 2 * sizeof(uint16_t) + kSizes);
  header += name;
  append<uint16_t>(header, kZip64);
  append<uint16_t>(header, kSizes);
  append<uint64_t>(header, member.size);
  append<uint64_t>(header, member.size);
  write(header);
  produce([&](std::string_view bytes) { write(bytes); });
  members_.push_back(member);
}

void ZipWriter::finish() {
  const uint64_t begin = written_;
  for (const Member& member : members_) {
    std::string entry;
    append<uint32_t>(entry, 0x02014b50);
    append<uint16_t>(entry, kNeeds);  // made by
    constexpr uint16_t kSizes = 3 * sizeof(uint64_t);
    append_common(entry, member.checksum, member.name, 2 * sizeof(uint16_t) + kSizes);
    append<uint16_t>(entry, 0);          // comment
    append<uint16_t>(entry, 0);          // disk
    append<uint16_t>(entry, 0);          // internal attributes
    append<uint32_t>(entry, 0);          // external attributes
    append<uint32_t>(entry, kBeyond32);  // offset: in the extra field
    entry += member.name;
    append<uint16_t>(entry, kZip64);
    append<uint16_t>(entry, kSizes);
    append<uint64_t>(entry, member.size);
    append<uint64_t>(entry, member.size);
    append<uint64_t>(entry, member.offset);
    write(entry);
  }
  const uint64_t end = written_;
  std::string tail;
  append<uint32_t>(tail, 0x06064b50);  // ZIP64 end of the directory
  append<uint64_t>(tail, 44);          // bytes that follow
  append<uint16_t>(tail, kNeeds);
  append<uint16_t>(tail, kNeeds);
  append<uint32_t>(tail, 0);
  append<uint32_t>(tail, 0);
  append<uint64_t>(tail, members_.size());
  append<uint64_t>(tail, members_.size());
  append<uint64_t>(tail, end - begin);
  append<uint64_t>(tail, begin);
  append<uint32_t>(tail, 0x07064b50);  // where that stands
  append<uint32_t>(tail, 0);
  append<uint64_t>(tail, end);
  append<uint32_t>(tail, 1);
  append<uint32_t>(tail, 0x06054b50);  // the end of the directory as it was before ZIP64
  append<uint16_t>(tail, 0);
  append<uint16_t>(tail, 0);
  append<uint16_t>(tail, 0xFFFF);
  append<uint16_t>(tail, 0xFFFF);
  append<uint32_t>(tail, kBeyond32);
  append<uint32_t>(tail, kBeyond32);
  append<uint16_t>(tail, 0);
  write(tail);
}

}  // namespace performer
