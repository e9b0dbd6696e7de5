// SPDX-License-Identifier: Apache-2.0
// The activations of a long sequence between two layers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace performer {

// Rows [length, width] of float32. More than `most_in_memory` bytes lie in an unlinked temporary file in
// `folder`, which is gone when the store is, however the program ends; nothing is rounded in either place.
// Throws Error when the file cannot be made, written or read.
class ActivationStore {
 public:
  static constexpr int64_t kMostInMemory = int64_t{256} << 20;

  ActivationStore(int64_t length, int64_t width, const std::string& folder,
                  int64_t most_in_memory = kMostInMemory);
  ~ActivationStore();
  ActivationStore(const ActivationStore&) = delete;
  ActivationStore& operator=(const ActivationStore&) = delete;

  // Rows first .. first + C - 1 as [C, width], a copy.
  at::Tensor read(int64_t first, int64_t count) const;
  void write(int64_t first, const at::Tensor& rows);
  bool on_disk() const { return descriptor_ >= 0; }

 private:
  int64_t width_;
  std::string folder_;
  at::Tensor rows_;      // undefined on disk
  int descriptor_ = -1;  // in memory
};

}  // namespace performer
