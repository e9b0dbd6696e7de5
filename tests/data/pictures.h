// SPDX-License-Identifier: Apache-2.0
// Picture files and archives for the tests, made by the libraries' writers and by hand.
#pragma once

#include <gtest/gtest.h>
#include <png.h>
#include <stdio.h>

#include <jpeglib.h>

#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "performer/base/philox.h"

namespace performer::data::test {

struct PngForm {
  uint32_t height = 0, width = 0;
  int depth = 8, colour_type = PNG_COLOR_TYPE_RGB, interlace = PNG_INTERLACE_NONE;
  std::vector<png_color> palette = {};
  int transparent_grey = -1;  // a grey value that is transparent (tRNS); -1: none
};

// A PNG file of rows as PNG packs them, `rows` one after the other.
inline std::string png(const PngForm& form, const std::string& rows) {
  std::string file;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(
      png, &file,
      [](png_structp writer, png_bytep bytes, png_size_t size) {
        static_cast<std::string*>(png_get_io_ptr(writer))->append(reinterpret_cast<char*>(bytes), size);
      },
      nullptr);
  png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
  png_set_IHDR(png, info, form.width, form.height, form.depth, form.colour_type, form.interlace,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  if (!form.palette.empty())
    png_set_PLTE(png, info, form.palette.data(), static_cast<int>(form.palette.size()));
  if (form.transparent_grey >= 0) {
    png_color_16 grey{};
    grey.gray = static_cast<png_uint_16>(form.transparent_grey);
    png_set_tRNS(png, info, nullptr, 0, &grey);
  }
  png_write_info(png, info);
  const size_t row = rows.size() / form.height;
  std::vector<png_bytep> pointers;
  for (uint32_t i = 0; i < form.height; ++i) {
    pointers.push_back(reinterpret_cast<png_bytep>(const_cast<char*>(rows.data())) + i * row);
  }
  png_write_image(png, pointers.data());
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
  return file;
}

// A JPEG file of whole bytes; `components` 1 (grey), 3 (RGB) or 4 (CMYK). `passes`: those of a progressive
// file, where not the usual ones.
inline std::string jpeg(uint32_t height, uint32_t width, int components, const std::string& rows,
                        int quality = 100, bool progressive = false,
                        const std::vector<jpeg_scan_info>& passes = {}) {
  jpeg_compress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_compress(&jpeg);
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&jpeg, &bytes, &size);
  jpeg.image_height = height;
  jpeg.image_width = width;
  jpeg.input_components = components;
  jpeg.in_color_space = components == 1 ? JCS_GRAYSCALE : components == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_set_defaults(&jpeg);
  jpeg_set_quality(&jpeg, quality, TRUE);
  if (progressive) jpeg_simple_progression(&jpeg);
  if (!passes.empty()) {
    jpeg.scan_info = passes.data();
    jpeg.num_scans = static_cast<int>(passes.size());
  }
  jpeg_start_compress(&jpeg, TRUE);
  while (jpeg.next_scanline < height) {
    auto* row =
        reinterpret_cast<JSAMPROW>(const_cast<char*>(rows.data())) + jpeg.next_scanline * width * components;
    jpeg_write_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_compress(&jpeg);
  std::string file(reinterpret_cast<char*>(bytes), size);
  jpeg_destroy_compress(&jpeg);
  free(bytes);
  return file;
}

// One header and its content in a POSIX tar archive.
inline std::string tar_entry(std::string_view name, std::string_view content, char type = '0') {
  std::string header(512, '\0');
  const auto put = [&](size_t at, std::string_view text) { header.replace(at, text.size(), text); };
  char number[16];
  put(0, name.substr(0, 100));
  put(100, "0000644");
  std::snprintf(number, sizeof(number), "%011zo", content.size());
  put(124, number);
  header[156] = type;
  put(257, std::string_view("ustar\00000", 8));
  put(148, "        ");
  unsigned sum = 0;
  for (const unsigned char byte : header) sum += byte;
  std::snprintf(number, sizeof(number), "%06o", sum);
  put(148, std::string_view(number, 7));
  return header + std::string(content) + std::string(-content.size() % 512, '\0');
}

inline const std::string kTarEnd(1024, '\0');

// `size` bytes that look like noise.
inline std::string noise(size_t size, uint64_t seed = 1) {
  PhiloxStream draws(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(draws.below(256));
  return bytes;
}

}  // namespace performer::data::test
