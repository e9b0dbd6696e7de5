// SPDX-License-Identifier: Apache-2.0
#include "performer/data/inputs.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>

#include "performer/base/error.h"
#include "performer/data/byte_source.h"

namespace performer::data {
namespace {

namespace fs = std::filesystem;

std::vector<InputFile> files_of(const std::string& folder) {
  std::vector<InputFile> files;
  bool hides = false;  // something that is hidden
  std::error_code error;
  for (fs::recursive_directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const bool hidden = entry->path().filename().native().starts_with('.');
    std::error_code ignored;  // a file that vanished meanwhile, or a link to nothing
    if (hidden && entry->is_directory(ignored)) entry.disable_recursion_pending();
    if (!hidden && entry->is_regular_file(ignored)) files.push_back({entry->path().string(), true});
    hides |= hidden;
  }
  check<InputError>(!error, "cannot read the folder {}: {}", folder, error.message());
  check<InputError>(!files.empty(), "the folder {} has no files{}", folder,
                    hides ? " but hidden ones, whose names begin with '.': give those by name" : "");
  std::ranges::sort(files, {}, &InputFile::path);
  return files;
}

}  // namespace

bool can_be_read_twice(const std::string& path) {
  if (path == "-") return false;
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  return !fs::exists(status) || fs::is_regular_file(status) || fs::is_directory(status);
}

void require_two_passes(const std::vector<std::string>& paths, const std::string& why) {
  for (const std::string& path : paths) {
    check<InputError>(can_be_read_twice(path),
                      "{} can be read only once, and {} takes two passes: store the data in a file first",
                      source_name(path), why);
  }
}

std::vector<InputFile> list_inputs(const std::vector<std::string>& paths) {
  std::vector<InputFile> files;
  std::set<std::string> once;
  for (const std::string& path : paths) {
    if (!can_be_read_twice(path)) {
      check<InputError>(once.insert(path).second, "{} is given twice, but can be read only once",
                        source_name(path));
    }
    std::error_code ignored;
    if (path != "-" && fs::is_directory(path, ignored)) {
      const std::vector<InputFile> found = files_of(path);
      files.insert(files.end(), found.begin(), found.end());
      continue;
    }
    check<InputError>(path == "-" || ::access(path.c_str(), R_OK) == 0, "cannot read {}: {}", path,
                      std::strerror(errno));
    files.push_back({path, false});
  }
  return files;
}

}  // namespace performer::data
