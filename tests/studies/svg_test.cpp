// SPDX-License-Identifier: Apache-2.0
// Pictures: text in them is safe, and their numbers stand where they should.
#include "performer/studies/svg.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "performer/base/error.h"
#include "performer/studies/chart.h"
#include "performer/studies/heat_map.h"

namespace performer::studies {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Svg, EscapesText) {
  EXPECT_EQ(escape("<a href=\"x\" class='y'> & \x01\xff\ttab\nline"),
            "&lt;a href=&quot;x&quot; class=&#39;y&#39;&gt; &amp; \\x01\\xff\\ttab\nline");
  EXPECT_EQ(escape("é"), "é");
}

TEST(Svg, EncodesBase64) {  // RFC 4648, section 10
  EXPECT_EQ(base64(""), "");
  EXPECT_EQ(base64("f"), "Zg==");
  EXPECT_EQ(base64("fo"), "Zm8=");
  EXPECT_EQ(base64("foo"), "Zm9v");
  EXPECT_EQ(base64("foobar"), "Zm9vYmFy");
  EXPECT_EQ(base64("\xff\xfe\xfd"), "//79");
}

TEST(Chart, NamesPlacesAndLeavesOutMarks) {
  Chart chart{"<title>", "x", "y", false, false, {{"one", {{0, 1}, {1, 2}, {2, 3}}}}};
  chart.description = "what & why";
  chart.x_names = {"A", "C<", "D"};
  const std::string svg = to_svg(chart);
  EXPECT_THAT(svg, HasSubstr("<desc>what &amp; why</desc>"));
  EXPECT_THAT(svg, HasSubstr("<title>&lt;title&gt;</title>"));
  EXPECT_THAT(svg, HasSubstr(">C&lt;</text>"));
  EXPECT_THAT(svg, HasSubstr("<circle"));
  chart.series[0].marks = false;
  EXPECT_THAT(to_svg(chart), Not(HasSubstr("<circle")));
}

TEST(HeatMap, BlocksAreMeans) {
  BlockMean means(5, 4, 2);  // rows 0 1 2 | 3 4, columns 0 1 | 2 3
  for (int64_t row = 0; row < 5; ++row) {
    const double values[] = {1.0 * row, 2.0 * row, 10, 20};
    means.add(row, values);
  }
  EXPECT_EQ(means.rows(), 2);
  EXPECT_EQ(means.columns(), 2);
  EXPECT_THAT(means.means(), ElementsAre(1.5, 15, 5.25, 15));
  BlockMean whole(2, 1, 10);
  const double one = 7, two = 8;
  whole.add(1, &two);
  whole.add(0, &one);
  EXPECT_THAT(whole.means(), ElementsAre(7, 8));
}

TEST(HeatMap, RefusesValuesThatDoNotFit) {
  HeatMap map;
  map.rows = map.columns = 2;
  map.values = {1, 2, 3};
  EXPECT_THROW(to_svg(HeatMapPage{"", "", {map}}), UsageError);
  map.values.push_back(4);
  EXPECT_THAT(to_svg(HeatMapPage{"t", "", {map}}), HasSubstr("data:image/png;base64,iVBOR"));
}

}  // namespace
}  // namespace performer::studies
