// SPDX-License-Identifier: Apache-2.0
// Files of sections as bytes, to damage them.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "performer/data/section_file.h"

namespace performer::data::test {

inline std::string bytes_of(const SectionFile& file) {
  const auto size = static_cast<size_t>(::lseek(file.descriptor(), 0, SEEK_END));
  std::string bytes(size, '\0');
  EXPECT_EQ(::pread(file.descriptor(), bytes.data(), size, 0), static_cast<ssize_t>(size));
  return bytes;
}

// A descriptor of a file in memory.
inline int file_of_bytes(const std::string& bytes) {
  const int descriptor = ::memfd_create("damaged", MFD_CLOEXEC);
  EXPECT_EQ(::pwrite(descriptor, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  return descriptor;
}

// Where a section begins in the bytes of a file.
inline size_t begin_of(const std::string& bytes, const std::string& section) {
  const auto number_at = [&](size_t place) {
    uint64_t number = 0;
    std::memcpy(&number, bytes.data() + place, sizeof(number));
    return number;
  };
  for (size_t row = number_at(16); row < bytes.size(); row += kSectionRow) {
    if (bytes.substr(row, kSectionName).c_str() == section) return number_at(row + kSectionName);
  }
  ADD_FAILURE() << "no section " << section;
  return 0;
}

// The bytes of a file with another number in a section, `index` numbers from its beginning.
template <class Number>
std::string with_number(const SectionFile& file, const std::string& section, size_t index, Number value) {
  std::string bytes = bytes_of(file);
  std::memcpy(bytes.data() + begin_of(bytes, section) + index * sizeof(Number), &value, sizeof(value));
  return bytes;
}

// The bytes of a file with a text of the same size in the place of another.
inline std::string with_text(const SectionFile& file, const std::string& text, const std::string& other) {
  std::string bytes = bytes_of(file);
  const size_t place = bytes.find(text);
  EXPECT_NE(place, std::string::npos);
  EXPECT_EQ(text.size(), other.size());
  return bytes.replace(place, text.size(), other);
}

}  // namespace performer::data::test
