// SPDX-License-Identifier: Apache-2.0
#include "performer/data/image/picture.h"

#include "performer/base/error.h"

namespace performer::data {

void check_picture_size(int64_t height, int64_t width, const std::string& name) {
  check<InputError>(height > 0 && width > 0 && height <= kMostPixels / width,
                    "{} has {} x {} pixels: at least one and at most {} are read", name, height, width,
                    kMostPixels);
}

Picture decode_picture(std::string_view bytes, const std::string& name) {
  if (is_png(bytes)) return decode_png(bytes, name);
  if (is_jpeg(bytes)) return decode_jpeg(bytes, name);
  throw InputError(fmt::format("{} is neither a PNG nor a JPEG picture", name));
}

Picture shrink(const Picture& picture, int64_t factor) {
  const int64_t channels = picture.shape.channels, area = factor * factor;
  Picture result;
  result.shape = {picture.shape.height / factor, picture.shape.width / factor, channels};
  result.values.reserve(static_cast<size_t>(result.shape.tokens()));
  result.conversions = picture.conversions;
  for (int64_t row = 0; row < result.shape.height; ++row) {
    for (int64_t column = 0; column < result.shape.width; ++column) {
      for (int64_t channel = 0; channel < channels; ++channel) {
        int64_t sum = 0;
        for (int64_t i = row * factor; i < (row + 1) * factor; ++i) {
          for (int64_t j = column * factor; j < (column + 1) * factor; ++j) {
            sum += picture.values[(i * picture.shape.width + j) * channels + channel];
          }
        }
        result.values.push_back(static_cast<uint8_t>((sum + area / 2) / area));
      }
    }
  }
  return result;
}

Picture to_colour(const Picture& picture) {
  Picture result{{picture.shape.height, picture.shape.width, 3}, {}, picture.conversions};
  result.values.reserve(3 * picture.values.size());
  for (const uint8_t value : picture.values) result.values.insert(result.values.end(), 3, value);
  return result;
}

}  // namespace performer::data
