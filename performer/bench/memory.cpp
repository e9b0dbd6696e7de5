// SPDX-License-Identifier: Apache-2.0
#include "performer/bench/memory.h"

#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace performer::bench {
namespace {

int64_t held = 0, most = 0, measurement = 0;  // guarded by `mutex`, like the blocks

struct Block {
  c10::DataPtr memory;
  int64_t bytes = 0, measurement = 0;
};

// By address: the context of a block must be its address, since LibTorch frees some blocks by that alone.
std::mutex mutex;
std::unordered_map<void*, Block>& blocks() {
  static auto* const all = new std::unordered_map<void*, Block>();  // outlives every block
  return *all;
}

void free_block(void* address) {
  Block block;
  const std::lock_guard lock(mutex);
  const auto found = blocks().find(address);
  if (found == blocks().end()) return;
  block = std::move(found->second);
  blocks().erase(found);
  if (block.measurement == measurement) held -= block.bytes;
}

// Counts on the way to the allocator that was there. Its blocks may outlive its use, so it is never
// destroyed.
class CountingAllocator final : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* real) : real_(real) {}

  c10::DataPtr allocate(size_t bytes) override {
    Block block{real_->allocate(bytes), static_cast<int64_t>(bytes)};
    void* const address = block.memory.get();
    const c10::Device device = block.memory.device();
    if (address == nullptr) return std::move(block.memory);
    const std::lock_guard lock(mutex);
    block.measurement = measurement;
    held += block.bytes;
    most = std::max(most, held);
    blocks().emplace(address, std::move(block));
    return {address, address, free_block, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return free_block; }
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
  const auto reset = [] {
    const std::lock_guard lock(mutex);
    ++measurement;  // blocks of earlier ones may still be alive
    held = most = 0;
  };
  reset();
  work();
  const std::lock_guard lock(mutex);
  return most;
}

}  // namespace performer::bench
