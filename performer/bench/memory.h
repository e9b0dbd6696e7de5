// SPDX-License-Identifier: Apache-2.0
// Memory of tensors that a piece of work needs.
#pragma once

#include <cstdint>
#include <functional>

namespace performer::bench {

// The most bytes that tensors made by `work` held at one time. Tensors from before do not count, whether they
// are used or freed; nor does what libraries allocate by other means than LibTorch's allocator of the CPU.
// Not for two threads at once.
int64_t peak_tensor_bytes(const std::function<void()>& work);

}  // namespace performer::bench
