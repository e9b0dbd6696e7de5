// SPDX-License-Identifier: Apache-2.0
#include "performer/data/detect.h"

#include "performer/base/error.h"
#include "performer/data/image/images.h"

namespace performer::data {
namespace {

// Whether the first line, beside blank ones and comments, begins with '>'.
bool is_fasta(std::string_view head) {
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf", kSpaces = " \t\r\v\f";
  if (head.starts_with(kByteOrderMark)) head.remove_prefix(kByteOrderMark.size());
  while (!head.empty()) {
    const size_t end = head.find('\n');
    const std::string_view line = head.substr(0, end);
    const size_t text = line.find_first_not_of(kSpaces);
    if (text != std::string_view::npos && line[text] != ';') return line[text] == '>';
    if (end == std::string_view::npos) break;
    head.remove_prefix(end + 1);
  }
  return false;
}

}  // namespace

std::string_view packing_cure(std::string_view head) {
  using namespace std::string_view_literals;
  if (head.starts_with("BZh")) return "; it looks like bzip2: unpack it with bunzip2";
  if (head.starts_with("\xfd\x37zXZ"sv)) return "; it looks like xz: unpack it with xz -d";
  if (head.starts_with("PK\x03\x04")) return "; it looks like a zip archive: unpack it";
  if (head.starts_with("7z\xbc\xaf\x27\x1c")) return "; it looks like a 7z archive: unpack it";
  return "";
}

Content detect(PeekedSource& source, const std::string& name) {
  constexpr size_t kLook = size_t{1} << 16;
  const std::string_view head = source.peek(kLook);
  if (head.empty()) return Content::empty;
  if (is_raw_name(name)) return Content::raw_images;
  if (is_png(head) || is_jpeg(head)) return Content::picture;
  if (is_tar(head)) return Content::tar;
  if (is_fasta(head)) return Content::fasta;
  const std::string_view cure = packing_cure(head);
  check<InputError>(cure.empty(), "{} cannot be read{}", name, cure);
  return Content::text;
}

std::string format_of(Content content) {
  switch (content) {
    case Content::fasta:
      return "fasta";
    case Content::picture:
    case Content::tar:
    case Content::raw_images:
      return "image";
    case Content::empty:
    case Content::text:
      break;
  }
  return "text";
}

}  // namespace performer::data
