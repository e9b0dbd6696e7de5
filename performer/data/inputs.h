// SPDX-License-Identifier: Apache-2.0
// The files that paths stand for, and what can be said about them before one is read.
#pragma once

#include <string>
#include <vector>

namespace performer::data {

// Whether a path gives the same bytes each time it is opened: a regular file, or a folder, of which regular
// files are read. Not "-" (standard input), pipes, process substitutions (<(...)), named pipes, terminals and
// other devices. True for a path that does not exist: reading it says so.
bool can_be_read_twice(const std::string& path);

// Throws InputError for the first path that cannot be read twice. `why` says what takes two passes: "holding
// sequences out". The message says that the data can be read once only, and to store them in a file first.
void require_two_passes(const std::vector<std::string>& paths, const std::string& why);

// A file to read, and whether it was named or found in a folder.
struct InputFile {
  std::string path;
  bool found = false;
};

// The files that paths stand for, those of a folder by name; what begins with '.' in a folder is hidden.
// Throws InputError for a path that does not exist or may not be read, a folder without files, and for an
// input that can be read only once and is given twice. Opens no file.
std::vector<InputFile> list_inputs(const std::vector<std::string>& paths);

}  // namespace performer::data
