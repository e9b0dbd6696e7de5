// SPDX-License-Identifier: Apache-2.0
// Pictures in memory: what PNG and JPEG files hold, and how they are written. The rules are stated in
// docs/formats.md.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "performer/data/reader.h"

namespace performer::data {

// Pictures of more pixels are refused: 4096 x 4096.
inline constexpr int64_t kMostPixels = int64_t{1} << 24;

struct Picture {
  ImageShape shape;
  std::vector<uint8_t> values;           // shape.tokens() of them
  std::vector<std::string> conversions;  // what was changed in decoding, in the words of ReportLine
};

bool is_png(std::string_view head);   // by the first eight bytes
bool is_jpeg(std::string_view head);  // by the first three bytes
// Decodes a file that is one of the two. Throws InputError naming `name` for a damaged or truncated picture,
// one of more than kMostPixels, and a JPEG in CMYK.
//
// PNG: palettes become colours, 1, 2 and 4 bits a value become 8, 16 bits are rounded to 8, transparency is
// laid on white; gamma and colour profiles are not applied. JPEG: greyscale and colour; the orientation that
// a camera noted is not applied.
Picture decode_picture(std::string_view bytes, const std::string& name);
Picture decode_png(std::string_view bytes, const std::string& name);
Picture decode_jpeg(std::string_view bytes, const std::string& name);
// Throws InputError for a picture without pixels and one of more than kMostPixels.
void check_picture_size(int64_t height, int64_t width, const std::string& name);

// Each pixel is the mean, rounded, of a square of factor x factor pixels; the factor divides height and
// width.
Picture shrink(const Picture& picture, int64_t factor);
// A greyscale picture with its one channel repeated three times.
Picture to_colour(const Picture& picture);

// The bytes of a PNG file. Throws UsageError for a shape without pixels or of other than 1 or 3 channels,
// Error when the number of values is not shape.tokens() or one is above 255.
std::string encode_png(const ImageShape& shape, std::span<const Token> values);
// The same as a file, written aside and renamed. Throws Error when that is impossible.
void write_png(const std::string& path, const ImageShape& shape, std::span<const Token> values);

}  // namespace performer::data
