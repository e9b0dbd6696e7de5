// SPDX-License-Identifier: Apache-2.0
// A place in bytes from outside, which is never left: what readers of binary files take numbers from.
#pragma once

#include <ATen/core/Tensor.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "performer/base/error.h"

namespace performer {

class ByteCursor {
 public:
  // `source` names the bytes in messages.
  ByteCursor(std::span<const std::byte> bytes, std::string source)
      : bytes_(bytes), source_(std::move(source)) {}

  size_t left() const { return bytes_.size() - at_; }
  size_t at() const { return at_; }
  const std::string& source() const { return source_; }

  // The next bytes. Throws InputError naming the source, the place and `what` when fewer are left.
  std::span<const std::byte> take(uint64_t count, const char* what) {
    check<InputError>(count <= left(), "{} is truncated: {} needs {} bytes at byte {}, {} are there", source_,
                      what, count, at_, left());
    at_ += count;
    return bytes_.subspan(at_ - count, count);
  }
  std::string_view text(uint64_t count, const char* what) {
    const auto bytes = take(count, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  // A number of the file's byte order, which is that of the machine unless `reversed`.
  template <class T>
  T number(const char* what, bool reversed = false) {
    const auto bytes = take(sizeof(T), what);
    std::byte copy[sizeof(T)];
    for (size_t i = 0; i < sizeof(T); ++i) copy[i] = bytes[reversed ? sizeof(T) - 1 - i : i];
    T value;
    std::memcpy(&value, copy, sizeof(T));
    return value;
  }

 private:
  static_assert(std::endian::native == std::endian::little, "the formats read here are little-endian");
  std::span<const std::byte> bytes_;
  std::string source_;
  size_t at_ = 0;
};

// A tensor that owns a copy of `bytes`. Throws InputError naming `name` unless shape and type fill them.
at::Tensor tensor_of_bytes(std::span<const std::byte> bytes, const std::vector<int64_t>& shape,
                           at::ScalarType type, const std::string& name, const std::string& source);

}  // namespace performer
