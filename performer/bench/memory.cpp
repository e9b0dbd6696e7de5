// SPDX-License-Identifier: Apache-2.0
#include "performer/bench/memory.h"

#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <memory>

namespace performer::bench {
namespace {

std::atomic<int64_t> held{0}, most{0}, measurement{0};

struct Block {
  c10::DataPtr memory;
  int64_t bytes = 0, measurement = 0;
};

void free_block(void* context) {
  const std::unique_ptr<Block> block(static_cast<Block*>(context));
  if (block->measurement == measurement) held -= block->bytes;
}

// Counts on the way to the allocator that was there. Its blocks may outlive its use, so it is never
// destroyed.
class CountingAllocator final : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* real) : real_(real) {}

  c10::DataPtr allocate(size_t bytes) override {
    auto block =
        std::make_unique<Block>(Block{real_->allocate(bytes), static_cast<int64_t>(bytes), measurement});
    const int64_t now = held += block->bytes;
    int64_t before = most.load();
    while (now > before && !most.compare_exchange_weak(before, now)) {
    }
    void* data = block->memory.get();
    const c10::Device device = block->memory.device();
    return {data, block.release(), free_block, device};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  c10::Allocator* real_;
};

}  // namespace

int64_t peak_tensor_bytes(const std::function<void()>& work) {
  c10::Allocator* const real = c10::GetCPUAllocator();
  static auto* const counting = new CountingAllocator(real);
  constexpr uint8_t kAboveOthers = 255;
  struct Scope {
    c10::Allocator* real;
    ~Scope() { c10::SetCPUAllocator(real, kAboveOthers); }
  } scope{real};
  c10::SetCPUAllocator(counting, kAboveOthers);
  ++measurement;  // blocks of earlier ones may still be alive
  held = most = 0;
  work();
  return most;
}

}  // namespace performer::bench
