// SPDX-License-Identifier: Apache-2.0
// A temporary file of named arrays that is written once and then mapped read-only, by the process that wrote
// it and by others of the same machine that hold it open.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace performer::data {

// The file begins with a header of kSectionHeader bytes: the eight letters of kSectionMagic, the format's
// version and the number of sections (32 bits each), where their table begins and how long the file is (64
// bits each). A row of the table is a name of up to 24 bytes, padded with zeros, and where the section begins
// and how many bytes it has. Numbers have this machine's byte order. The header is written last: a file that
// was not finished has none.
inline constexpr std::string_view kSectionMagic = "PERFSECT";
inline constexpr size_t kSectionHeader = 32, kSectionName = 24, kSectionRow = kSectionName + 16;

// An open file and a map of all of it. Moved, not copied.
class SectionFile {
 public:
  // Takes over the descriptor of a file that a SectionWriter wrote; it is closed also where this throws.
  // `name` is used in messages. Throws InputError for what is no such file, of another version, or damaged:
  // each section of the table lies within the file.
  SectionFile(int descriptor, std::string name);
  ~SectionFile();
  SectionFile(SectionFile&& other) noexcept;
  SectionFile& operator=(SectionFile&&) = delete;

  int descriptor() const { return descriptor_; }  // open as long as this is
  const std::string& name() const { return name_; }
  bool has(std::string_view section) const { return sections_.find(section) != sections_.end(); }
  // Throws InputError for a section that is not there.
  std::span<const std::byte> bytes(std::string_view section) const;
  std::string_view text(std::string_view section) const;
  // A section as numbers. Throws InputError where its size is no whole number of them.
  template <class Number>
  std::span<const Number> numbers(std::string_view section) const {
    const std::span<const std::byte> found = bytes(section);
    check_whole(section, found.size(), sizeof(Number));
    return {reinterpret_cast<const Number*>(found.data()), found.size() / sizeof(Number)};
  }
  // Tells the system that the file is read in no order from here on.
  void expect_random_reads() const;

 private:
  void map();
  void read_table();
  void check_whole(std::string_view section, size_t size, size_t unit) const;
  void unmap();

  int descriptor_;
  std::string name_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::map<std::string, std::span<const std::byte>, std::less<>> sections_;
};

// Writes one. The file has no name, so that it vanishes with the last process that holds it, however that
// ends. It is written, not mapped for writing: a full disk is an error here and never a SIGBUS later.
class SectionWriter {
 public:
  // `directory` holds the file. For messages: `what` the file is of ("sequences"), and what it `takes` ("two
  // bytes a token"). Here and below Error is thrown when the file cannot be made or written.
  SectionWriter(std::string directory, std::string what, std::string takes);
  ~SectionWriter();
  SectionWriter(const SectionWriter&) = delete;
  SectionWriter& operator=(const SectionWriter&) = delete;

  // What is appended from here on belongs to this section; names differ from each other. Sections begin at
  // multiples of kAlignment bytes.
  void begin(std::string_view section);
  void append(std::span<const std::byte> bytes);
  template <class Number>
  void append_numbers(std::span<const Number> numbers) {
    append(std::as_bytes(numbers));
  }
  // A section that is a text.
  void add_text(std::string_view section, std::string_view text);
  // Ends the file; nothing can be appended after.
  SectionFile finish();

  static constexpr size_t kAlignment = 64;

 private:
  struct Section {
    std::string name;
    uint64_t begin = 0, size = 0;
  };
  void flush();
  void write(std::span<const std::byte> bytes);
  void write_header(uint64_t table);
  [[noreturn]] void fail() const;
  void align();
  uint64_t position() const { return written_ + pending_.size(); }

  std::string directory_, what_, takes_;
  int descriptor_ = -1;
  std::vector<std::byte> pending_;
  uint64_t written_ = 0;
  std::vector<Section> sections_;
};

}  // namespace performer::data
