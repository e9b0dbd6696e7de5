// SPDX-License-Identifier: Apache-2.0
// JPEG by libjpeg (libjpeg-turbo). It reports errors through a function that must not return; here by
// longjmp, past no C++ object: what needs a destructor lives in the caller of the functions that call setjmp.
#include <stddef.h>
#include <stdio.h>

#include <jpeglib.h>

#include <csetjmp>
#include <cstdio>

#include "performer/base/error.h"
#include "performer/data/image/picture.h"

namespace performer::data {
namespace {

struct JpegFile {
  JpegFile();
  ~JpegFile() { jpeg_destroy_decompress(&jpeg); }
  JpegFile(const JpegFile&) = delete;
  JpegFile& operator=(const JpegFile&) = delete;

  jpeg_decompress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg_progress_mgr progress{};
  std::jmp_buf place;
  char problem[JMSG_LENGTH_MAX] = {};
  std::vector<uint8_t> values;
};

void fail_jpeg(j_common_ptr jpeg) {
  auto& file = *static_cast<JpegFile*>(jpeg->client_data);
  (*jpeg->err->format_message)(jpeg, file.problem);
  std::longjmp(file.place, 1);
}

// Warnings (level -1) say that data are damaged and that libjpeg would make something up: an error here.
void meet_message(j_common_ptr jpeg, int level) {
  if (level < 0) fail_jpeg(jpeg);
}

// A progressive picture may have any number of passes over all pixels, each of a few bytes in the file.
void check_passes(j_common_ptr jpeg) {
  constexpr int kMostPasses = 500;
  auto& file = *static_cast<JpegFile*>(jpeg->client_data);
  if (file.jpeg.input_scan_number <= kMostPasses) return;
  std::snprintf(file.problem, sizeof(file.problem), "it has more than %d passes", kMostPasses);
  std::longjmp(file.place, 1);
}

JpegFile::JpegFile() {
  jpeg.err = jpeg_std_error(&errors);
  errors.error_exit = fail_jpeg;
  errors.emit_message = meet_message;
  jpeg.client_data = this;
}

// False: file.problem says why.
bool read_header(JpegFile& file, std::string_view bytes) {
  if (setjmp(file.place) != 0) return false;
  jpeg_create_decompress(&file.jpeg);
  file.progress.progress_monitor = check_passes;
  file.jpeg.progress = &file.progress;
  jpeg_mem_src(&file.jpeg, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  jpeg_read_header(&file.jpeg, TRUE);
  return true;
}

// Reads the pixels into file.values, which has room for them, and the rest of the file.
bool read_pixels(JpegFile& file, J_COLOR_SPACE colours) {
  if (setjmp(file.place) != 0) return false;
  file.jpeg.out_color_space = colours;
  file.jpeg.dct_method = JDCT_ISLOW;  // whole numbers: the same values on every machine
  jpeg_start_decompress(&file.jpeg);
  const size_t row = file.values.size() / file.jpeg.output_height;
  while (file.jpeg.output_scanline < file.jpeg.output_height) {
    JSAMPROW target = file.values.data() + file.jpeg.output_scanline * row;
    jpeg_read_scanlines(&file.jpeg, &target, 1);
  }
  jpeg_finish_decompress(&file.jpeg);
  return true;
}

}  // namespace

bool is_jpeg(std::string_view head) {
  return head.starts_with("\xff\xd8\xff");
}

Picture decode_jpeg(std::string_view bytes, const std::string& name) {
  JpegFile file;
  const auto check_whole = [&](bool whole) {
    check<InputError>(whole, "{} is a damaged JPEG picture ({}); copy or download it again", name,
                      file.problem);
  };
  check_whole(read_header(file, bytes));
  const int components = file.jpeg.num_components;
  check<InputError>(
      components == 1 || components == 3,
      "{} is a JPEG picture of {} colours (CMYK, as for printing), expected greyscale or RGB: convert "
      "it to RGB",
      name, components);
  Picture picture;
  picture.shape = {file.jpeg.image_height, file.jpeg.image_width, components};
  check_picture_size(picture.shape.height, picture.shape.width, name);
  file.values.resize(static_cast<size_t>(picture.shape.tokens()));
  check_whole(read_pixels(file, components == 1 ? JCS_GRAYSCALE : JCS_RGB));
  picture.values = std::move(file.values);
  return picture;
}

}  // namespace performer::data
