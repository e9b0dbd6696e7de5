// SPDX-License-Identifier: Apache-2.0
// The safetensors file format, read through a memory map and written aside: eight bytes with the header's
// size, a JSON header {name: {dtype, shape, data_offsets}}, the data. Source: the format section of the
// safetensors README.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace performer {

struct TensorFile {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

// Throws InputError naming the file and what is wrong: truncated, header not JSON, offsets that overlap,
// leave gaps or leave the file, unknown type, size that does not match the shape. Tensors own their memory.
TensorFile read_safetensors(const std::string& path);
// The same for bytes in memory; `source` names them in messages.
TensorFile parse_safetensors(std::span<const std::byte> bytes, const std::string& source);
// The metadata alone: only the header is looked at. Throws as read_safetensors() does for what is wrong
// there.
std::map<std::string, std::string> read_safetensors_metadata(const std::string& path);
// Atomic. Tensors may be strided and of any of the types f64 f32 f16 bf16 i64 i32 i16 i8 u8 bool; others
// throw Error naming the tensor. Equal contents give equal bytes.
void write_safetensors(const std::string& path, const TensorFile& file);
// What stands before the data of a file with one tensor, for those who write its data piece by piece: the
// header and its size. Throws Error for a type that the format lacks.
std::string safetensors_header(const std::string& name, at::ScalarType type,
                               const std::vector<int64_t>& shape,
                               const std::map<std::string, std::string>& metadata = {});

}  // namespace performer
