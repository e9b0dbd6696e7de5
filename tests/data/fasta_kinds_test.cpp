// SPDX-License-Identifier: Apache-2.0
// What FASTA files hold beside letters: each kind is read, counted, or refused with its place and a cure.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "performer/base/error.h"
#include "performer/data/fasta/fasta.h"
#include "tests/data/packed_bytes.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using performer::test::error_of;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

struct Reading {
  std::vector<std::string> ids, letters;
  ReadReport report;
};

Reading read(std::string_view text, const Vocabulary& vocabulary = Vocabulary::protein()) {
  FastaReader reader(memory_bytes(text), "input", vocabulary);
  Reading reading;
  Record record;
  while (reader.next(record)) {
    reading.ids.push_back(record.id);
    reading.letters.push_back(vocabulary.decode(record.tokens));
  }
  reading.report = reader.report();
  return reading;
}

std::string failure(std::string_view text, const Vocabulary& vocabulary = Vocabulary::protein()) {
  return error_of<InputError>([&] { read(text, vocabulary); });
}

const std::string kLine = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVK";

TEST(FastaWords, AreNotReadAsLetters) {
  const std::string before = ">a\n" + kLine + "\n", after = "\nGSHMRYLEPAVSNDKQWTC\n";
  for (const char* words : {"Resource temporarily unavailable", "resource temporarily unavailable", "Killed",
                            "Segmentation", "RESOURCE TEMPORARILY UNAVAILABLE", "disk full", "Core dumped",
                            "NO SPACE LEFT", "Disk full", "last line with words"}) {
    for (const std::string& text :
         {before + words + after, before + words, before + words + "\n>b\nAC\n",
          before + words + "\r\n" + kLine + "\r\n", before + " " + words + " " + after}) {
      EXPECT_THAT(
          failure(text),
          AllOf(StartsWith("input: record 1 (a), line 3: the line reads like words, not like residues: '"),
                HasSubstr(words), HasSubstr("remove it")))
          << text;
    }
  }
  EXPECT_THAT(failure(">a of a long description\nthat goes on here\n" + kLine),
              HasSubstr("line 2: the line reads like words"));
  EXPECT_THAT(
      failure(before + "Resource temporarily unavailable (4)." + after),
      AllOf(HasSubstr("line 3, column 34: illegal letter '('"),
            HasSubstr(
                "the line begins with 'Resource temporarily unavailable ': if these are words, remove it")));
}

TEST(FastaWords, AreToldFromSequencesAsPeopleWriteThem) {
  for (const char* text :
       {">a\nACDEF GHIKL MNPQR\nSTV\n", ">a\nmktayiakqr qisfvkshfs\nrqleerlg\n", ">a\nM K T A Y\n",
        ">a\nmktayiakqr\nqisfv\n", ">a\n--MKTAYiakqrqISFVKS...HFSR\n-----DNLSgaekAVQ\n",
        ">a\nMktayiakq\nMktayiakq\n", ">a\nmktayIAKQR\nKilled\n", ">a\nACDEF\tGHIKL\nMN\n",
        ">a\nACDEF GHIK-\nMNPQR S*\n", ">a\nMKT \n AYI\n\tAKQ\n", ">a\nACD EFG\nH\n>b\nKLM NPQ\n"}) {
    EXPECT_NO_THROW(read(text)) << text;
  }
  // A vocabulary in which small letters are letters of their own says nothing about words.
  const Vocabulary own = Vocabulary::of_symbols("own", {"a", "b", "A", "B"});
  EXPECT_THAT(read(">x\nABAB\nAbab\naa b\n", own).letters, ElementsAre("ABABAbabaab"));
}

TEST(FastaBlanks, AreCountedBetweenLetters) {
  EXPECT_EQ(summary(read(">a\nACDEF GHIKL  MNPQR\n STV \n").report),
            "1 sequences, 18 residues; 2 blanks between letters dropped");
  EXPECT_THAT(read(">a\n ACD \r\nEF\t\n").report.lines, IsEmpty());
}

