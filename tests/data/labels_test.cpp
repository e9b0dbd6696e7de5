// SPDX-License-Identifier: Apache-2.0
#include "performer/data/labels.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/base/philox.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr LabelForm kSequenceClasses{true, false}, kSequenceValues{false, false}, kTokenClasses{true, true},
    kTokenValues{false, true};

std::string label_file(const std::string& text) {
  // Of this process: ctest runs several at a time.
  const std::string path = fmt::format("{}/performer-labels-{}.tsv", testing::TempDir(), ::getpid());
  write_file(path, text);
  return path;
}

LabelTable labels_of(const std::string& text, const LabelForm& form = kSequenceClasses,
                     const LabelColumns& columns = {}) {
  return LabelTable(label_file(text), form, columns);
}

std::string labels_refused(const std::string& text, const LabelForm& form = kSequenceClasses,
                           const LabelColumns& columns = {}) {
  return performer::test::error_of<Error>([&] { labels_of(text, form, columns); });
}

Record labelled_record(const std::string& id, size_t tokens, int64_t number = 1) {
  Record record;
  record.id = id;
  record.tokens.assign(tokens, 0);
  record.number = number;
  return record;
}

TEST(Labels, ClassesAreNamedByTheTableInOrder) {
  const LabelTable table = labels_of("b\tsoluble\na\t membrane \r\nc\tsoluble\nd\tNA\n");
  EXPECT_THAT(table.classes(), ElementsAre("membrane", "soluble"));
  EXPECT_EQ(table.size(), 3);
  EXPECT_THAT(table.find("a")->values, ElementsAre(0));
  EXPECT_THAT(table.find("c")->values, ElementsAre(1));
  EXPECT_EQ(table.find("d"), nullptr) << "NA is no label";
  EXPECT_FALSE(table.has_weights());
  EXPECT_THAT(labels_of("x,10\ny,9\nz,-1\n").classes(), ElementsAre("-1", "9", "10")) << "numbers as numbers";
}

TEST(Labels, HeadersAreFoundByTheirWords) {
  EXPECT_EQ(labels_of("id,label\na,1.5\n", kSequenceValues).size(), 1);
  EXPECT_EQ(labels_of("what,score\na,1.5\n", kSequenceValues).size(), 1) << "score is no number";
  EXPECT_EQ(labels_of("a,1.5\nb,+2e-1\n", kSequenceValues).size(), 2);
  // ProteinGym's table: mutant, mutated_sequence, DMS_score, DMS_score_bin.
  const LabelTable dms = labels_of(
      "mutant,mutated_sequence,DMS_score,DMS_score_bin\nA1C,CC,-0.5,0\nA1D,DC,0.25,1\n", kSequenceValues);
  EXPECT_THAT(dms.find("A1D")->values, ElementsAre(0.25F));
  const LabelTable named =
      labels_of("gene,x,kd\nA1C,7,2\nA1D,8,3\n", kSequenceValues, {.id = "gene", .label = "kd"});
  EXPECT_THAT(named.find("A1C")->values, ElementsAre(2));
  EXPECT_THAT(labels_refused("gene,x\na,1\n", kSequenceValues, {.label = "kd"}),
              AllOf(HasSubstr("no column 'kd'"), HasSubstr("gene, x")));
}

TEST(Labels, TokensHaveACharacterEachOrAList) {
  const LabelTable letters = labels_of("a\tHH?E\nb\tE\n", kTokenClasses);
  EXPECT_THAT(letters.classes(), ElementsAre("E", "H"));
  const auto& a = letters.find("a")->values;
  ASSERT_EQ(a.size(), 4u);
  EXPECT_EQ(a[0], 1);
  EXPECT_TRUE(std::isnan(a[2])) << "? is a token without a label";
  const LabelTable listed = labels_of("a\thelix, turn,,helix\nb\tturn,helix\n", kTokenClasses);
  EXPECT_THAT(listed.classes(), ElementsAre("helix", "turn"));
  EXPECT_TRUE(std::isnan(listed.find("a")->values[2]));
  const LabelTable wide = labels_of("a\t\xCE\xB1\xCE\xB2\xCE\xB1\n", kTokenClasses);
  EXPECT_EQ(wide.find("a")->values.size(), 3u) << "characters, not bytes";
  const LabelTable values = labels_of("a\t0.5,NA,-1\n", kTokenValues);
  EXPECT_FLOAT_EQ(values.find("a")->values[2], -1);
  EXPECT_TRUE(std::isnan(values.find("a")->values[1]));
}

TEST(Labels, WeightsStandInAThirdColumnOrATableOfTheirOwn) {
  const LabelTable third = labels_of("a\tx\t0.5\nb\ty\t2\n");
  EXPECT_TRUE(third.has_weights());
  EXPECT_EQ(third.find("b")->weight, 2);
  EXPECT_FALSE(labels_of("id\tlabel\tother\na\tx\t0.5\nb\ty\t2\n").has_weights());
  EXPECT_THAT(labels_refused("a\tx\t-1\nb\ty\t2\n"),
              HasSubstr("a weight must be a number of 0 or more, found '-1'"));
  const WeightTable weights(label_file("id\tlength\tweight\na\t7\t0.25\n"));
  EXPECT_EQ(weights.find("a"), 0.25F);
  EXPECT_EQ(weights.find("b"), std::nullopt);
  EXPECT_THAT(performer::test::error_of<InputError>([&] { WeightTable(label_file("a\t-2\n")); }),
              HasSubstr("must be 0 or more"));
}

