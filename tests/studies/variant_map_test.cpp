// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/variant_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace performer::studies {
namespace {

using testing::HasSubstr;

TEST(VariantMap, HasACellForEachReplacementAndAMarkForTheOwn) {
  VariantMap map{"a <title>", "score", {'A', 'C'},
                 "ACA",       11,      {{0, -2, 0}, {1, 0, std::numeric_limits<double>::quiet_NaN()}}};
  const std::string svg = to_svg(map);
  EXPECT_THAT(svg, HasSubstr("a &lt;title&gt;"));
  EXPECT_THAT(svg, HasSubstr("A11C 1.000"));
  EXPECT_THAT(svg, HasSubstr("C12A -2.000"));
  EXPECT_THAT(svg, HasSubstr("A13C none"));
  size_t own = 0;
  for (size_t at = svg.find("<circle"); at != std::string::npos; at = svg.find("<circle", at + 1)) ++own;
  EXPECT_EQ(own, 3u);
  EXPECT_THAT(svg, testing::EndsWith("</svg>\n"));
}

TEST(VariantMap, LongSequencesAreBandsBelowEachOther) {
  const auto height = [](int64_t length) {
    const std::string svg = to_svg({"t",
                                    "l",
                                    {'A'},
                                    std::string(static_cast<size_t>(length), 'C'),
                                    1,
                                    {std::vector(static_cast<size_t>(length), 0.5)}});
    return std::stod(svg.substr(svg.find("height=\"") + 8));
  };
  EXPECT_EQ(height(1), height(kPositionsInBand));
  EXPECT_LT(height(kPositionsInBand), height(kPositionsInBand + 1));
}

}  // namespace
}  // namespace performer::studies
