// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace performer::data {

// What messages add to a byte that is no letter of a sequence, where there is more to say than the byte: the
// name of the character that it begins, the letter that it looks like, and what to do. " (a no-break space,
// U+00A0: remove it)"; else "". `text` begins with the byte and goes on with those that follow it, four or
// more where there are as many.
std::string character_note(std::string_view text);

}  // namespace performer::data
