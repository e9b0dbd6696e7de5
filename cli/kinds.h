// SPDX-License-Identifier: Apache-2.0
// The registered attention kinds for people and programs: performer info --kinds.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "performer/nn/attention/kind.h"

namespace performer::cli {

// All kinds by group, one line each.
std::string kinds_text();
// [{"name", "group", "summary"}, ...] in the order of registration.
nlohmann::ordered_json kinds_json();

// What a kind can do, and its options with their defaults.
std::string kind_text(const nn::AttentionKind& kind);
// {"name", "group", "summary", "capabilities": {name: bool}, "options": [{"key", "default", "help",
// "choices"}]}
nlohmann::ordered_json kind_json(const nn::AttentionKind& kind);

}  // namespace performer::cli
