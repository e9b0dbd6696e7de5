// SPDX-License-Identifier: Apache-2.0
#include "performer/models/readers/ctranslate2.h"

#include <vector>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/models/readers/byte_cursor.h"

namespace performer {
namespace {

constexpr uint32_t kOldest = 2, kNewest = 6;
constexpr uint32_t kWithTypes = 4, kWithAliases = 3;  // first versions that have them

// With the zero byte at their end counted in their size.
std::string text_of(ByteCursor& cursor) {
  const auto size = cursor.number<uint16_t>("the size of a name");
  const std::string_view text = cursor.text(size, "a name");
  check<InputError>(!text.empty() && text.back() == '\0',
                    "{} is damaged: a name does not end with a zero byte", cursor.source());
  return std::string(text.substr(0, text.size() - 1));
}

at::ScalarType type_of(ByteCursor& cursor, uint32_t version, const std::string& name) {
  const auto code = cursor.number<uint8_t>("the type of a variable");
  if (version < kWithTypes) {  // the size of an item
    if (code == 4) return at::kFloat;
    if (code == 2) return at::kShort;
    if (code == 1) return at::kChar;
  } else {
    constexpr at::ScalarType kTypes[] = {at::kFloat, at::kChar, at::kShort,
                                         at::kInt,   at::kHalf, at::kBFloat16};
    if (code < std::size(kTypes)) return kTypes[code];
  }
  throw InputError(fmt::format("{}: variable '{}' has the unknown type {}", cursor.source(), name, code));
}

void read_variable(ByteCursor& cursor, uint32_t version, std::map<std::string, at::Tensor>& variables) {
  const std::string name = text_of(cursor);
  const auto rank = cursor.number<uint8_t>("the rank of a variable");
  std::vector<int64_t> shape;
  for (int i = 0; i < rank; ++i) shape.push_back(cursor.number<uint32_t>("the shape of a variable"));
  check<InputError>(rank <= 64, "{} is damaged: variable '{}' has {} dimensions", cursor.source(), name,
                    rank);
  const at::ScalarType type = type_of(cursor, version, name);
  uint64_t bytes = cursor.number<uint32_t>("the size of a variable");
  if (version < kWithTypes) bytes *= at::elementSize(type);
  const auto data = cursor.take(bytes, "the data of a variable");
  const bool is_new =
      variables.emplace(name, tensor_of_bytes(data, shape, type, name, cursor.source())).second;
  check<InputError>(is_new, "{} is damaged: variable '{}' is given twice", cursor.source(), name);
}

}  // namespace

Ctranslate2Model parse_ctranslate2(std::span<const std::byte> bytes, const std::string& source) {
  ByteCursor cursor(bytes, source);
  const auto version = cursor.number<uint32_t>("the version");
  check<InputError>(version >= kOldest && version <= kNewest,
                    "{} is no model of CTranslate2 that is known here: its version is {}, expected {} to {}",
                    source, version, kOldest, kNewest);
  Ctranslate2Model model;
  model.specification = text_of(cursor);
  model.revision = cursor.number<uint32_t>("the revision");
  const auto count = cursor.number<uint32_t>("the number of variables");
  for (uint32_t i = 0; i < count; ++i) read_variable(cursor, version, model.stored.tensors);
  if (version < kWithAliases) return model;
  const auto aliases = cursor.number<uint32_t>("the number of aliases");
  for (uint32_t i = 0; i < aliases; ++i) {
    const std::string alias = text_of(cursor), name = text_of(cursor);
    const auto found = model.stored.tensors.find(name);
    check<InputError>(found != model.stored.tensors.end(),
                      "{} is damaged: '{}' is an alias of '{}', which is "
                      "not there",
                      source, alias, name);
    model.stored.tensors[alias] = found->second;
  }
  check<InputError>(cursor.left() == 0, "{} has {} bytes behind its variables", source, cursor.left());
  return model;
}

Ctranslate2Model read_ctranslate2(const std::string& path) {
  const MappedFile file(path);
  return parse_ctranslate2({file.data(), file.size()}, path);
}

}  // namespace performer
