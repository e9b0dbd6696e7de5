// SPDX-License-Identifier: Apache-2.0
#include "performer/models/readers/msgpack.h"

#include <fmt/format.h>

#include <optional>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/models/readers/byte_cursor.h"

namespace performer {
namespace {

constexpr int kDeepestMap = 32;
constexpr int kArrayExtension = 1, kNumberExtension = 3;  // extension types of Flax

struct ArrayType {
  const char* name;
  at::ScalarType type;
};
constexpr ArrayType kArrayTypes[] = {
    {"float32", at::kFloat}, {"float64", at::kDouble}, {"float16", at::kHalf},  {"bfloat16", at::kBFloat16},
    {"int64", at::kLong},    {"int32", at::kInt},      {"int16", at::kShort},   {"int8", at::kChar},
    {"uint8", at::kByte},    {"bool", at::kBool},      {"uint32", at::kUInt32}, {"uint16", at::kUInt16},
    {"uint64", at::kUInt64}};

at::ScalarType array_type(const std::string& name, const std::string& array, const std::string& source) {
  for (const ArrayType& row : kArrayTypes) {
    if (name == row.name) return row.type;
  }
  throw InputError(fmt::format("{}: array '{}' has the unknown type {}", source, array, shown(name)));
}

// What a first byte announces: a kind, and a count or a small number.
enum class FlaxKind { nil, boolean, integer, real, text, bytes, list, map, extension };
struct FlaxHead {
  FlaxKind kind = FlaxKind::nil;
  uint64_t count = 0;  // of elements, pairs or bytes
  int64_t integer = 0;
  double real = 0;
  int extension = 0;
};

class FlaxReader {
 public:
  FlaxReader(std::span<const std::byte> bytes, const std::string& source) : cursor_(bytes, source) {}

  StoredModel all() {
    value("", 0);
    check<InputError>(cursor_.left() == 0, "{} has {} bytes behind its value", cursor_.source(),
                      cursor_.left());
    return std::move(stored_);
  }

 private:
  uint64_t size_of(int bytes) {
    const char* what = "a size";
    if (bytes == 1) return cursor_.number<uint8_t>(what);
    if (bytes == 2) return cursor_.number<uint16_t>(what, true);
    return cursor_.number<uint32_t>(what, true);
  }

  FlaxHead number_head(uint8_t first) {
    const char* what = "a number";
    switch (first) {
      case 0xca:
        return {FlaxKind::real, 0, 0, cursor_.number<float>(what, true)};
      case 0xcb:
        return {FlaxKind::real, 0, 0, cursor_.number<double>(what, true)};
      case 0xcc:
        return {FlaxKind::integer, 0, cursor_.number<uint8_t>(what)};
      case 0xcd:
        return {FlaxKind::integer, 0, cursor_.number<uint16_t>(what, true)};
      case 0xce:
        return {FlaxKind::integer, 0, cursor_.number<uint32_t>(what, true)};
      case 0xcf:
        return {FlaxKind::integer, 0, static_cast<int64_t>(cursor_.number<uint64_t>(what, true))};
      case 0xd0:
        return {FlaxKind::integer, 0, cursor_.number<int8_t>(what)};
      case 0xd1:
        return {FlaxKind::integer, 0, cursor_.number<int16_t>(what, true)};
      case 0xd2:
        return {FlaxKind::integer, 0, cursor_.number<int32_t>(what, true)};
      default:
        return {FlaxKind::integer, 0, cursor_.number<int64_t>(what, true)};
    }
  }

  FlaxHead extension_head(uint64_t size) {
    const int type = cursor_.number<int8_t>("an extension");
    return {FlaxKind::extension, size, 0, 0, type};
  }

  FlaxHead head() {
    const auto first = cursor_.number<uint8_t>("a value");
    if (first <= 0x7f) return {FlaxKind::integer, 0, first};
    if (first >= 0xe0) return {FlaxKind::integer, 0, static_cast<int8_t>(first)};
    if (first <= 0x8f) return {FlaxKind::map, first & 0x0fU};
    if (first <= 0x9f) return {FlaxKind::list, first & 0x0fU};
    if (first <= 0xbf) return {FlaxKind::text, first & 0x1fU};
    if (first == 0xc0) return {FlaxKind::nil};
    if (first == 0xc2 || first == 0xc3) return {FlaxKind::boolean, 0, first - 0xc2};
    if (first >= 0xc4 && first <= 0xc6) return {FlaxKind::bytes, size_of(1 << (first - 0xc4))};
    if (first >= 0xc7 && first <= 0xc9) return extension_head(size_of(1 << (first - 0xc7)));
    if (first >= 0xca && first <= 0xd3) return number_head(first);
    if (first >= 0xd4 && first <= 0xd8) return extension_head(uint64_t{1} << (first - 0xd4));
    if (first >= 0xd9 && first <= 0xdb) return {FlaxKind::text, size_of(1 << (first - 0xd9))};
    if (first == 0xdc || first == 0xdd) return {FlaxKind::list, size_of(first == 0xdc ? 2 : 4)};
    if (first == 0xde || first == 0xdf) return {FlaxKind::map, size_of(first == 0xde ? 2 : 4)};
    throw InputError(
        fmt::format("{} is no Flax checkpoint, or damaged: the byte 0x{:02x} at byte {} begins no "
                    "value",
                    cursor_.source(), first, cursor_.at() - 1));
  }

