// SPDX-License-Identifier: Apache-2.0
// Files that are never half-written, and read-only maps of large ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

namespace performer {

// A file written aside ("PATH.tmp-PID") and renamed into place by commit(). Without commit() nothing is left
// behind. Where the path is a link, the file that it leads to is replaced and the link stays. A file that was
// there passes its mode on; a new one has mode 0666 less the umask. Every failure throws Error with the path
// and the system's reason.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void commit();  // flush to disk, then rename

 private:
  std::string path_, target_, aside_;  // target_: behind links
  int descriptor_ = -1;
};

// Removes what every AtomicFile of this process has written aside and not yet committed. For signal handlers
// that end the process: it calls nothing that a handler must not call.
void remove_unfinished_files() noexcept;

// Whether two paths lead to one file: the same device and number, as hard links have too. "-" is standard
// input. False when one of them does not exist.
bool same_file(const std::string& a, const std::string& b);
// The open descriptor that a path stands for, also through links: 1 for /dev/stdout and /proc/self/fd/1,
// 5 for /dev/fd/5. Nothing for other paths.
std::optional<int> descriptor_of(std::string path);

void write_file(const std::string& path, std::string_view text);  // AtomicFile in one call
// Throws InputError when it cannot be read and when it has more than `most` bytes.
std::string read_file(const std::string& path, size_t most = std::numeric_limits<size_t>::max());

// Creates a directory and its parents. Throws Error when that is impossible or the path is a file.
void make_directories(const std::string& path);
// Removes what a killed writer left in `directory`: files named *.tmp-PID whose process is gone and that
// nobody has locked.
void remove_stale_files(const std::string& directory);
// The same for files that were written aside for `path` alone.
void remove_stale_files_of(const std::string& path);

// Read-only memory map of a whole file; empty files give size() == 0.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// 64-bit FNV-1a hash with a final mix; stable across machines and releases.
uint64_t stable_hash(std::string_view bytes);

}  // namespace performer
