// SPDX-License-Identifier: Apache-2.0
#include "performer/models/safetensors.h"

#include <ATen/Functions.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/data/json.h"

namespace performer {
namespace {

using nlohmann::json;
static_assert(std::endian::native == std::endian::little,
              "the format is little-endian; bytes are copied as they are");

constexpr uint64_t kPrefix = 8;                 // bytes that hold the header's size
constexpr uint64_t kLargestHeader = 100 << 20;  // the limit of the reference implementation
constexpr const char* kMetadataKey = "__metadata__";

struct TypeName {
  const char* name;
  at::ScalarType type;
};
constexpr TypeName kTypes[] = {{"F64", at::kDouble},    {"F32", at::kFloat}, {"F16", at::kHalf},
                               {"BF16", at::kBFloat16}, {"I64", at::kLong},  {"I32", at::kInt},
                               {"I16", at::kShort},     {"I8", at::kChar},   {"U8", at::kByte},
                               {"BOOL", at::kBool}};

std::optional<at::ScalarType> type_of(const std::string& name) {
  for (const auto& entry : kTypes) {
    if (name == entry.name) return entry.type;
  }
  return std::nullopt;
}

const char* name_of(at::ScalarType type) {
  for (const auto& entry : kTypes) {
    if (type == entry.type) return entry.name;
  }
  return nullptr;
}

// What the header says about one tensor, checked by itself.
struct Entry {
  std::string name;
  at::ScalarType type;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // within the data
};

uint64_t read_header_size(std::span<const std::byte> bytes, const std::string& source) {
  check<InputError>(bytes.size() >= kPrefix,
                    "{} is not a safetensors file: it has {} bytes, fewer than the {} of the header's size",
                    source, bytes.size(), kPrefix);
  uint64_t size = 0;
  std::memcpy(&size, bytes.data(), kPrefix);
  check<InputError>(size <= kLargestHeader,
                    "{} is not a safetensors file: its header would have {} bytes, more than {}", source,
                    size, kLargestHeader);
  check<InputError>(size <= bytes.size() - kPrefix,
                    "{} is truncated or not a safetensors file: its header needs {} bytes, {} are there",
                    source, size, bytes.size() - kPrefix);
  return size;
}

bool is_size(const json& value) {
  return value.is_number_unsigned() &&
         value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
}

// Bytes that a tensor of this shape and type takes; nothing when that exceeds 63 bits.
std::optional<uint64_t> byte_size(const Entry& entry) {
  int64_t size = static_cast<int64_t>(at::elementSize(entry.type));
  bool empty = false;
  for (const int64_t extent : entry.shape) {
    if (extent == 0) empty = true;  // strides are made of the other extents, which must fit all the same
    if (extent != 0 && __builtin_mul_overflow(size, extent, &size)) return std::nullopt;
  }
  return empty ? 0 : static_cast<uint64_t>(size);
}

Entry parse_entry(const std::string& name, const json& value, const std::string& source) {
  check<InputError>(value.is_object() && value.size() == 3 && value.contains("dtype") &&
                        value.contains("shape") && value.contains("data_offsets"),
                    "{}: the header's entry of tensor '{}' must have exactly dtype, shape and data_offsets",
                    source, name);
  const json& dtype = value["dtype"];
  check<InputError>(dtype.is_string(), "{}: the dtype of tensor '{}' is not a text", source, name);
  const auto type = type_of(dtype.get_ref<const std::string&>());
  check<InputError>(
      type.has_value(),
      "{}: tensor '{}' has the unknown type {}; known are F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL", source,
      name, dtype.get_ref<const std::string&>());
  Entry entry{name, *type, {}, 0, 0};

  const json& shape = value["shape"];
  check<InputError>(
      shape.is_array() && shape.size() <= 64 && std::all_of(shape.begin(), shape.end(), is_size),
      "{}: the shape of tensor '{}' must be a list of at most 64 sizes", source, name);
  for (const json& extent : shape) entry.shape.push_back(extent.get<int64_t>());

  const json& offsets = value["data_offsets"];
  check<InputError>(offsets.is_array() && offsets.size() == 2 && is_size(offsets[0]) && is_size(offsets[1]),
                    "{}: the data_offsets of tensor '{}' must be two sizes", source, name);
  entry.begin = offsets[0].get<uint64_t>();
  entry.end = offsets[1].get<uint64_t>();
  const auto expected = byte_size(entry);
  check<InputError>(expected && entry.begin <= entry.end && entry.end - entry.begin == *expected,
                    "{}: tensor '{}' of type {} and shape [{}] does not fill its bytes {} to {}", source,
                    name, name_of(entry.type), fmt::join(entry.shape, ", "), entry.begin, entry.end);
  return entry;
}

json parse_header(std::span<const std::byte> bytes, const std::string& source) {
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  json header = json::parse(text, text + bytes.size(), nullptr, /*allow_exceptions=*/false);
  check<InputError>(header.is_object(), "{} is not a safetensors file: its header is not a JSON object",
                    source);
  return header;
}

std::map<std::string, std::string> parse_metadata(const json& value, const std::string& source) {
  std::map<std::string, std::string> metadata;
  check<InputError>(value.is_object(), "{}: {} must map texts to texts", source, kMetadataKey);
  for (const auto& [key, text] : value.items()) {
    check<InputError>(text.is_string(), "{}: {} must map texts to texts; '{}' does not", source, kMetadataKey,
                      key);
    metadata[key] = text.get<std::string>();
  }
  return metadata;
}

at::Tensor copy_tensor(const Entry& entry, std::span<const std::byte> data, const std::string& source) {
  at::Tensor tensor = at::empty(entry.shape, entry.type);
  const auto bytes = data.subspan(entry.begin, entry.end - entry.begin);
  if (entry.type == at::kBool) {  // any other byte in a bool is undefined behaviour
    const bool valid = std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b <= std::byte{1}; });
    check<InputError>(valid, "{}: tensor '{}' of type BOOL has a byte that is neither 0 nor 1", source,
                      entry.name);
  }
  if (!bytes.empty()) std::memcpy(tensor.data_ptr(), bytes.data(), bytes.size());
  return tensor;
}

