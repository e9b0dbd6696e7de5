// SPDX-License-Identifier: Apache-2.0
// Parts of a page for people: numbers that can be traced, tables, pictures.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace performer::studies {

enum class NumberStyle : uint8_t {
  plain,     // four significant digits; whole numbers as they are
  whole,     // 1,234,567
  share,     // 12.34 %
  duration,  // 1 h 02 min
};

std::string number_text(double value, NumberStyle style);

// The number at a JSON pointer as <data value="17.328841"
// data-key="/runs/0/valid/model/perplexity">17.33</data>: what a page shows can be compared with the file of
// its numbers. A dash where there is none.
std::string number(const nlohmann::ordered_json& numbers, const std::string& pointer,
                   NumberStyle style = NumberStyle::plain);

// A table with a caption, whose cells are HTML. Rows begin with a heading.
class HtmlTable {
 public:
  explicit HtmlTable(std::string_view caption);
  void columns(const std::vector<std::string>& names);  // texts, escaped here
  // `heading` is text; `marked` rows stand out, for what is compared with.
  void row(std::string_view heading, const std::vector<std::string>& cells, bool marked = false);
  bool empty() const { return rows_.empty(); }
  std::string html() const;

 private:
  std::string caption_, head_, rows_;
};

// <h2> or <h3> with an id that the contents link to, and what follows.
std::string section(const std::string& id, std::string_view title, const std::string& body);
std::string subsection(std::string_view title, const std::string& body);
std::string paragraph(std::string_view text);  // escaped here
// What is closed until it is asked for.
std::string details(std::string_view summary, const std::string& body);

// A picture by itself: in an <img>, where nothing in it can run or reach the page. `drawing`: one whose
// colours are turned in the dark.
std::string svg_image(std::string_view svg, std::string_view description);
std::string png_image(std::string_view png, std::string_view description);

// A whole document. `parts` are sections with their ids and titles, for the contents.
struct PagePart {
  std::string id, title, body;
};
std::string page(std::string_view title, std::string_view footer, const std::vector<PagePart>& parts);

}  // namespace performer::studies
