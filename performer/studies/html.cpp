// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/html.h"

#include <fmt/format.h>

#include <cmath>

#include "performer/studies/page_style.h"
#include "performer/studies/svg.h"

namespace performer::studies {
namespace {

constexpr const char* kNone = "<span class=\"none\" title=\"not measured\">–</span>";

std::string grouped(double value) {
  std::string digits = fmt::format("{:.0f}", std::abs(value));
  for (auto at = static_cast<int64_t>(digits.size()) - 3; at > 0; at -= 3)
    digits.insert(static_cast<size_t>(at), 1, ',');
  return (value < 0 ? "-" : "") + digits;
}

std::string duration_text(double seconds) {
  if (seconds < 60) return fmt::format("{:.3g} s", seconds);
  const auto whole = static_cast<int64_t>(std::lround(seconds));
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
}

}  // namespace

std::string number_text(double value, NumberStyle style) {
  switch (style) {
    case NumberStyle::whole:
      return grouped(value);
    case NumberStyle::share:
      return fmt::format("{:.2f} %", 100 * value);
    case NumberStyle::duration:
      return duration_text(value);
    case NumberStyle::plain:
      break;
  }
  const double size = std::abs(value);
  if (value == 0) return "0";
  return size >= 1e3 && size < 1e15 ? grouped(value) : fmt::format("{:#.4g}", value);
}

std::string number(const nlohmann::ordered_json& numbers, const std::string& pointer, NumberStyle style) {
  const nlohmann::ordered_json::json_pointer at(pointer);
  if (!numbers.contains(at) || !numbers.at(at).is_number()) return kNone;
  const auto& found = numbers.at(at);
  if (found.is_number_integer() && style == NumberStyle::plain) style = NumberStyle::whole;
  return fmt::format("<data value=\"{}\" data-key=\"{}\">{}</data>", escape(found.dump()), escape(pointer),
                     number_text(found.get<double>(), style));
}

HtmlTable::HtmlTable(std::string_view caption) : caption_(escape(caption)) {}

void HtmlTable::columns(const std::vector<std::string>& names) {
  head_ = "<thead><tr>";
  for (const std::string& name : names) {
    head_ += name.empty() ? "<td></td>" : fmt::format("<th scope=\"col\">{}</th>", escape(name));
  }
  head_ += "</tr></thead>\n";
}

void HtmlTable::row(std::string_view heading, const std::vector<std::string>& cells, bool marked) {
  rows_ +=
      fmt::format("<tr{}><th scope=\"row\">{}</th>", marked ? " class=\"compared\"" : "", escape(heading));
  for (const std::string& cell : cells) rows_ += fmt::format("<td>{}</td>", cell);
  rows_ += "</tr>\n";
}

std::string HtmlTable::html() const {
  // What may be wider than the page scrolls by itself, also by keyboard.
  return fmt::format(
      "<div class=\"scroll\" role=\"region\" tabindex=\"0\" "
      "aria-label=\"{0}\"><table>\n<caption>{0}</caption>\n{1}"
      "<tbody>\n{2}</tbody>\n</table></div>\n",
      caption_, head_, rows_);
}

std::string section(const std::string& id, std::string_view title, const std::string& body) {
  return fmt::format("<section aria-labelledby=\"{0}\">\n<h2 id=\"{0}\">{1}</h2>\n{2}</section>\n",
                     escape(id), escape(title), body);
}

std::string subsection(std::string_view title, const std::string& body) {
  return fmt::format("<h3>{}</h3>\n{}", escape(title), body);
}

std::string paragraph(std::string_view text) {
  return fmt::format("<p>{}</p>\n", escape(text));
}

std::string details(std::string_view summary, const std::string& body) {
  return fmt::format("<details><summary>{}</summary>\n{}</details>\n", escape(summary), body);
}

std::string svg_image(std::string_view svg, std::string_view description) {
  return fmt::format(
      "<p class=\"picture\"><img class=\"drawing\" alt=\"{}\" src=\"data:image/svg+xml;base64,{}\"></p>\n",
      escape(description), base64(svg));
}

std::string png_image(std::string_view png, std::string_view description) {
  return fmt::format("<img class=\"sample\" alt=\"{}\" src=\"data:image/png;base64,{}\">\n",
                     escape(description), base64(png));
}

std::string page(std::string_view title, std::string_view footer, const std::vector<PagePart>& parts) {
  std::string contents, body;
  for (const PagePart& part : parts) {
    contents += fmt::format("<li><a href=\"#{}\">{}</a></li>\n", escape(part.id), escape(part.title));
    body += section(part.id, part.title, part.body);
  }
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light "
      "dark\">\n<title>{0}"
      "</title>\n<link rel=\"icon\" href=\"data:,\">\n<style>\n{1}</style>\n</head>\n<body>\n<a "
      "class=\"skip\" "
      "href=\"#content\">Skip to the content</a>\n<header>\n<h1>{0}</h1>\n<nav "
      "aria-label=\"Contents\"><ul>\n{2}</ul>"
      "</nav>\n</header>\n<main id=\"content\" "
      "tabindex=\"-1\">\n{3}</main>\n<footer><p>{4}</p></footer>\n</body>\n"
      "</html>\n",
      escape(title), kPageStyle, contents, body, escape(footer));
}

}  // namespace performer::studies
