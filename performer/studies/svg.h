// SPDX-License-Identifier: Apache-2.0
// What pictures and pages are written with: text that is safe in XML and HTML, and parts of SVG.
#pragma once

#include <string>
#include <string_view>

namespace performer::studies {

// Text for the content or an attribute of XML and HTML: & < > " and ' become entities, and what no XML may
// hold (control characters, bytes that are not UTF-8) is written as messages show it (base/printable.h).
// Lines end where they end.
std::string escape(std::string_view text);

std::string base64(std::string_view bytes);  // RFC 4648, with padding

// A line, and escaped text, with further attributes. They carry the classes of their elements, for which the
// pages that hold a picture may have other colours than the picture's own.
std::string svg_line(double x1, double y1, double x2, double y2, const std::string& attributes);
std::string svg_text(double x, double y, std::string_view text, const std::string& attributes);

// The beginning of a picture: element, title, description (none where it is empty) and background.
std::string svg_begin(double width, double height, std::string_view title, std::string_view description);

}  // namespace performer::studies
