// SPDX-License-Identifier: Apache-2.0
#include "cli/output.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>

#include "performer/base/error.h"

namespace performer::cli {
namespace fs = std::filesystem;

namespace {
constexpr size_t kBufferSize = 1 << 16;
}

Output::Output(const std::string& path) : path_(path.empty() || path == "-" ? "standard output" : path) {
  if (path_ != path) {
    descriptor_ = STDOUT_FILENO;
    return;
  }
  // What is open already is written to as it is: its place in the file stays, and no right to open it again
  // is needed.
  if (const std::optional<int> open = descriptor_of(path)) {
    descriptor_ = ::fcntl(*open, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    check(descriptor_ >= 0, "cannot write {}: {}", path, std::strerror(errno));
    return;
  }
  std::error_code unknown;
  const fs::file_status status = fs::status(path, unknown);
  check(!fs::is_directory(status), "cannot write {}: it is a directory", path);
  if (!fs::exists(status) || fs::is_regular_file(status)) {
    remove_stale_files_of(path);
    file_.emplace(path);
    return;
  }
  descriptor_ = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  check(descriptor_ >= 0, "cannot write {}: {}", path, std::strerror(errno));
}

Output::~Output() {
  if (descriptor_ > STDERR_FILENO) ::close(descriptor_);
}

void Output::write(std::string_view text) {
  buffer_ += text;
  if (buffer_.size() >= kBufferSize) flush();
}

void Output::flush() {
  if (file_) {
    file_->write(buffer_);
  } else {
    for (std::string_view rest = buffer_; !rest.empty();) {
      const ssize_t written = ::write(descriptor_, rest.data(), rest.size());
      if (written < 0 && errno == EINTR) continue;
      check(written >= 0, "cannot write {}: {}", path_,
            errno == EBADF ? "it is closed" : std::strerror(errno));
      rest.remove_prefix(static_cast<size_t>(written));
    }
  }
  buffer_.clear();
}

void Output::finish() {
  flush();
  if (file_) file_->commit();
}

OutputFolder::OutputFolder(const std::string& path) : path_(path), made_(!fs::exists(path)) {
  make_directories(path_);
}

OutputFolder::~OutputFolder() {
  std::error_code ignored;  // somebody else may have put a file into it: then it stays
  if (made_ && empty_) fs::remove(path_, ignored);
}

void OutputFolder::write(const std::string& name, std::string_view text) {
  write_file(place(name), text);
}

std::string OutputFolder::place(const std::string& name) {
  empty_ = false;
  return (fs::path(path_) / name).string();
}

}  // namespace performer::cli
