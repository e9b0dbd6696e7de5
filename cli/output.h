// SPDX-License-Identifier: Apache-2.0
// Where a command's data goes: standard output, or a file that appears only when it is complete.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "performer/base/files.h"

namespace performer::cli {

// Opened before the work starts, so that an unwritable place is found at once. "" and "-" are standard
// output; regular files are written aside and renamed by finish(); pipes, devices and descriptors that are
// open already (/dev/stdout) are written directly.
// Without finish() a file is left as it was. Throws Error with the path and the system's reason.
class Output {
 public:
  explicit Output(const std::string& path);
  ~Output();
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  void write(std::string_view text);
  void finish();

 private:
  void flush();

  std::string path_;
  std::optional<AtomicFile> file_;
  int descriptor_ = -1;  // when there is no file_
  std::string buffer_;
};

// A folder for several files. It is made before the work starts, so that an unwritable place is found at
// once, and removed again when it was made here and no file was written into it. Throws as Output does.
class OutputFolder {
 public:
  explicit OutputFolder(const std::string& path);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  // A file that is complete or not there.
  void write(const std::string& name, std::string_view text);
  // The path of a file in it, for who writes files of its own.
  std::string place(const std::string& name);

 private:
  std::string path_;
  bool made_, empty_ = true;
};

}  // namespace performer::cli
