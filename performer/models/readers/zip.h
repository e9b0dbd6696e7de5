// SPDX-License-Identifier: Apache-2.0
// Zip archives whose entries are stored, not compressed, as torch.save() writes them. Source: PKWARE's
// APPNOTE.TXT, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16, with the 64-bit fields of 4.5.3.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace performer {

bool is_zip(std::span<const std::byte> bytes);

class ZipArchive {
 public:
  // Reads the table of entries; the bytes must stay while the archive is used. Throws InputError naming
  // `source` for a truncated or damaged table, compressed or encrypted entries, and a name given twice.
  ZipArchive(std::span<const std::byte> bytes, const std::string& source);

  struct Entry {
    std::span<const std::byte> bytes;
    uint32_t crc = 0;
  };
  const std::map<std::string, Entry>& entries() const { return entries_; }
  // The bytes of an entry. Throws InputError when there is none of that name or its checksum is another.
  std::span<const std::byte> read(const std::string& name) const;

 private:
  std::string source_;
  std::map<std::string, Entry> entries_;
};

}  // namespace performer
