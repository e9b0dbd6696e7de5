// SPDX-License-Identifier: Apache-2.0
// PNG by libpng. It reports errors by longjmp, past no C++ object: what needs a destructor lives in the
// callers of the functions that call setjmp.
#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/data/image/picture.h"

namespace performer::data {
namespace {

constexpr size_t kSignature = 8;
// Of what a file says beside the pixels (text, profiles), packed in it: unpacked no more than this is kept.
constexpr int kMostChunks = 1000;
constexpr size_t kMostChunkBytes = 8'000'000;

struct PngFile {
  PngFile() = default;
  ~PngFile() { png_destroy_read_struct(&png, &info, nullptr); }
  PngFile(const PngFile&) = delete;
  PngFile& operator=(const PngFile&) = delete;

  std::string_view left;  // bytes not yet read
  png_structp png = nullptr;
  png_infop info = nullptr;
  char problem[256] = {};
  int64_t height = 0, width = 0, channels = 0, bits = 0;
  std::vector<png_byte> values;
  std::vector<png_bytep> rows;
};

void fail_png(png_structp png, png_const_charp problem) {
  auto& file = *static_cast<PngFile*>(png_get_error_ptr(png));
  std::strncpy(file.problem, problem, sizeof(file.problem) - 1);
  png_longjmp(png, 1);
}

void ignore_warning(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep buffer, png_size_t size) {
  auto& file = *static_cast<PngFile*>(png_get_io_ptr(png));
  if (size > file.left.size()) png_error(png, "it ends in the middle");
  std::memcpy(buffer, file.left.data(), size);
  file.left.remove_prefix(size);
}

// Reads what comes before the pixels. False: file.problem says why.
bool read_header(PngFile& file) {
  if (setjmp(png_jmpbuf(file.png)) != 0) return false;
  png_set_read_fn(file.png, &file, read_bytes);
  png_set_user_limits(file.png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // the caller has a limit of its own
  png_set_chunk_cache_max(file.png, kMostChunks);
  png_set_chunk_malloc_max(file.png, kMostChunkBytes);
  png_read_info(file.png, file.info);
  file.height = png_get_image_height(file.png, file.info);
  file.width = png_get_image_width(file.png, file.info);
  return true;
}

// Asks for 8-bit channels. Takes memory for a row: the size is checked before. False as above.
bool begin_pixels(PngFile& file) {
  if (setjmp(png_jmpbuf(file.png)) != 0) return false;
  file.bits = png_get_bit_depth(file.png, file.info);
  png_set_expand(file.png);  // palettes to colours, few bits to 8, named transparent colours to opacity
  png_set_scale_16(file.png);
  png_set_interlace_handling(file.png);
  png_read_update_info(file.png, file.info);
  file.channels = png_get_channels(file.png, file.info);
  return true;
}

// Reads the pixels into file.rows, and the rest of the file.
bool read_pixels(PngFile& file) {
  if (setjmp(png_jmpbuf(file.png)) != 0) return false;
  png_read_image(file.png, file.rows.data());
  png_read_end(file.png, nullptr);
  return true;
}

// Lays pixels whose last channel is opacity on white. Returns whether any of them was not opaque.
bool lay_on_white(const PngFile& file, std::vector<uint8_t>& values) {
  const size_t channels = static_cast<size_t>(file.channels), kept = channels - 1;
  bool transparent = false;
  values.reserve(file.values.size() / channels * kept);
  for (size_t at = 0; at < file.values.size(); at += channels) {
    const int opacity = file.values[at + kept];
    transparent |= opacity < 255;
    for (size_t channel = 0; channel < kept; ++channel) {
      const int value = file.values[at + channel] * opacity + 255 * (255 - opacity);
      values.push_back(static_cast<uint8_t>((value + 127) / 255));
    }
  }
  return transparent;
}

}  // namespace

bool is_png(std::string_view head) {
  return head.size() >= kSignature &&
         png_sig_cmp(reinterpret_cast<png_const_bytep>(head.data()), 0, kSignature) == 0;
}

Picture decode_png(std::string_view bytes, const std::string& name) {
  PngFile file;
  file.left = bytes;
  file.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &file, fail_png, ignore_warning);
  if (file.png != nullptr) file.info = png_create_info_struct(file.png);
  check(file.info != nullptr, "cannot read {}: libpng finds no memory, or is not the one this was built for",
        name);
  const auto check_whole = [&](bool whole) {
    check<InputError>(whole, "{} is a damaged PNG picture ({}); copy or download it again", name,
                      file.problem);
  };
  check_whole(read_header(file));
  check_picture_size(file.height, file.width, name);
  check_whole(begin_pixels(file));
  file.values.resize(static_cast<size_t>(file.height * file.width * file.channels));
  for (int64_t row = 0; row < file.height; ++row) {
    file.rows.push_back(file.values.data() + row * file.width * file.channels);
  }
  check_whole(read_pixels(file));

  Picture picture;
  if (file.bits == 16) picture.conversions.emplace_back("images of 16 bits a channel rounded to 8");
  picture.shape = {file.height, file.width, file.channels <= 2 ? 1 : 3};
  if (file.channels == picture.shape.channels) {
    picture.values = std::move(file.values);
  } else if (lay_on_white(file, picture.values)) {
    picture.conversions.emplace_back("images with transparency laid on white");
  }
  return picture;
}

std::string encode_png(const ImageShape& shape, std::span<const Token> values) {
  check<UsageError>(shape.height > 0 && shape.width > 0 && (shape.channels == 1 || shape.channels == 3),
                    "a picture has at least one pixel of 1 or 3 channels, not the shape {}", to_text(shape));
  check(std::ssize(values) == shape.tokens(), "a picture of shape {} has {} values, found {}", to_text(shape),
        shape.tokens(), values.size());
  std::vector<uint8_t> bytes;
  bytes.reserve(values.size());
  for (const Token value : values) {
    check(value < 256, "a value of a picture is 0 to 255, found {}", value);
    bytes.push_back(static_cast<uint8_t>(value));
  }
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(shape.width);
  image.height = static_cast<png_uint_32>(shape.height);
  image.format = shape.channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(image);
  std::string file(size, '\0');
  check(png_image_write_to_memory(&image, file.data(), &size, 0, bytes.data(), 0, nullptr) != 0,
        "cannot write a PNG picture of shape {}: {}", to_text(shape), image.message);
  file.resize(size);
  return file;
}

void write_png(const std::string& path, const ImageShape& shape, std::span<const Token> values) {
  write_file(path, encode_png(shape, values));
}

}  // namespace performer::data
