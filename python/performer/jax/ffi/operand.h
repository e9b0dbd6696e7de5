// SPDX-License-Identifier: Apache-2.0
// Buffers of a call as the kernels want them.
//
// jax.vmap (vmap_method "expand_dims") puts dimensions in front of all buffers: of the mapped size where a
// buffer is mapped, and 1 where it is not. Results have them in full.
#pragma once

#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include <xla/ffi/api/ffi.h>

#include "performer/base/error.h"
#include "performer/kernels/favor.h"

// Makes a handler visible outside of the library; before XLA_FFI_DEFINE_HANDLER_SYMBOL.
#define PERFORMER_EXPORT_HANDLER(name) \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* name(XLA_FFI_CallFrame* call_frame)

namespace performer::jax_ffi {

inline int64_t product(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

// A buffer of a fixed number of dimensions behind those of jax.vmap. One without elements stands for an
// optional argument that was not given.
class Operand {
 public:
  Operand(const xla::ffi::AnyBuffer& buffer, size_t rank, const char* name) : data_(buffer.untyped_data()) {
    const auto sizes = buffer.dimensions();
    check<UsageError>(sizes.size() >= rank, "{} needs at least {} dimensions, found {}", name, rank,
                      sizes.size());
    mapped_.assign(sizes.begin(), sizes.end() - static_cast<int64_t>(rank));
    sizes_.assign(sizes.end() - static_cast<int64_t>(rank), sizes.end());
    element_ = xla::ffi::ByteWidth(buffer.element_type());
    type_ = buffer.element_type();
  }

  int64_t size(size_t dimension) const { return sizes_[dimension]; }
  const std::vector<int64_t>& mapped() const { return mapped_; }
  bool given() const { return product(sizes_) > 0; }
  xla::ffi::DataType element_type() const { return type_; }

  // Where entry n of the dimensions `all` of jax.vmap begins.
  void* entry(int64_t n, const std::vector<int64_t>& all) const {
    int64_t place = 0, stride = 1;
    for (size_t i = all.size(); i-- > 0;) {
      if (mapped_[i] > 1) place += n % all[i] * stride;
      n /= all[i];
      stride *= mapped_[i];
    }
    return static_cast<char*>(data_) + place * product(sizes_) * static_cast<int64_t>(element_);
  }
  // nullptr if it was not given.
  template <class T>
  T* optional(int64_t n, const std::vector<int64_t>& all) const {
    return given() ? static_cast<T*>(entry(n, all)) : nullptr;
  }

  // Whether the entries of all of jax.vmap and of the batch of `batch` sequences lie behind each other.
  bool whole(const std::vector<int64_t>& all, int64_t batch) const {
    return mapped_ == all && sizes_[0] == batch;
  }
  bool shared() const { return product(mapped_) == 1 && sizes_[0] <= 1; }

  // [B, T, H, size].
  kernels::View view(int64_t n, const std::vector<int64_t>& all) const {
    return {entry(n, all), data_type(), sizes_[1] * sizes_[2] * sizes_[3], sizes_[2] * sizes_[3], sizes_[3]};
  }
  kernels::DataType data_type() const {
    switch (type_) {
      case xla::ffi::DataType::BF16:
        return kernels::DataType::bfloat16;
      case xla::ffi::DataType::F16:
        return kernels::DataType::float16;
      case xla::ffi::DataType::F64:
        return kernels::DataType::float64;
      case xla::ffi::DataType::F32:
        return kernels::DataType::float32;
      default:
        throw UsageError("attention takes float32, bfloat16, float16 and float64");
    }
  }

 private:
  void* data_;
  size_t element_ = 0;
  xla::ffi::DataType type_{};
  std::vector<int64_t> mapped_, sizes_;
};

// Runs a handler's body; what it throws becomes the error that Python sees.
template <class Body>
xla::ffi::Error reported(const Body& body) {
  try {
    body();
  } catch (const UsageError& error) {
    return xla::ffi::Error::InvalidArgument(error.what());
  } catch (const std::exception& error) {
    return xla::ffi::Error::Internal(error.what());
  }
  return xla::ffi::Error::Success();
}

}  // namespace performer::jax_ffi