TEST(FastaRecords, GluedToEachOtherAreNamed) {
  for (const std::string& text :
       {">a\n" + kLine + ">b second\nMVL\n", ">a\n" + kLine + "*>b second\nMVL\n",
        ">a\n" + kLine + "\r>b second\nMVL\n", ">a\n" + kLine + " >b second\nMVL\n"}) {
    EXPECT_THAT(failure(text),
                AllOf(HasSubstr("input: record 1 (a), line 2, column 6"),
                      HasSubstr("illegal letter '>' (the line end before a header is missing")))
        << text;
  }
}

TEST(FastaCarriageReturns, NeverHideARecord) {
  for (const std::string& text :
       std::vector<std::string>{">a\rACD\r>b\rACD\r", ">a\r" + kLine + "\r>b\r" + kLine + "\r>c\nGSH\n",
                                ">a\nACD\n>b\rACD\n", ">a x\ry\nACD\n"}) {
    EXPECT_THAT(failure(text),
                AllOf(HasSubstr("lines end with bare carriage returns"), HasSubstr("tr '\\r' '\\n'")))
        << text;
  }
  EXPECT_THAT(failure("; note\r>a\rACD\n"), HasSubstr("bare carriage return"));
  EXPECT_THAT(failure(">a\nACD\n;x\r>b\rACD\n"),
              HasSubstr("line 3: the comment ends with a bare carriage return"));
  // Within a sequence they are line ends; at the end of a line they are a part of it.
  const Reading mixed = read(">a\r\nACD\rEF\rGH\r\r\n>b\r\r\nAC\r\nDE\r\n");
  EXPECT_THAT(mixed.letters, ElementsAre("ACDEFGH", "ACDE"));
  EXPECT_EQ(changes(mixed.report), "2 bare carriage returns within sequences read as line ends");
  EXPECT_THAT(failure(">a\nACDEF\rKilled\rACD\n"), HasSubstr("reads like words"));
}

TEST(FastaCharacters, AreNamedWithTheirPlace) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"\xc2\xa0", "illegal letter byte 0xc2 (a no-break space, U+00A0: remove it)"},
      {"\xe2\x80\x8b", "byte 0xe2 (a zero-width space, which is not shown, U+200B: remove it)"},
      {"\xd0\x90", "byte 0xd0 (a Cyrillic letter that looks like 'A', U+0410: write the Latin letter)"},
      {"\xce\x95", "byte 0xce (a Greek letter that looks like 'E', U+0395: write the Latin letter)"},
      {"\xef\xbc\xad", "byte 0xef (a wide 'M', U+FF2D: write the Latin letter)"},
      {"\xef\xbb\xbf",
       "byte 0xef (a byte order mark, which belongs at the start of a file, U+FEFF: remove it)"},
      {"\xe2\x80\x93", "byte 0xe2 (a dash; gaps are written '-', U+2013: remove it)"},
      {"\x1a", "byte 0x1a (Ctrl-Z, the end-of-file mark of DOS: remove it"},
      {"\xc3\xa9", "byte 0xc3 ('\xc3\xa9', U+00E9)"},
      {"\xe9", "byte 0xe9 (no UTF-8"},
      {"7", "'7' (if it counts positions, remove it)"},
      {"?", "illegal letter '?'; accepted are ACDEFGHIKLMNPQRSTVWYBOUXZ and J (read as X)"}};
  for (const auto& [character, note] : cases) {
    EXPECT_THAT(failure(">a\nMKT" + std::string(character) + "YIAK\n"),
                AllOf(StartsWith("input: record 1 (a), line 2, column 4: illegal letter"), HasSubstr(note)));
    EXPECT_THAT(failure(">a\nMKT" + std::string(character)), HasSubstr(note)) << "at the end of the input";
  }
  EXPECT_THAT(failure(std::string(">a\nMKT\0Y\n", 9)), HasSubstr("byte 0x00 (a zero: "));
}

