// SPDX-License-Identifier: Apache-2.0
#include "performer/data/section_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "performer/base/error.h"

namespace performer::data {
namespace {

constexpr uint32_t kVersion = 1;
constexpr uint32_t kMostSections = 1024;
constexpr size_t kBuffer = size_t{1} << 20;

struct Header {
  std::array<char, 8> magic{};
  uint32_t version = 0, sections = 0;
  uint64_t table = 0, size = 0;
};
static_assert(sizeof(Header) == kSectionHeader);

struct Row {
  std::array<char, kSectionName> name{};
  uint64_t begin = 0, size = 0;
};
static_assert(sizeof(Row) == kSectionRow);

template <class Plain>
Plain plain_at(const std::byte* place) {
  Plain value;
  std::memcpy(&value, place, sizeof(value));
  return value;
}

std::string_view magic_of(const Header& header) {
  return {header.magic.data(), header.magic.size()};
}

}  // namespace

SectionFile::SectionFile(int descriptor, std::string name) : descriptor_(descriptor), name_(std::move(name)) {
  try {
    map();
    read_table();
  } catch (...) {
    unmap();
    throw;
  }
}

SectionFile::~SectionFile() {
  unmap();
}

SectionFile::SectionFile(SectionFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      name_(std::move(other.name_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      sections_(std::exchange(other.sections_, {})) {}

void SectionFile::map() {
  struct stat status {};
  check<InputError>(::fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode),
                    "{}: expected a file of sections, found none that is open", name_);
  check<InputError>(static_cast<size_t>(status.st_size) >= kSectionHeader,
                    "{}: expected a file of sections, which has {} bytes or more, found {} bytes", name_,
                    kSectionHeader, status.st_size);
  size_ = static_cast<size_t>(status.st_size);
  void* found = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_, 0);
  check(found != MAP_FAILED, "cannot map {}: {}", name_, std::strerror(errno));
  data_ = static_cast<const std::byte*>(found);
}

void SectionFile::read_table() {
  const auto header = plain_at<Header>(data_);
  check<InputError>(magic_of(header) == kSectionMagic,
                    "{}: expected a file of sections that was finished, found other bytes at its beginning",
                    name_);
  check<InputError>(header.version == kVersion, "{}: expected version {} of the file, found {}", name_,
                    kVersion, header.version);
  check<InputError>(header.size == size_, "{}: expected a file of {} bytes, found {}", name_, header.size,
                    size_);
  const uint64_t rows = uint64_t{header.sections} * kSectionRow;
  check<InputError>(header.sections <= kMostSections && header.table <= size_ && rows <= size_ - header.table,
                    "{}: its table of {} sections does not lie within its {} bytes", name_, header.sections,
                    size_);
  for (uint64_t i = 0; i < header.sections; ++i) {
    const auto row = plain_at<Row>(data_ + header.table + i * kSectionRow);
    const std::string name(row.name.begin(), std::ranges::find(row.name, '\0'));
    check<InputError>(
        row.begin % SectionWriter::kAlignment == 0 && row.begin <= size_ && row.size <= size_ - row.begin,
        "{}: section {} ('{}') does not lie within its {} bytes", name_, i + 1, shown(name), size_);
    const bool added = sections_.emplace(name, std::span(data_ + row.begin, row.size)).second;
    check<InputError>(added, "{}: there are two sections '{}'", name_, shown(name));
  }
}

void SectionFile::unmap() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  if (descriptor_ >= 0) ::close(descriptor_);
  data_ = nullptr;
  descriptor_ = -1;
}

std::span<const std::byte> SectionFile::bytes(std::string_view section) const {
  const auto found = sections_.find(section);
  check<InputError>(found != sections_.end(), "{}: there is no section '{}'", name_, section);
  return found->second;
}

std::string_view SectionFile::text(std::string_view section) const {
  const std::span<const std::byte> found = bytes(section);
  return {reinterpret_cast<const char*>(found.data()), found.size()};
}

void SectionFile::check_whole(std::string_view section, size_t size, size_t unit) const {
  check<InputError>(size % unit == 0, "{}: section '{}' has {} bytes, which is no whole number of {}", name_,
                    section, size, unit);
}

void SectionFile::expect_random_reads() const {
  ::madvise(const_cast<std::byte*>(data_), size_, MADV_RANDOM);  // advice only
}

SectionWriter::SectionWriter(std::string directory, std::string what, std::string takes)
    : directory_(std::move(directory)), what_(std::move(what)), takes_(std::move(takes)) {
  std::string path = fmt::format("{}/performer-{}-XXXXXX", directory_, what_);
  descriptor_ = ::mkostemp(path.data(), O_CLOEXEC);
  check(descriptor_ >= 0, "cannot make a temporary file for the {} in {}: {}", what_, directory_,
        std::strerror(errno));
  ::unlink(path.c_str());
  pending_.reserve(kBuffer);
  pending_.resize(kSectionHeader);
}

SectionWriter::~SectionWriter() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void SectionWriter::begin(std::string_view section) {
  check(section.size() <= kSectionName && sections_.size() < kMostSections,
        "the section '{}' does not fit into a file of sections", section);
  align();
  sections_.push_back({std::string(section), position(), 0});
}

void SectionWriter::append(std::span<const std::byte> bytes) {
  sections_.back().size += bytes.size();
  if (pending_.size() + bytes.size() > kBuffer) flush();
  if (bytes.size() > kBuffer) return write(bytes);
  pending_.insert(pending_.end(), bytes.begin(), bytes.end());
}

void SectionWriter::add_text(std::string_view section, std::string_view text) {
  begin(section);
  append_numbers(std::span(text.data(), text.size()));
}

SectionFile SectionWriter::finish() {
  align();
  const uint64_t table = position();
  for (const Section& section : sections_) {
    Row row{{}, section.begin, section.size};
    std::ranges::copy(section.name, row.name.begin());
    const auto bytes = std::as_bytes(std::span(&row, 1));
    pending_.insert(pending_.end(), bytes.begin(), bytes.end());
  }
  flush();
  write_header(table);
  return {std::exchange(descriptor_, -1),
          fmt::format("the temporary file of the {} in {}", what_, directory_)};
}

void SectionWriter::align() {
  pending_.resize(pending_.size() + (kAlignment - position() % kAlignment) % kAlignment);
}

void SectionWriter::flush() {
  write(pending_);
  pending_.clear();
}

void SectionWriter::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail();
    written_ += static_cast<size_t>(count);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

void SectionWriter::write_header(uint64_t table) {
  Header header{{}, kVersion, static_cast<uint32_t>(sections_.size()), table, written_};
  std::ranges::copy(kSectionMagic, header.magic.begin());
  ssize_t count = 0;
  do {
    count = ::pwrite(descriptor_, &header, sizeof(header), 0);
  } while (count < 0 && errno == EINTR);
  if (count != ssize_t{sizeof(header)}) fail();
}

void SectionWriter::fail() const {
  throw Error(
      fmt::format("cannot write the temporary file of the {} in {} after {} bytes: {}; it takes {}: free "
                  "some space or choose "
                  "a directory on another disk",
                  what_, directory_, written_, std::strerror(errno), takes_));
}

}  // namespace performer::data
