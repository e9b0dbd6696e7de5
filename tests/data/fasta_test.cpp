// SPDX-License-Identifier: Apache-2.0
#include "performer/data/fasta/fasta.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <functional>

#include "performer/base/error.h"
#include "tests/data/packed_bytes.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using performer::test::error_of;
using test::file_with;
using testing::AllOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

struct Parsed {
  std::vector<Record> records;
  std::vector<std::string> residues;
  ReadReport report;
  // The count of the line of the report that holds `words`; 0 when there is none.
  int64_t count(std::string_view words) const {
    for (const ReportLine& line : report.lines) {
      if (line.text.find(words) != std::string::npos) return line.count;
    }
    return 0;
  }
};

Parsed parse(FastaReader reader) {
  Parsed parsed;
  Record record;
  while (reader.next(record)) {
    parsed.records.push_back(record);
    parsed.residues.push_back(reader.vocabulary().decode(record.tokens));
  }
  EXPECT_FALSE(reader.next(record)) << "the end lasts";
  parsed.report = reader.report();
  return parsed;
}

Parsed parse(std::string_view text) {
  return parse(FastaReader(memory_bytes(text), "input"));
}

std::string parse_error(std::string_view text) {
  return error_of<InputError>([&] { parse(text); });
}

// Hands out at most `step` bytes a call.
class SlowSource final : public ByteSource {
 public:
  SlowSource(std::string_view bytes, size_t step) : left_(bytes), step_(step) {}
  size_t read(char* buffer, size_t size) override {
    const size_t count = left_.copy(buffer, std::min(size, step_));
    left_.remove_prefix(count);
    return count;
  }

 private:
  std::string_view left_;
  size_t step_;
};

TEST(Fasta, ReadsRecordsInOrder) {
  const Parsed parsed = parse(">a first one\nACD\nEF\n>b\nGHI\n");
  ASSERT_EQ(parsed.records.size(), 2u);
  EXPECT_THAT(parsed.residues, ElementsAre("ACDEF", "GHI"));
  EXPECT_EQ(parsed.records[0].id, "a");
  EXPECT_EQ(parsed.records[0].header, "a first one");
  EXPECT_EQ(parsed.records[0].number, 1);
  EXPECT_EQ(parsed.records[0].line, 1);
  EXPECT_EQ(parsed.records[1].id, "b");
  EXPECT_EQ(parsed.records[1].number, 2);
  EXPECT_EQ(parsed.records[1].line, 4);
  EXPECT_EQ(parsed.report.records, 2);
  EXPECT_EQ(parsed.report.tokens, 8);
}

TEST(Fasta, TakesEveryLineEnd) {
  for (const char* text :
       {">a x\r\nAC\r\nDE\r\n>b\r\nF\r\n", ">a x\nAC\nDE\n>b\nF", ">a x \nAC \n DE\n>b\n\tF\t",
        "\n \r\n>a x\n\nAC\n\n\nDE\n \n>b\nF\n\n", "; old\n>a x\n;note > 1*\nAC\nDE\n ;x\n>b\n;\nF\n;end"}) {
    const Parsed parsed = parse(text);
    EXPECT_THAT(parsed.residues, ElementsAre("ACDE", "F")) << text;
    EXPECT_EQ(parsed.records[0].header, "a x") << text;
    EXPECT_EQ(parsed.records[1].id, "b") << text;
  }
}

TEST(Fasta, UpperCasesAndCounts) {
  const Parsed parsed = parse(">a\nacDx\n>b\nE\n");
  EXPECT_THAT(parsed.residues, ElementsAre("ACDX", "E"));
  EXPECT_EQ(parsed.count("lower-case"), 3);
}

TEST(Fasta, DropsAStopAtTheEndOnly) {
  const Parsed parsed = parse(">a\nACD*\n>b\nAC\n*\n\n>c\nAC\n>d\nAC*-");
  EXPECT_THAT(parsed.residues, ElementsAre("ACD", "AC", "AC", "AC"));
  EXPECT_EQ(parsed.count("'*'"), 3);
  EXPECT_THAT(parse_error(">a\nAC\nA*C\n"),
              AllOf(HasSubstr("input: record 1 (a), line 3, column 2: '*' before the end"),
                    HasSubstr("last letter")));
  EXPECT_THAT(parse_error(">a\nA*\nC\n"), HasSubstr("line 2, column 2: '*' before the end"));
  EXPECT_THAT(parse_error(">a\nAC**\n"), HasSubstr("line 2, column 4: illegal letter '*'"));
}

TEST(Fasta, DropsGapsAndCounts) {
  const Parsed parsed = parse(">a\n--AC.D-\n");
  EXPECT_THAT(parsed.residues, ElementsAre("ACD"));
  EXPECT_EQ(parsed.count("gaps"), 4);
}

TEST(Fasta, ReadsJAsXAndCounts) {
  const Parsed parsed = parse(">a\nAJjX\n");
  EXPECT_THAT(parsed.residues, ElementsAre("AXXX"));
  EXPECT_EQ(parsed.count("J read as X"), 2);
  EXPECT_EQ(parsed.count("lower-case"), 1);
}

