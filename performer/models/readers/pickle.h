// SPDX-License-Identifier: Apache-2.0
// Python's pickle format without Python: plain data and tensors, nothing else. No class is looked up and
// nothing is called; what is neither a container, a number, a text nor a tensor of torch.save() is an error.
// Source: Lib/pickletools.py of CPython, protocols 0 to 5, of which the binary opcodes are read.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "performer/models/readers/stored.h"

namespace performer {

// What a tensor of a pickle lies in: numbers of one type. `type` is the name of torch's class, without
// "Storage": Float, Half, Long ... Returns a tensor [count].
struct StorageName {
  at::ScalarType type;
  std::string key;
  int64_t count = 0;
};
using LoadStorage = std::function<at::Tensor(const StorageName&)>;

// The tensors and scalars of a pickle, named as StoredModel says; tensors are views of what `load` returns.
// An object with attributes (argparse.Namespace) counts as a dictionary. `used`, unless null, becomes the
// number of bytes read: a file may hold several pickles. Throws InputError naming `source` and what is wrong:
// truncated, an opcode or a class that plain weights do not need (with its name), a tensor that leaves its
// storage, containers nested more than 64 deep, more than 2^21 values.
StoredModel read_pickle(std::span<const std::byte> bytes, const LoadStorage& load, const std::string& source,
                        size_t* used = nullptr);
// The root of a pickle that is a list of texts, such as the keys behind a file of the old format.
std::vector<std::string> read_pickled_texts(std::span<const std::byte> bytes, const std::string& source,
                                            size_t* used);

}  // namespace performer
