// SPDX-License-Identifier: Apache-2.0
// What was measured, for people, for programs and as a picture.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "performer/bench/bench.h"

namespace performer::bench {

// A list of objects, one a row, with the keys op, kind, direction, pass, dtype, target, length, heads,
// head_size, features, ns and share_of_limit, and others (docs/performance.md). A row that failed has "ns":
// null and "failure".
nlohmann::ordered_json to_json(const Report& report);
// Tables, the limits they refer to, and the break-even with exact softmax attention.
std::string to_text(const Report& report);
// The papers' figure: time of a sequence and memory against its length on logarithmic axes, one line a kind
// and dtype, beside the bound `identity`. Empty for `decode`, which has no lengths.
std::string to_svg(const Report& report);

}  // namespace performer::bench
