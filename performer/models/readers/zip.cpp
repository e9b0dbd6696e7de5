// SPDX-License-Identifier: Apache-2.0
#include "performer/models/readers/zip.h"

#include <zlib.h>

#include <algorithm>
#include <optional>

#include "performer/base/error.h"
#include "performer/models/readers/byte_cursor.h"

namespace performer {
namespace {

constexpr uint32_t kLocal = 0x04034b50, kCentral = 0x02014b50, kEnd = 0x06054b50, kEnd64 = 0x06064b50,
                   kLocator64 = 0x07064b50;
constexpr size_t kEndSize = 22, kLocatorSize = 20, kLongestComment = 65535;
constexpr uint32_t kSaturated32 = 0xffffffff;  // the number stands in a field of 64 bits
constexpr uint64_t kMostEntries = 1 << 20;

struct Directory {
  uint64_t entries = 0, size = 0, offset = 0;
};

uint32_t signature_at(std::span<const std::byte> bytes, size_t at) {
  uint32_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

// The record at the end, behind which only a comment may stand.
std::optional<size_t> find_end(std::span<const std::byte> bytes) {
  if (bytes.size() < kEndSize) return std::nullopt;
  const size_t last = bytes.size() - kEndSize, first = last - std::min(last, kLongestComment);
  for (size_t at = last + 1; at-- > first;) {
    if (signature_at(bytes, at) == kEnd) return at;
  }
  return std::nullopt;
}

Directory read_end(std::span<const std::byte> bytes, size_t end, const std::string& source) {
  if (end >= kLocatorSize && signature_at(bytes, end - kLocatorSize) == kLocator64) {
    ByteCursor locator(bytes.subspan(end - kLocatorSize, kLocatorSize), source);
    locator.take(8, "the zip locator");
    const auto place = locator.number<uint64_t>("the zip locator");
    check<InputError>(place < bytes.size(), "{} is damaged: its zip directory would begin at byte {} of {}",
                      source, place, bytes.size());
    ByteCursor record(bytes.subspan(place), source);
    check<InputError>(record.number<uint32_t>("the zip directory") == kEnd64,
                      "{} is damaged: there is no zip directory at byte {}", source, place);
    record.take(20, "the zip directory");
    record.take(8, "the zip directory");
    const auto entries = record.number<uint64_t>("the zip directory");
    const auto size = record.number<uint64_t>("the zip directory");
    return {entries, size, record.number<uint64_t>("the zip directory")};
  }
  ByteCursor record(bytes.subspan(end), source);
  record.take(10, "the zip directory");
  const uint64_t entries = record.number<uint16_t>("the zip directory");
  const uint64_t size = record.number<uint32_t>("the zip directory");
  return {entries, size, record.number<uint32_t>("the zip directory")};
}

// An entry of the directory.
struct Listed {
  std::string name;
  uint64_t packed = 0, size = 0, offset = 0;
  uint32_t crc = 0;
  uint16_t flags = 0, method = 0;
};

// The fields of 64 bits that stand for saturated ones, in this order.
void read_wide_fields(ByteCursor extra, Listed& listed) {
  while (extra.left() >= 4) {
    const auto id = extra.number<uint16_t>("a zip field");
    const auto size = extra.number<uint16_t>("a zip field");
    ByteCursor field(extra.take(size, "a zip field"), extra.source());
    if (id != 1) continue;
    for (uint64_t* value : {&listed.size, &listed.packed, &listed.offset}) {
      if (*value == kSaturated32) *value = field.number<uint64_t>("a zip field of 64 bits");
    }
  }
}

Listed read_listed(ByteCursor& directory) {
  const char* what = "an entry of the zip directory";
  check<InputError>(directory.number<uint32_t>(what) == kCentral,
                    "{} is damaged: an entry of its zip directory does not begin as one", directory.source());
  Listed listed;
  directory.take(4, what);
  listed.flags = directory.number<uint16_t>(what);
  listed.method = directory.number<uint16_t>(what);
  directory.take(4, what);
  listed.crc = directory.number<uint32_t>(what);
  listed.packed = directory.number<uint32_t>(what);
  listed.size = directory.number<uint32_t>(what);
  const auto name = directory.number<uint16_t>(what), extra = directory.number<uint16_t>(what),
             comment = directory.number<uint16_t>(what);
  directory.take(8, what);
  listed.offset = directory.number<uint32_t>(what);
  listed.name = directory.text(name, what);
  read_wide_fields(ByteCursor(directory.take(extra, what), directory.source()), listed);
  directory.take(comment, what);
  return listed;
}

std::span<const std::byte> bytes_of(std::span<const std::byte> bytes, const Listed& listed,
                                    const std::string& source) {
  constexpr uint16_t kEncrypted = 1;
  check<InputError>((listed.flags & kEncrypted) == 0 && listed.method == 0 && listed.packed == listed.size,
                    "{}: the zip entry '{}' is compressed or encrypted; a file of weights stores its entries "
                    "as they are",
                    source, listed.name);
  check<InputError>(listed.offset < bytes.size(),
                    "{} is truncated: the zip entry '{}' begins at byte {} of {}", source, listed.name,
                    listed.offset, bytes.size());
  ByteCursor local(bytes.subspan(listed.offset), source);
  const char* what = "a zip entry";
  check<InputError>(local.number<uint32_t>(what) == kLocal,
                    "{} is damaged: there is no zip entry '{}' at byte {}", source, listed.name,
                    listed.offset);
  local.take(22, what);
  const auto name = local.number<uint16_t>(what), extra = local.number<uint16_t>(what);
  check<InputError>(local.text(name, what) == listed.name,
                    "{} is damaged: the zip entry at byte {} has another name than '{}'", source,
                    listed.offset, listed.name);
  local.take(extra, what);
  return local.take(listed.size, "the data of a zip entry");
}

}  // namespace

bool is_zip(std::span<const std::byte> bytes) {
  return bytes.size() >= 4 && signature_at(bytes, 0) == kLocal;
}

ZipArchive::ZipArchive(std::span<const std::byte> bytes, const std::string& source) : source_(source) {
  const auto end = find_end(bytes);
  check<InputError>(end.has_value(), "{} is truncated: a zip archive ends with a directory, which is missing",
                    source);
  const Directory place = read_end(bytes, *end, source);
  check<InputError>(place.entries <= kMostEntries && place.offset <= bytes.size() &&
                        place.size <= bytes.size() - place.offset,
                    "{} is damaged: its zip directory of {} entries would take {} bytes from byte {} of {}",
                    source, place.entries, place.size, place.offset, bytes.size());
  ByteCursor directory(bytes.subspan(place.offset, place.size), source);
  for (uint64_t i = 0; i < place.entries; ++i) {
    const Listed listed = read_listed(directory);
    const bool is_new =
        entries_.emplace(listed.name, Entry{bytes_of(bytes, listed, source), listed.crc}).second;
    check<InputError>(is_new, "{} is damaged: its zip directory names '{}' twice", source, listed.name);
  }
}

std::span<const std::byte> ZipArchive::read(const std::string& name) const {
  const auto found = entries_.find(name);
  check<InputError>(found != entries_.end(), "{}: the zip archive has no entry '{}'", source_, name);
  const auto& [bytes, crc] = found->second;
  const auto* data = reinterpret_cast<const Bytef*>(bytes.data());
  check<InputError>(crc32_z(crc32_z(0, nullptr, 0), data, bytes.size()) == crc,
                    "{} is damaged: the checksum of the zip entry '{}' is wrong", source_, name);
  return bytes;
}

}  // namespace performer
