// SPDX-License-Identifier: Apache-2.0
// NumPy's files: the header of an .npy array, and .npz, a zip archive of such arrays.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "performer/base/files.h"

namespace performer {

// What stands before the values of an array in an .npy file. `type` is NumPy's: "<f4", "<f2", "<i8", "<U12".
// The values follow row by row. Source: numpy.lib.format, version 1.0 of the format.
std::string npy_header(const std::string& type, const std::vector<int64_t>& shape);

// Texts as a "<U" array: type, and four bytes a character. Bytes that are not UTF-8 become U+FFFD.
struct NumpyTexts {
  std::string type, values;
};
NumpyTexts numpy_texts(const std::vector<std::string>& texts);

// One member of an archive after the other, stored as they are (numpy.savez does the same). Members and
// archives of 4 GiB and more use ZIP64. Source: PKWARE's APPNOTE 6.3.
class ZipWriter {
 public:
  explicit ZipWriter(AtomicFile& out) : out_(out) {}

  // `produce` hands all bytes of the member to its argument, piece by piece; it is called twice, for the
  // checksum and for the bytes, and must produce the same.
  using Bytes = std::function<void(std::string_view)>;
  void add(const std::string& name, const std::function<void(const Bytes&)>& produce);
  void finish();  // the directory of the archive; the file is not committed

 private:
  struct Member {
    std::string name;
    uint32_t checksum = 0;
    uint64_t size = 0, offset = 0;
  };
  void write(std::string_view bytes);

  AtomicFile& out_;
  std::vector<Member> members_;
  uint64_t written_ = 0;
};

}  // namespace performer
