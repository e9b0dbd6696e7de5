// SPDX-License-Identifier: Apache-2.0
// What a file is, by its first bytes and its name.
#pragma once

#include <string>
#include <string_view>

#include "performer/data/byte_source.h"

namespace performer::data {

enum class Content { empty, fasta, picture, tar, raw_images, text };

// Looks at the first bytes of unpacked data; `name` tells raw images. Throws InputError when the data are
// packed in a way that is not known here.
Content detect(PeekedSource& source, const std::string& name);

// The format of DataConfig::format that reads such content: fasta, text or image.
std::string format_of(Content content);

// How bytes that begin like this are unpacked, as the end of a message: "; it looks like bzip2: unpack it
// with bunzip2". Empty for anything else.
std::string_view packing_cure(std::string_view head);

}  // namespace performer::data