// The header as it stands in a file, behind its size. `source` names the file in messages.
std::string packed_header(const json& header, const std::string& source) {
  std::string text;
  try {
    text = header.dump();
  } catch (const json::exception& error) {
    throw Error(fmt::format("cannot write {}: a name or metadata text is not UTF-8 ({})", source,
                            data::json_fault(error)));
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data starts at a multiple of eight bytes
  const uint64_t size = text.size();
  return std::string(reinterpret_cast<const char*>(&size), kPrefix) + text;
}

}  // namespace

TensorFile parse_safetensors(std::span<const std::byte> bytes, const std::string& source) {
  const uint64_t header_size = read_header_size(bytes, source);
  const json header = parse_header(bytes.subspan(kPrefix, header_size), source);
  const auto data = bytes.subspan(kPrefix + header_size);

  TensorFile file;
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name == kMetadataKey) {
      file.metadata = parse_metadata(value, source);
    } else {
      entries.push_back(parse_entry(name, value, source));
    }
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (const Entry& entry : entries) {
    check<InputError>(entry.end <= data.size(),
                      "{} is truncated: tensor '{}' ends at byte {} of the data, which has {}", source,
                      entry.name, entry.end, data.size());
    check<InputError>(entry.begin == covered,
                      "{}: tensor '{}' starts at byte {} of the data, expected {}: tensors {}", source,
                      entry.name, entry.begin, covered, entry.begin < covered ? "overlap" : "leave a gap");
    covered = entry.end;
    file.tensors[entry.name] = copy_tensor(entry, data, source);
  }
  check<InputError>(covered == data.size(), "{} has {} bytes after its last tensor", source,
                    data.size() - covered);
  return file;
}

std::map<std::string, std::string> read_safetensors_metadata(const std::string& path) {
  const MappedFile map(path);
  const std::span bytes(map.data(), map.size());
  const json header = parse_header(bytes.subspan(kPrefix, read_header_size(bytes, path)), path);
  const auto found = header.find(kMetadataKey);
  return found == header.end() ? std::map<std::string, std::string>{} : parse_metadata(*found, path);
}

TensorFile read_safetensors(const std::string& path) {
  const MappedFile map(path);
  return parse_safetensors({map.data(), map.size()}, path);
}

std::string safetensors_header(const std::string& name, at::ScalarType type,
                               const std::vector<int64_t>& shape,
                               const std::map<std::string, std::string>& metadata) {
  check(name_of(type) != nullptr && name != kMetadataKey, "safetensors cannot hold '{}' of type {}", name,
        at::toString(type));
  const auto size = byte_size({name, type, shape});
  check(size.has_value(), "safetensors cannot hold '{}': its size exceeds 63 bits", name);
  json header = json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  header[name] = {{"dtype", name_of(type)}, {"shape", shape}, {"data_offsets", {uint64_t{0}, *size}}};
  return packed_header(header, name);
}

void write_safetensors(const std::string& path, const TensorFile& file) {
  std::vector<std::pair<std::string, at::Tensor>> tensors(file.tensors.begin(), file.tensors.end());
  for (const auto& [name, tensor] : tensors) {
    check(tensor.defined() && name_of(tensor.scalar_type()) != nullptr && name != kMetadataKey,
          "cannot write {}: tensor '{}' {}", path, name,
          name == kMetadataKey ? "has the name of the metadata"
          : tensor.defined()   ? "is of a type that the format lacks"
                               : "is undefined");
  }
  // Wide types first: then every tensor is aligned to its own type, as other readers of the format expect.
  std::stable_sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return a.second.element_size() > b.second.element_size();
  });

  json header = json::object();
  if (!file.metadata.empty()) header[kMetadataKey] = file.metadata;
  uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    const uint64_t end = offset + tensor.nbytes();
    header[name] = {{"dtype", name_of(tensor.scalar_type())},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {offset, end}}};
    offset = end;
  }
  AtomicFile out(path);
  out.write(packed_header(header, path));
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor dense = tensor.detach().to(at::kCPU).contiguous();
    out.write(dense.data_ptr(), dense.nbytes());
  }
  out.commit();
}

}  // namespace performer
