// SPDX-License-Identifier: Apache-2.0
#include "performer/base/files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "performer/base/error.h"

namespace performer {
namespace fs = std::filesystem;

AtomicFile::AtomicFile(std::string path)
    : path_(std::move(path)), aside_(fmt::format("{}.tmp-{}", path_, getpid())) {
  descriptor_ = ::open(aside_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  check(descriptor_ >= 0, "cannot write {}: {}", path_, std::strerror(errno));
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
    ::unlink(aside_.c_str());
  }
}

void AtomicFile::write(const void* data, size_t size) {
  const char* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(descriptor_, bytes, size);
    if (written < 0 && errno == EINTR) continue;
    check(written >= 0, "cannot write {}: {}; the previous contents are untouched", path_,
          std::strerror(errno));
    bytes += written;
    size -= static_cast<size_t>(written);
  }
}

void AtomicFile::commit() {
  const bool flushed =
      ::fsync(descriptor_) == 0 || errno == EINVAL || errno == EROFS;  // pipes cannot be synced
  check(flushed, "cannot write {}: {}; the previous contents are untouched", path_, std::strerror(errno));
  ::close(std::exchange(descriptor_, -1));
  if (::rename(aside_.c_str(), path_.c_str()) != 0) {
    const int reason = errno;
    ::unlink(aside_.c_str());
    throw Error(fmt::format("cannot write {}: {}", path_, std::strerror(reason)));
  }
}

void write_file(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  check<InputError>(stream.good() && !fs::is_directory(path), "cannot read {}: {}", path,
                    fs::is_directory(path) ? "it is a directory" : std::strerror(errno));
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

void make_directories(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  check(!error && fs::is_directory(path), "cannot create the directory {}: {}", path,
        error ? error.message() : "a file of that name exists");
}

void remove_stale_files(const std::string& directory) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    const size_t mark = name.rfind(".tmp-");
    if (mark == std::string::npos) continue;
    int process = 0;
    const auto parsed = std::from_chars(name.data() + mark + 5, name.data() + name.size(), process);
    if (parsed.ec != std::errc{} || parsed.ptr != name.data() + name.size()) continue;
    if (process != getpid() && ::kill(process, 0) != 0 && errno == ESRCH) fs::remove(entry.path(), error);
  }
}

MappedFile::MappedFile(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check<InputError>(descriptor >= 0, "cannot read {}: {}", path, std::strerror(errno));
  struct stat status {};
  const bool regular = ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  size_ = regular ? static_cast<size_t>(status.st_size) : 0;
  void* map = size_ > 0 ? ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0) : nullptr;
  const int reason = errno;
  ::close(descriptor);
  check<InputError>(regular, "cannot read {}: it is not a regular file", path);
  check<InputError>(map != MAP_FAILED, "cannot map {}: {}", path, std::strerror(reason));
  data_ = static_cast<const std::byte*>(map);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

uint64_t stable_hash(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001b3;
  hash ^= hash >> 33;
  hash *= 0xff51afd7ed558ccd;
  hash ^= hash >> 33;
  hash *= 0xc4ceb9fe1a85ec53;
  return hash ^ hash >> 33;
}

}  // namespace performer
