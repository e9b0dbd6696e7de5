// SPDX-License-Identifier: Apache-2.0
#include "performer/data/table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "performer/base/error.h"
#include "tests/data/packed_bytes.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TextTable parse_table(const std::string& text, bool header = true) {
  const auto source = memory_bytes(text);
  return read_table(*source, "t.csv", header);
}

std::string table_refusal(const std::string& text) {
  return performer::test::error_of<InputError>([&] { parse_table(text); });
}

TEST(TextTable, ReadsCommasTabsQuotesAndLineEnds) {
  const TextTable commas =
      parse_table("\xEF\xBB\xBF# a comment\r\n\r\na,b\r\n1,\"x, \"\"y\"\"\n z\"\r\n\n2,\r\n");
  EXPECT_THAT(commas.columns, ElementsAre("a", "b"));
  ASSERT_EQ(commas.rows.size(), 2u);
  EXPECT_THAT(commas.rows[0].cells, ElementsAre("1", "x, \"y\"\n z"));
  EXPECT_EQ(commas.rows[0].line, 4);
  EXPECT_THAT(commas.rows[1].cells, ElementsAre("2", ""));
  EXPECT_EQ(commas.rows[1].line, 7);
  const TextTable tabs = parse_table("a\tb\n1,5\t2");
  EXPECT_THAT(tabs.rows[0].cells, ElementsAre("1,5", "2"));
  EXPECT_EQ(tabs.find("b"), std::optional<size_t>(1));
  EXPECT_EQ(tabs.find("c"), std::nullopt);
  EXPECT_EQ(parse_table("one\ntwo", false).rows.size(), 2u);
}

TEST(TextTable, NamesWhatIsWrong) {
  EXPECT_THAT(table_refusal("a,b\n1,2\n1,2,3\n"),
              HasSubstr("t.csv, line 3: 3 cells, but the first row has 2"));
  EXPECT_THAT(table_refusal("a,b\n1,\"2\n"), HasSubstr("line 2: the quote that begins a cell is not closed"));
  EXPECT_THAT(table_refusal("a,b\n1,\"2\"3\n"), HasSubstr("text follows the closing quote"));
  EXPECT_THAT(table_refusal("a,a\n1,2\n"), HasSubstr("two columns are named 'a'"));
  EXPECT_THAT(table_refusal("# nothing\n\n"), HasSubstr("the table is empty"));
  EXPECT_THAT(table_refusal(std::string("a\0b", 3)), HasSubstr("zero bytes"));
}

TEST(TextTable, IsUnpacked) {
  const std::string path = testing::TempDir() + "/table.csv.gz";
  write_file(path, test::gzip("a,b\n1,2\n"));
  EXPECT_THAT(read_table(path, true).rows[0].cells, ElementsAre("1", "2"));
}

}  // namespace
}  // namespace performer::data