TEST(Labels, NamesWhatIsWrong) {
  EXPECT_THAT(labels_refused("a\tx\nb\ty\na\ty\n"),
              AllOf(HasSubstr("line 3 ('a')"), HasSubstr("line 1 says something else")));
  EXPECT_EQ(labels_of("a\tx\nb\ty\na\tx\n").repeated(), 1);
  EXPECT_THAT(labels_refused("a\tx\nb\tx\n"), HasSubstr("1 class, 'x'"));
  EXPECT_THAT(labels_refused("a\tx\nb\n"), HasSubstr("1 cells"));
  EXPECT_THAT(labels_refused("a\nb\n"), HasSubstr("one column"));
  EXPECT_THAT(labels_refused("\tx\nb\ty\n"), HasSubstr("the id is empty"));
  EXPECT_THAT(labels_refused("a\t1\nb\ttall\n", kSequenceValues),
              AllOf(HasSubstr("line 2 ('b')"), HasSubstr("expected a number as label, found 'tall'")));
  EXPECT_THAT(labels_refused("a\t1\nb\t1e99\n", kSequenceValues), HasSubstr("expected a number"));
  EXPECT_THAT(labels_refused("a\tNA\n", kSequenceValues), HasSubstr("no label"));
  EXPECT_THAT(labels_refused("id\tlabel\n"), HasSubstr("only a line of column names"));
  std::string many;
  for (int i = 0; i < 5000; ++i) many += fmt::format("s{}\t{}.5\n", i, i);
  EXPECT_THAT(labels_refused(many), AllOf(HasSubstr("4096 classes"), HasSubstr("regression")));
  const std::optional<std::vector<std::string>> known{{"x", "y"}};
  EXPECT_THAT(performer::test::error_of<InputError>(
                  [&] { LabelTable(label_file("a\tz\n"), kSequenceClasses, {}, known); }),
              AllOf(HasSubstr("'z'"), HasSubstr("x, y")));
}

TEST(Labels, OddBytesAreMadePrintable) {
  const LabelTable table = labels_of("a\t\xFF\x1B[31m\nb\ty\n");
  EXPECT_THAT(table.classes(), ElementsAre("\\xff\\x1b[31m", "y"));
}

TEST(LabelledSequences, JoinsByIdAndCountsWhatDoesNotFit) {
  const LabelTable table = labels_of("a\tx\nb\ty\nunused\ty\n3\tx\n");
  LabelledSequences joined(&table, nullptr);
  EXPECT_TRUE(joined.take(labelled_record("a", 5), "fasta"));
  EXPECT_FALSE(joined.take(labelled_record("none", 5, 3), "fasta")) << "numbers are for texts";
  EXPECT_TRUE(joined.take(labelled_record("b", 2), "fasta"));
  EXPECT_TRUE(joined.take(labelled_record("a", 2), "fasta"));
  EXPECT_EQ(joined.size(), 3);
  EXPECT_THAT(std::vector<float>(joined.values(1).begin(), joined.values(1).end()), ElementsAre(1));
  EXPECT_THAT(joined.report("sequences"),
              ElementsAre(AllOf(HasSubstr("1 sequences have no label in "), HasSubstr("'none'")),
                          HasSubstr("1 sequences have an id that another one had before")));
  EXPECT_THAT(unused_labels(table, {&joined}),
              AllOf(HasSubstr("2 of 4 labels"), HasSubstr("'unused', line 3")));
  LabelledSequences texts(&table, nullptr);
  EXPECT_TRUE(texts.take(labelled_record("book.txt:3", 5, 3), "text"));
  EXPECT_THAT(texts.report("documents"), IsEmpty());
  EXPECT_NE(texts.fingerprint(), joined.fingerprint());
}

TEST(LabelledSequences, TokenLabelsMustBeAsManyAsTokens) {
  const LabelTable table = labels_of("a\tHHE\n", kTokenClasses);
  LabelledSequences joined(&table, nullptr);
  EXPECT_TRUE(joined.take(labelled_record("a", 3), "fasta"));
  EXPECT_THAT(performer::test::error_of<InputError>([&] { joined.take(labelled_record("a", 4), "fasta"); }),
              AllOf(HasSubstr("line 1 ('a')"), HasSubstr("expected 4 labels"), HasSubstr("found 3")));
}

// Whatever a stranger's table holds, it is read or refused with a message.
TEST(Labels, AnyBytesAreReadOrRefused) {
  PhiloxStream random(11);
  const std::string alphabet = "ab,\t\n\r\"?.1-eNA#\xFF\xCE\xB1 ";
  int read = 0;
  for (int round = 0; round < 8000; ++round) {
    std::string text;
    for (uint64_t i = random.below(40); i > 0; --i) text += alphabet[random.below(alphabet.size())];
    const auto source = memory_bytes(text);
    TextTable rows;
    try {
      rows = read_table(*source, "t", /*header=*/false);
    } catch (const InputError&) {
      continue;
    }
    for (const LabelForm& form : {kSequenceClasses, kSequenceValues, kTokenClasses, kTokenValues}) {
      try {
        const LabelTable table(rows, "t", form);
        ++read;
        LabelledSequences joined(&table, nullptr);
        joined.take(labelled_record("a", 2), "text");
        for (const std::string& name : table.classes()) EXPECT_EQ(printable(name), name);
      } catch (const InputError& error) {
        EXPECT_STRNE(error.what(), "");
      }
    }
  }
  EXPECT_GT(read, 100) << "not all is refused";
}

}  // namespace
}  // namespace performer::data
