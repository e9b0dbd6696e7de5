// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/table.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/studies/chart.h"

namespace performer::studies {
namespace {

Table example() {
  Table table{"example", "An example", {"kind", "features", "error"}, {}};
  table.add({std::string("a"), int64_t{16}, 0.25});
  table.add({std::string("longer"), int64_t{4}, std::numeric_limits<double>::quiet_NaN()});
  return table;
}

TEST(ApproxTable, IsTabSeparatedWithEmptyCellsForWhatWasNotMeasured) {
  EXPECT_EQ(to_tsv(example()), "kind\tfeatures\terror\na\t16\t0.25\nlonger\t4\t\n");
}

TEST(ApproxTable, IsJsonWithNulls) {
  const auto json = to_json(example());
  EXPECT_EQ(json["title"], "An example");
  EXPECT_EQ(json["rows"][0]["features"], 16);
  EXPECT_EQ(json["rows"][0]["error"], 0.25);
  EXPECT_TRUE(json["rows"][1]["error"].is_null());
}

TEST(ApproxTable, AlignsWordsLeftAndNumbersRight) {
  EXPECT_EQ(to_text(example()),
            "An example\nkind    features  error\na             16   0.25\nlonger         4\n");
}

TEST(ApproxTable, TurnsIntoOneTableAGroup) {
  Table table{"t", "Title", {"kind", "features", "std", "error"}, {}};
  for (const double std : {0.5, 1.0}) {
    table.add({std::string("uniform"), int64_t{0}, std, 3.0});
    for (const int64_t features : {8, 16})
      table.add({std::string("a"), features, std, std / static_cast<double>(features)});
  }
  EXPECT_EQ(
      to_pivot_text(table, {"std"}, "kind", "features", "error"),
      "Title\nerror, std 0.5 against features\nkind     0       8      16\nuniform  3\na           0.0625  "
      "0.0312\n\n"
      "error, std 1 against features\nkind     0      8      16\nuniform  3\na           0.125  0.0625\n");
  EXPECT_THROW(to_pivot_text(table, {}, "kind", "none", "error"), UsageError);
}

TEST(ApproxTable, RefusesRowsOfAnotherLength) {
  Table table = example();
  EXPECT_THROW(table.add({std::string("a")}), UsageError);
}

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST(ApproxChart, DrawsWhatHasAPlaceAndEscapesText) {
  Chart chart{"a < b & c", "x", "y", true, true, {}};
  chart.series.push_back(
      {"<one>",
       {{1, 0.5, 0.1}, {10, 0.05, 0}, {100, 0, 0}, {1000, std::numeric_limits<double>::quiet_NaN(), 0}}});
  const std::string svg = to_svg(chart);
  EXPECT_EQ(count(svg, "<circle"), 2 + 1u) << "two points that a logarithmic axis can show, and the legend's";
  EXPECT_EQ(count(svg, "&lt;one&gt;"), 1u);
  EXPECT_EQ(count(svg, "a &lt; b &amp; c"), 2u) << "title and heading";
  EXPECT_EQ(count(svg, "<svg"), count(svg, "</svg>"));
  EXPECT_EQ(count(svg, "<text"), count(svg, "</text>"));
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
}

TEST(ApproxChart, LogarithmicAxesHaveTicksAtPowersOfTen) {
  Chart chart{"t", "x", "y", true, true, {}};
  chart.series.push_back({"s", {{16, 0.001, 0}, {512, 10, 0}}});
  const std::string svg = to_svg(chart);
  for (const char* tick : {">100<", ">0.001<", ">0.01<", ">0.1<", ">1<", ">10<"})
    EXPECT_NE(svg.find(tick), std::string::npos) << tick;
}

TEST(ApproxChart, OfNothingIsStillAPicture) {
  const std::string svg = to_svg({"empty", "x", "y", false, true, {}});
  EXPECT_NE(svg.find("</svg>"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

}  // namespace
}  // namespace performer::studies
