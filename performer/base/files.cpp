// SPDX-License-Identifier: Apache-2.0
#include "performer/base/files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "performer/base/error.h"

namespace performer {
namespace fs = std::filesystem;

namespace {

// The names of files that are being written, for remove_unfinished_files(). A signal handler reads them, so
// that they lie in fixed places; more files at once than there are places are not removed.
constexpr size_t kPlaces = 64;
std::array<std::atomic<const char*>, kPlaces> unfinished{};
static_assert(std::atomic<const char*>::is_always_lock_free);

void remember(const char* name) {
  for (auto& place : unfinished) {
    const char* none = nullptr;
    if (place.compare_exchange_strong(none, name)) return;
  }
}

void forget(const char* name) {
  for (auto& place : unfinished) {
    const char* found = name;
    if (place.compare_exchange_strong(found, nullptr)) return;
  }
}

// Where a path leads when it is a link, also one to a file that is not there yet; else the path.
std::string behind_links(std::string path) {
  constexpr int kMostLinks = 40;  // as Linux allows
  std::error_code error;
  for (int i = 0; i < kMostLinks && fs::is_symlink(path, error); ++i) {
    const fs::path target = fs::read_symlink(path, error);
    if (error) return path;
    path = (fs::path(path).parent_path() / target).string();  // an absolute target replaces the path
  }
  return path;
}

}  // namespace

void remove_unfinished_files() noexcept {
  for (const auto& place : unfinished) {
    if (const char* name = place.load()) ::unlink(name);
  }
}

AtomicFile::AtomicFile(std::string path)
    : path_(std::move(path)),
      target_(behind_links(path_)),
      aside_(fmt::format("{}.tmp-{}", target_, getpid())) {
  ::unlink(aside_.c_str());  // what an earlier process with the same number left
  remember(aside_.c_str());
  descriptor_ = ::open(aside_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);  // less the umask
  const int reason = errno;
  if (descriptor_ < 0) forget(aside_.c_str());
  check(descriptor_ >= 0, "cannot write {}: {}", path_, std::strerror(reason));
  ::flock(descriptor_, LOCK_EX | LOCK_NB);  // shows that it is in use; not all file systems have locks
  struct stat before {};
  if (::stat(target_.c_str(), &before) == 0) ::fchmod(descriptor_, before.st_mode & 07777);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
    ::unlink(aside_.c_str());
  }
  forget(aside_.c_str());
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
  if (::rename(aside_.c_str(), target_.c_str()) != 0) {
    const int reason = errno;
    ::unlink(aside_.c_str());
    throw Error(fmt::format("cannot write {}: {}", path_, std::strerror(reason)));
  }
}

bool same_file(const std::string& a, const std::string& b) {
  struct stat of_a {
  }, of_b{};
  const auto look = [](const std::string& path, struct stat& status) {
    return (path == "-" ? ::fstat(STDIN_FILENO, &status) : ::stat(path.c_str(), &status)) == 0;
  };
  return look(a, of_a) && look(b, of_b) && of_a.st_dev == of_b.st_dev && of_a.st_ino == of_b.st_ino;
}

std::optional<int> descriptor_of(std::string path) {
  constexpr int kMostLinks = 40;
  std::error_code error;
  const std::string own = fmt::format("/proc/{}/fd", getpid());
  for (int i = 0; i < kMostLinks; ++i) {
    const fs::path here(path), folder = here.has_parent_path() ? here.parent_path() : fs::path(".");
    const std::string name = here.filename().string();
    const bool digits = !name.empty() && name.size() < 9 &&
                        std::ranges::all_of(name, [](char letter) { return letter >= '0' && letter <= '9'; });
    if (digits && fs::canonical(folder, error) == own) return std::stoi(name);
    if (!fs::is_symlink(here, error)) return std::nullopt;
    path = (here.parent_path() / fs::read_symlink(here, error)).string();
    if (error) return std::nullopt;
  }
  return std::nullopt;
}

void write_file(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

std::string read_file(const std::string& path, size_t most) {
  std::ifstream stream(path, std::ios::binary);
  check<InputError>(stream.good() && !fs::is_directory(path), "cannot read {}: {}", path,
                    fs::is_directory(path) ? "it is a directory" : std::strerror(errno));
  std::string text;
  for (std::array<char, 1 << 14> part; stream.read(part.data(), part.size()) || stream.gcount() > 0;) {
    text.append(part.data(), static_cast<size_t>(stream.gcount()));
    check<InputError>(text.size() <= most,
                      "{} has more than {} bytes, which is more than a file of its kind has", path, most);
  }
  return text;
}

void make_directories(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  check(!error && fs::is_directory(path), "cannot create the directory {}: {}", path,
        error ? error.message() : "a file of that name exists");
}

namespace {

// Whether a file written aside belongs to nobody any more: the process of its name is gone, and no process,
// of another machine or container for example, holds its lock.
bool is_stale(const fs::path& path, std::string_view number) {
  int process = 0;
  const auto parsed = std::from_chars(number.data(), number.data() + number.size(), process);
  if (parsed.ec != std::errc{} || parsed.ptr != number.data() + number.size()) return false;
  if (process == getpid() || ::kill(process, 0) == 0 || errno != ESRCH) return false;
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  const bool held = descriptor >= 0 && ::flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  if (descriptor >= 0) ::close(descriptor);
  return !held;
}

// Removes stale files of `directory`, only those written aside for `name` where that is not empty.
void remove_stale(const fs::path& directory, const std::string& of) {
  constexpr std::string_view kMark = ".tmp-";
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    const size_t mark = name.rfind(kMark);
    if (mark == std::string::npos || (!of.empty() && name.substr(0, mark) != of)) continue;
    if (is_stale(entry.path(), std::string_view(name).substr(mark + kMark.size()))) {
      fs::remove(entry.path(), error);
    }
  }
}

}  // namespace

void remove_stale_files(const std::string& directory) {
  remove_stale(directory, "");
}

void remove_stale_files_of(const std::string& path) {
  const fs::path target(behind_links(path));
  remove_stale(target.has_parent_path() ? target.parent_path() : fs::path("."), target.filename().string());
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