TEST(Fasta, TakesEveryResidueAndSpacesInLines) {
  EXPECT_THAT(parse(">a\nACDEF GHIKL\tMNPQR STVWY BOUXZ\n").residues,
              ElementsAre("ACDEFGHIKLMNPQRSTVWYBOUXZ"));
}

TEST(Fasta, KeepsDuplicateNamesAndCounts) {
  const Parsed parsed = parse(">a 1\nA\n>b\nC\n>a 2\nA\n>a\nD\n");
  EXPECT_THAT(parsed.residues, ElementsAre("A", "C", "A", "D"));
  EXPECT_EQ(parsed.count("duplicate names"), 2);
}

TEST(Fasta, TakesHeadersWithoutNames) {
  const Parsed parsed = parse(">\nA\n>  x y\nC\n");
  EXPECT_EQ(parsed.records[0].id, "");
  EXPECT_EQ(parsed.records[1].id, "x");
  EXPECT_EQ(parsed.records[1].header, "x y");
}

TEST(Fasta, PassesAByteOrderMark) {
  EXPECT_THAT(parse("\xef\xbb\xbf>a\nAC\n").residues, ElementsAre("AC"));
}

TEST(Fasta, NamesTheIllegalLetter) {
  EXPECT_THAT(parse_error(">a\nACD\n>b c\nAC\nAC1D\n"),
              AllOf(StartsWith("input: record 2 (b), line 5, column 3: illegal letter '1'"),
                    HasSubstr("ACDEFGHIKLMNPQRSTVWYBOUXZ and J")));
  EXPECT_THAT(parse_error(std::string_view(">a\nA\0C\n", 7)),
              HasSubstr("line 2, column 2: illegal letter byte 0x00"));
  EXPECT_THAT(parse_error(">a\nAC\xc3\xa9\n"), HasSubstr("column 3: illegal letter byte 0xc3"));
  EXPECT_THAT(parse_error(">a\nAC>b\n"), HasSubstr("column 3: illegal letter '>'"));
}

TEST(Fasta, CountsColumnsAcrossBuffers) {
  std::string text = ">a\n" + std::string(1'000'000, 'A') + "?\n";
  EXPECT_THAT(parse_error(text), HasSubstr("line 2, column 1000001: illegal letter '?'"));
}

TEST(Fasta, RefusesARecordWithoutSequence) {
  EXPECT_THAT(parse_error(">a\nA\n>b x\n\n>c\nA\n"), HasSubstr("input: record 2 (b), line 3: no sequence"));
  EXPECT_THAT(parse_error(">a\nA\n>b"), HasSubstr("record 2 (b), line 3: no sequence"));
  EXPECT_THAT(parse_error(">a\n--\n*\n"), HasSubstr("record 1 (a), line 1: no sequence"));
  EXPECT_THAT(parse_error(">a\rACD\r>b\rACD\r"), HasSubstr("bare carriage returns"));
}

TEST(Fasta, RefusesWhatIsNotFasta) {
  EXPECT_THAT(parse_error("MKV\n"), HasSubstr("input is not FASTA: line 1 begins with 'M', expected '>'"));
  EXPECT_THAT(parse_error("\n;x\n  {\"a\":1}"), HasSubstr("line 3 begins with '{'"));
  EXPECT_THAT(parse_error("BZh91AY&SY"), HasSubstr("bunzip2"));
  EXPECT_THAT(parse_error("@read1\nACGT\n"), HasSubstr("FASTQ"));
  EXPECT_THAT(parse_error(""), HasSubstr("input is empty"));
  EXPECT_THAT(parse_error("\n \n;only\n"), HasSubstr("input has no FASTA record"));
}

TEST(Fasta, NamesFilesThatCannotBeRead) {
  const std::string missing = testing::TempDir() + "no-such-file.fasta";
  EXPECT_EQ(error_of<InputError>([&] { FastaReader reader(missing); }),
            "cannot read " + missing + ": No such file or directory");
  EXPECT_THAT(error_of<InputError>([&] { FastaReader reader(testing::TempDir()); }),
              HasSubstr("it is a directory"));
}

TEST(Fasta, ReadsFilesPackedOrNot) {
  const std::string text = ">a\nACD\n>b\nEFG\n";
  using test::gzip, test::zstd, test::bgzip;
  const std::string skippable("\x5a\x2a\x4d\x18\x02\x00\x00\x00xy", 10);
  const std::vector<std::string> forms = {text,
                                          gzip(text),
                                          gzip(text.substr(0, 5)) + gzip(text.substr(5)),
                                          gzip(text) + std::string(600, '\0'),
                                          bgzip(text.substr(0, 9)) + bgzip(text.substr(9)) + bgzip(""),
                                          zstd(text),
                                          zstd(text.substr(0, 5)) + zstd("") + zstd(text.substr(5)),
                                          skippable + zstd(text) + skippable,
                                          test::zstd_with_window(text, 27)};
  for (size_t i = 0; i < forms.size(); ++i) {
    const Parsed parsed = parse(FastaReader(file_with(forms[i])));
    EXPECT_THAT(parsed.residues, ElementsAre("ACD", "EFG")) << "form " << i;
    for (const size_t step : {1, 2, 7}) {
      const Parsed slow = parse(FastaReader(std::make_unique<SlowSource>(forms[i], step), "slow"));
      EXPECT_THAT(slow.residues, ElementsAre("ACD", "EFG")) << "form " << i << " step " << step;
    }
  }
}

