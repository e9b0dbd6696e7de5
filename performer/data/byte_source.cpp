// SPDX-License-Identifier: Apache-2.0
#include "performer/data/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "performer/base/error.h"

namespace performer::data {
namespace {

class FileSource final : public ByteSource {
 public:
  explicit FileSource(const std::string& path) : name_(source_name(path)), owned_(path != "-") {
    if (owned_) descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    check<InputError>(descriptor_ >= 0, "cannot read {}: {}", name_, std::strerror(errno));
    struct stat status {};
    if (::fstat(descriptor_, &status) == 0 && S_ISDIR(status.st_mode)) {
      close();
      throw InputError(fmt::format("cannot read {}: it is a directory, expected a file", name_));
    }
  }
  ~FileSource() override { close(); }
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;

  size_t read(char* buffer, size_t size) override {
    while (true) {
      const ssize_t count = ::read(descriptor_, buffer, size);
      if (count >= 0) return static_cast<size_t>(count);
      check<InputError>(errno == EINTR, "cannot read {}: {}", name_, std::strerror(errno));
    }
  }

 private:
  void close() {
    if (owned_ && descriptor_ >= 0) ::close(descriptor_);
  }

  std::string name_;
  bool owned_;
  int descriptor_ = STDIN_FILENO;
};

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::string_view bytes) : left_(bytes) {}
  size_t read(char* buffer, size_t size) override {
    const size_t count = left_.copy(buffer, size);
    left_.remove_prefix(count);
    return count;
  }

 private:
  std::string_view left_;
};

}  // namespace

std::string source_name(const std::string& path) {
  return path == "-" ? "standard input" : path;
}

std::unique_ptr<ByteSource> open_bytes(const std::string& path) {
  return std::make_unique<FileSource>(path);
}

std::unique_ptr<ByteSource> memory_bytes(std::string_view bytes) {
  return std::make_unique<MemorySource>(bytes);
}

std::string_view PeekedSource::peek(size_t size) {
  if (ahead_.size() < begin_ + size) ahead_.resize(begin_ + size);
  while (end_ - begin_ < size) {
    const size_t count = source_->read(ahead_.data() + end_, begin_ + size - end_);
    if (count == 0) break;
    end_ += count;
  }
  return {ahead_.data() + begin_, std::min(size, end_ - begin_)};
}

size_t PeekedSource::read(char* buffer, size_t size) {
  if (begin_ == end_) return source_->read(buffer, size);
  const size_t count = std::min(size, end_ - begin_);
  std::memcpy(buffer, ahead_.data() + begin_, count);
  begin_ += count;
  if (begin_ == end_) {
    ahead_ = {};
    begin_ = end_ = 0;
  }
  return count;
}

std::string read_all(ByteSource& source, const std::string& name, size_t most) {
  std::string bytes;
  size_t size = 0;  // of what was read; the string has room for more
  while (true) {
    if (bytes.size() - size < kReadBytes / 2) bytes.resize(size + std::max(kReadBytes, size / 2));
    const size_t count = source.read(bytes.data() + size, bytes.size() - size);
    size += count;
    check<InputError>(size <= most, "{} has more than {} bytes, which is more than a file of its kind has",
                      name, most);
    if (count > 0) continue;
    bytes.resize(size);
    return bytes;
  }
}

}  // namespace performer::data
