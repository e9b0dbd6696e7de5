// SPDX-License-Identifier: Apache-2.0
// libFuzzer entry: whatever the bytes are, as a file of torch.save() and as a pickle alone, the reader
// returns tensors or throws InputError; it never crashes, runs nothing, and takes no more memory than the
// bytes pay for.
#include <ATen/Functions.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>

#include "performer/base/error.h"
#include "performer/models/readers/pickle.h"
#include "performer/models/readers/torch_file.h"

namespace performer::pickle_fuzz {

// Reads every number of every tensor: a view that leaves its storage would be seen by the sanitizers.
inline void read_all(const StoredModel& stored) {
  for (const auto& [name, tensor] : stored.tensors) {
    if (tensor.numel() != tensor.contiguous().numel()) std::abort();
  }
}

inline at::Tensor small_storage(const StorageName& name) {
  check<InputError>(name.count <= 1024, "a storage of {} elements", name.count);
  return at::zeros({name.count}, name.type);
}

}  // namespace performer::pickle_fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    performer::pickle_fuzz::read_all(performer::parse_torch_file(bytes, "fuzz"));
  } catch (const performer::InputError&) {
    // The expected answer to damaged bytes.
  }
  try {
    performer::pickle_fuzz::read_all(
        performer::read_pickle(bytes, performer::pickle_fuzz::small_storage, "fuzz"));
  } catch (const performer::InputError&) {
  }
  return 0;
}