std::string random_residues(size_t size, uint32_t seed) {
  std::string residues(size, ' ');
  for (char& residue : residues)
    residue = std::string_view("ACDEFGHIKLMNPQRS")[(seed = seed * 1664525 + 1013904223) >> 8 & 15];
  return residues;
}

TEST(Fasta, FindsTruncationAtEveryByte) {
  const std::string text = ">a\n" + random_residues(300, 1) + "\n";
  for (const auto& [packed, shortest] : {std::pair(test::gzip(text), 2), std::pair(test::zstd(text), 4)}) {
    for (size_t size = shortest; size < packed.size(); ++size) {
      EXPECT_THAT(parse_error(std::string_view(packed).substr(0, size)), HasSubstr("input is truncated"))
          << size;
    }
  }
  const std::string members = test::bgzip(text) + test::bgzip(">b\nAC\n");
  EXPECT_THAT(parse_error(members), HasSubstr("input is truncated: the bgzip data"));
  const std::string frames = test::zstd(text) + test::zstd(text);
  EXPECT_THAT(parse_error(std::string_view(frames).substr(0, frames.size() - 3)),
              HasSubstr("truncated: the zstd data"));
}

TEST(Fasta, FindsDamage) {
  const std::string text = ">a\n" + random_residues(3000, 2) + "\n";
  std::string gzip = test::gzip(text);
  gzip[gzip.size() / 2] ^= 0x10;
  EXPECT_THAT(parse_error(gzip), HasSubstr("input is damaged: it is not valid gzip data"));
  gzip = test::gzip(text);
  gzip[gzip.size() - 6] ^= 1;  // checksum
  EXPECT_THAT(parse_error(gzip), HasSubstr("incorrect data check"));
  EXPECT_THAT(parse_error(test::gzip(text) + "junk"), HasSubstr("other bytes follow"));
  EXPECT_THAT(parse_error(test::zstd(text) + "junk"),
              HasSubstr("input is damaged: it is not valid zstd data"));
  EXPECT_THAT(parse_error(test::gzip("")), HasSubstr("input is empty"));
  EXPECT_THAT(parse_error(test::zstd_with_window(text, 28)),
              AllOf(HasSubstr("128 MiB"), HasSubstr("zstd -dc --long=31")));
}

TEST(Fasta, ReadsStandardInput) {
  const std::string path = file_with(test::gzip(">a\nACD\n"));
  const int saved = dup(STDIN_FILENO), file = open(path.c_str(), O_RDONLY);
  dup2(file, STDIN_FILENO);
  const Parsed parsed = parse(FastaReader("-"));
  EXPECT_THAT(error_of<InputError>([] { parse(FastaReader("-")); }), HasSubstr("standard input is empty"))
      << "it was read to the end";
  dup2(saved, STDIN_FILENO);
  close(file);
  close(saved);
  EXPECT_THAT(parsed.residues, ElementsAre("ACD"));
}

TEST(Fasta, ReadsVeryLongRecords) {
  const std::string residues = random_residues(5'000'003, 3);
  for (const int width : {0, 60}) {
    const std::string text = format_fasta("long", residues, width) + format_fasta("short", "ACD");
    const Parsed parsed = parse(text);
    ASSERT_EQ(parsed.residues.size(), 2u);
    EXPECT_TRUE(parsed.residues[0] == residues);
    EXPECT_EQ(parsed.residues[1], "ACD");
    EXPECT_EQ(parsed.report.tokens, 5'000'006);
  }
}

TEST(Fasta, FormatsWrapped) {
  EXPECT_EQ(format_fasta("a b", "ACDEFG", 4), ">a b\nACDE\nFG\n");
  EXPECT_EQ(format_fasta("a", "ACDEFGHI", 4), ">a\nACDE\nFGHI\n");
  EXPECT_EQ(format_fasta("a", "ACDEFG", 0), ">a\nACDEFG\n");
}

TEST(Report, AddsUpAndTellsWhatChanged) {
  ReadReport report{1, 2, "sequences", "residues", {{3, "gaps dropped"}}};
  EXPECT_EQ(summary(report), "1 sequences, 2 residues; 3 gaps dropped");
  ReadReport other{10, 20, "sequences", "residues", {{40, "J read as X"}, {30, "gaps dropped"}}};
  report += other;
  EXPECT_EQ(summary(report), "11 sequences, 22 residues; 33 gaps dropped; 40 J read as X");
  EXPECT_EQ(changes(report), "33 gaps dropped; 40 J read as X");
  report.add(0, "nothing");
  EXPECT_EQ(report.lines.size(), 2u);
  EXPECT_EQ(changes(ReadReport{}), "");
  EXPECT_EQ(summary(ReadReport{}), "0 sequences, 0 tokens");
}

}  // namespace
}  // namespace performer::data
