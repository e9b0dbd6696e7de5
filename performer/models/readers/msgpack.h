// SPDX-License-Identifier: Apache-2.0
// Checkpoints of Flax: MessagePack with an extension type for arrays. Source: the MessagePack specification
// (spec.md, "Formats"), and flax.serialization, whose extension 1 is an array packed as (shape, name of the
// type, bytes) and 3 a number of numpy packed alike.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "performer/models/readers/stored.h"

namespace performer {

// Names of nested maps are joined with slashes. Throws InputError naming `source` and what is wrong:
// truncated, bytes behind the value, a map whose keys are no texts, nested more than 32 deep, an array of an
// unknown type or of another size than its bytes, an array that Flax cut into chunks (above 1 GiB).
StoredModel parse_flax(std::span<const std::byte> bytes, const std::string& source);
StoredModel read_flax(const std::string& path);

}  // namespace performer