  std::string text(const char* what) {
    const FlaxHead head = this->head();
    check<InputError>(head.kind == FlaxKind::text || head.kind == FlaxKind::bytes,
                      "{} is no Flax checkpoint, or damaged: {} is no text", cursor_.source(), what);
    return std::string(cursor_.text(head.count, what));
  }

  void value(const std::string& name, int depth) {
    check<InputError>(depth <= kDeepestMap, "{} is damaged: its values are nested more than {} deep",
                      cursor_.source(), kDeepestMap);
    const FlaxHead head = this->head();
    const auto part = [&](const std::string& key) { return name.empty() ? key : name + "/" + key; };
    switch (head.kind) {
      case FlaxKind::nil:
        return;
      case FlaxKind::boolean:
        stored_.scalars[name] = head.integer != 0;
        return;
      case FlaxKind::integer:
        stored_.scalars[name] = head.integer;
        return;
      case FlaxKind::real:
        stored_.scalars[name] = head.real;
        return;
      case FlaxKind::text:
      case FlaxKind::bytes:
        stored_.scalars[name] = std::string(cursor_.text(head.count, "a text"));
        return;
      case FlaxKind::list:
        for (uint64_t i = 0; i < head.count; ++i) value(part(std::to_string(i)), depth + 1);
        return;
      case FlaxKind::map:
        for (uint64_t i = 0; i < head.count; ++i) {
          const std::string key = text("a key");
          check<InputError>(key != "__msgpack_chunked_array__",
                            "{}: array '{}' of more than 1 GiB is cut into chunks, which is not supported",
                            cursor_.source(), name);
          value(part(key), depth + 1);
        }
        return;
      case FlaxKind::extension:
        return extension(name, head);
    }
  }

  void extension(const std::string& name, const FlaxHead& head) {
    const auto bytes = cursor_.take(head.count, "an array");
    check<InputError>(head.extension == kArrayExtension || head.extension == kNumberExtension,
                      "{}: '{}' is of the extension type {}; Flax's arrays are of type {}", cursor_.source(),
                      name, head.extension, kArrayExtension);
    FlaxReader inner(bytes, cursor_.source());
    stored_.tensors[name] = inner.array(name);
  }

  at::Tensor array(const std::string& name) {
    const FlaxHead parts = head();
    check<InputError>(parts.kind == FlaxKind::list && parts.count == 3,
                      "{} is damaged: array '{}' is not made of shape, type and bytes", cursor_.source(),
                      name);
    const FlaxHead sizes = head();
    check<InputError>(sizes.kind == FlaxKind::list && sizes.count <= 64,
                      "{} is damaged: the shape of array '{}' is no list", cursor_.source(), name);
    std::vector<int64_t> shape;
    for (uint64_t i = 0; i < sizes.count; ++i) {
      const FlaxHead size = head();
      check<InputError>(size.kind == FlaxKind::integer,
                        "{} is damaged: the shape of array '{}' is no list of sizes", cursor_.source(), name);
      shape.push_back(size.integer);
    }
    const at::ScalarType type = array_type(text("the type of an array"), name, cursor_.source());
    const FlaxHead data = head();
    check<InputError>(data.kind == FlaxKind::bytes || data.kind == FlaxKind::text,
                      "{} is damaged: array '{}' has no bytes", cursor_.source(), name);
    return tensor_of_bytes(cursor_.take(data.count, "the bytes of an array"), shape, type, name,
                           cursor_.source());
  }

  ByteCursor cursor_;
  StoredModel stored_;
};

}  // namespace

StoredModel parse_flax(std::span<const std::byte> bytes, const std::string& source) {
  return FlaxReader(bytes, source).all();
}

StoredModel read_flax(const std::string& path) {
  const MappedFile file(path);
  return parse_flax({file.data(), file.size()}, path);
}

}  // namespace performer
