// SPDX-License-Identifier: Apache-2.0
// Text from outside, such as names and paths, as part of a message: control characters are escaped, so that
// a terminal executes none of them.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace performer {

// Size in bytes, 1 to 4, of the UTF-8 character that `text` begins with; 0 for an empty text and for bytes
// that are not UTF-8 (RFC 3629).
size_t utf8_size(std::string_view text);
// The number (code point) of the character that `text` begins with; utf8_size(text) is above 0.
char32_t utf8_character(std::string_view text);

// `text` on one line: control characters are written \n \t \r \xHH, bytes that are not UTF-8 \xHH, and
// characters that change lines or the direction of text \uHHHH. All else stays, so that a text that was made
// printable stays as it is. Every Error does this to its message.
std::string printable(std::string_view text);

// A name in a message: printable, and where it has more than `most` characters without its middle,
// "abc...xyz". `most` is at least 8.
std::string shown(std::string_view name, size_t most = 80);

}  // namespace performer