TEST(FastaNames, EndBeforeControlA) {
  const Reading reading =
      read(">WP_1.1 kinase [Bug]\x01XP_2.1 kinase\nMKT\n>WP_3.1\x01XP_4.1\nMVL\n>c\nMV\n");
  EXPECT_THAT(reading.ids, ElementsAre("WP_1.1", "WP_3.1", "c"));
  EXPECT_EQ(changes(reading.report), "2 headers of several entries (joined by Ctrl-A), named by the first");
}

TEST(FastaNames, WithControlCharactersAreCountedAndEscaped) {
  const std::string name = "\x1b[31mred\x1b[0m_\xdcsiegelii";
  EXPECT_EQ(changes(read(">" + name + "\nMKT\n>b\nMK\n").report), "1 names with control characters kept");
  EXPECT_THAT(
      failure(">" + name + "\nMKT1\n"),
      AllOf(HasSubstr("record 1 (\\x1b[31mred\\x1b[0m_\\xdcsiegelii), line 2"), Not(HasSubstr("\x1b"))));
  EXPECT_THAT(failure(">" + std::string(5000, 'n') + "\nMKT1\n"), testing::SizeIs(testing::Lt(400u)));
}

TEST(FastaHeaders, OfPirAreRefused) {
  EXPECT_THAT(failure(">a\nMKT\n>P1;X\ndescription\nMKT*\n"),
              AllOf(HasSubstr("record 2 (P1;X), line 3"), HasSubstr("PIR")));
  EXPECT_THAT(read(">N1;size=3;\nMKT\n").ids, ElementsAre("N1;size=3;"));
}

TEST(FastaLimits, AreStated) {
  FastaReader reader(memory_bytes(">a\nACDEF\n>b\nACD\nEFG\n"), "input", Vocabulary::protein(), 5);
  Record record;
  EXPECT_TRUE(reader.next(record));
  EXPECT_EQ(error_of<InputError>([&] { reader.next(record); }),
            "input: record 2 (b), line 5: the sequence has more than 5 residues: split it");
  EXPECT_THAT(failure(">" + std::string((1 << 24) + 1, 'n') + "\nMKT\n"),
              HasSubstr("the header has more than 16777216 bytes"));
}

TEST(FastaOfNucleotides, IsSuspectedInProteins) {
  const std::string dna = "ATGGAAGCTACGAAGTCGTCGAAACAAAATTGTTGCAACCCGNNNN";
  EXPECT_EQ(changes(read(">a\n" + dna + "\n>b\n" + kLine + "\n>c\n" + dna + "\n>d\nACGT\n").report),
            "2 sequences of A, C, G, T, U and N only, read as proteins: if they are DNA or RNA, "
            "data.vocabulary must be dna "
            "or rna");
  EXPECT_THAT(read(">a\n" + dna + "\n", Vocabulary::dna()).report.lines, IsEmpty());
  EXPECT_THAT(read(">P02732 an antifreeze protein\nAATAATAATAATAATAATAATAATAATAATA\n").report.lines,
              IsEmpty());
}

TEST(FastaOfProteins, IsSuspectedInNucleotides) {
  for (const Vocabulary& vocabulary : {Vocabulary::dna(), Vocabulary::rna()}) {
    EXPECT_THAT(
        failure(">a\n" + kLine + "\n", vocabulary),
        AllOf(HasSubstr("illegal letter 'I'; accepted are ACG"),
              HasSubstr("the sequences seem to be proteins"), HasSubstr("data.vocabulary = protein")));
  }
  EXPECT_THAT(failure(">a\nACG?\n", Vocabulary::dna()), Not(HasSubstr("proteins")));
}

}  // namespace
}  // namespace performer::data
