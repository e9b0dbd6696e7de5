// SPDX-License-Identifier: Apache-2.0
// What a file is, by its first bytes and its name.
#pragma once

#include <cstddef>
#include <string>

#include "performer/data/byte_source.h"

namespace performer::data {

// foreign: another format, which foreign.h names.
enum class Content { empty, fasta, picture, tar, raw_images, text, foreign };

// How many bytes are looked at to tell what data are.
inline constexpr size_t kLook = size_t{1} << 16;

// Looks at the first bytes of unpacked data; `name` tells raw images.
Content detect(PeekedSource& source, const std::string& name);
// Throws the InputError of data that are foreign.
[[noreturn]] void throw_foreign(PeekedSource& source, const std::string& name);

// The format of DataConfig::format that reads such content: fasta, text or image; empty for foreign content.
std::string format_of(Content content);

}  // namespace performer::data
