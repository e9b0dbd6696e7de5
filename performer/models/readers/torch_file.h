// SPDX-License-Identifier: Apache-2.0
// Files of torch.save(): pytorch_model.bin, *.pt, *.pth. Tensors and plain data alone; nothing in a file is
// run.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "performer/models/readers/stored.h"

namespace performer {

// Whether the bytes begin like a file of torch.save(), of the zip format or the one before version 1.6.
bool is_torch_file(std::span<const std::byte> bytes);

// Both formats. Tensors that share memory in the file share it here. Throws InputError naming the file and
// what is wrong: truncated, damaged, of another byte order, TorchScript, or with anything that is no plain
// data.
StoredModel read_torch_file(const std::string& path);
StoredModel parse_torch_file(std::span<const std::byte> bytes, const std::string& source);

}  // namespace performer
