// SPDX-License-Identifier: Apache-2.0
// model.bin of CTranslate2, versions 2 to 6 of the binary format. Source: OpenNMT/CTranslate2,
// python/ctranslate2/specs/model_spec.py (the writer).
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "performer/models/readers/stored.h"

namespace performer {

struct Ctranslate2Model {
  std::string specification;  // TransformerSpec ...
  int64_t revision = 0;
  StoredModel stored;  // names with slashes; aliases too
};

// Throws InputError naming `source` and what is wrong: another version, truncated, a name given twice, an
// alias of nothing.
Ctranslate2Model parse_ctranslate2(std::span<const std::byte> bytes, const std::string& source);
Ctranslate2Model read_ctranslate2(const std::string& path);

}  // namespace performer
