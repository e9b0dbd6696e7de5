// SPDX-License-Identifier: Apache-2.0
#include "performer/models/readers/byte_cursor.h"

#include <ATen/Functions.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace performer {

at::Tensor tensor_of_bytes(std::span<const std::byte> bytes, const std::vector<int64_t>& shape,
                           at::ScalarType type, const std::string& name, const std::string& source) {
  auto size = static_cast<int64_t>(at::elementSize(type));
  bool fits = true, empty = false;
  for (const int64_t extent : shape) {  // strides are made of all extents but those of 0
    fits = fits && extent >= 0;
    empty = empty || extent == 0;
    if (extent > 0) fits = fits && !__builtin_mul_overflow(size, extent, &size);
  }
  check<InputError>(fits && bytes.size() == static_cast<uint64_t>(empty ? 0 : size),
                    "{}: tensor '{}' of type {} and shape [{}] does not fill its {} bytes", source, name,
                    c10::toString(type), fmt::join(shape, ", "), bytes.size());
  if (type == at::kBool) {  // any other byte in a bool is undefined behaviour
    const bool valid = std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b <= std::byte{1}; });
    check<InputError>(valid, "{}: tensor '{}' of truth values has a byte that is neither 0 nor 1", source,
                      name);
  }
  at::Tensor tensor = at::empty(shape, type);
  if (!bytes.empty()) std::memcpy(tensor.data_ptr(), bytes.data(), bytes.size());
  return tensor;
}

}  // namespace performer
