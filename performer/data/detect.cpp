// SPDX-License-Identifier: Apache-2.0
#include "performer/data/detect.h"

#include "performer/base/error.h"
#include "performer/data/foreign.h"
#include "performer/data/image/images.h"

namespace performer::data {

Content detect(PeekedSource& source, const std::string& name) {
  const std::string_view head = source.peek(kLook);
  if (head.empty()) return Content::empty;
  if (is_raw_name(name)) return Content::raw_images;
  if (is_png(head) || is_jpeg(head)) return Content::picture;
  if (is_tar(head)) return Content::tar;
  const std::optional<Foreign> foreign = identify(head);
  if (foreign && foreign->kind != Foreign::Kind::general) return Content::foreign;
  return fasta_header(head) ? Content::fasta : Content::text;
}

void throw_foreign(PeekedSource& source, const std::string& name) {
  const std::optional<Foreign> foreign = identify(source.peek(kLook));
  const bool text = foreign && foreign->kind == Foreign::Kind::special;
  throw InputError(fmt::format("{} cannot be read{}{}", name, looks_like(foreign),
                               text ? "; or set data.format = text to read it as mere text" : ""));
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
      return "text";
    case Content::foreign:
      break;
  }
  return "";
}

}  // namespace performer::data
