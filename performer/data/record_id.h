// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace performer::data {

// The id of a record that has no name but that of its file: without folders, each white space written '_', so
// that it fits into a column of a table.
inline std::string record_id(std::string_view path) {
  std::string id(path.substr(path.find_last_of('/') + 1));
  for (char& letter : id) {
    if (static_cast<unsigned char>(letter) <= ' ' || letter == 127) letter = '_';
  }
  return id;
}

}  // namespace performer::data
