// SPDX-License-Identifier: Apache-2.0
#include "performer/data/text/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "performer/base/error.h"
#include "tests/data/packed_bytes.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using performer::test::error_of;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

struct Texts {
  std::vector<Record> records;
  std::vector<std::string> documents;
  ReadReport report;
};

Texts read_texts(std::string_view bytes, Documents documents = Documents::file,
                 const Vocabulary& vocabulary = Vocabulary::bytes()) {
  TextReader reader(memory_bytes(bytes), "folder/in put.txt", documents, vocabulary);
  Texts texts;
  Record record;
  while (reader.next(record)) {
    texts.records.push_back(record);
    texts.documents.push_back(vocabulary.decode(record.tokens));
  }
  EXPECT_FALSE(reader.next(record)) << "the end lasts";
  texts.report = reader.report();
  return texts;
}

std::string text_error(std::string_view bytes, Documents documents = Documents::file,
                       const Vocabulary& vocabulary = Vocabulary::bytes()) {
  return error_of<InputError>([&] { read_texts(bytes, documents, vocabulary); });
}

TEST(Text, IsOneDocumentByteForByte) {
  const std::string bytes("\n\xff\x00 a\r\n\n\xc3\xa9\n", 11);
  const Texts texts = read_texts(bytes);
  EXPECT_THAT(texts.documents, ElementsAre(bytes));
  EXPECT_EQ(texts.records[0].id, "in_put.txt");
  EXPECT_EQ(texts.records[0].header, "folder/in put.txt");
  EXPECT_EQ(texts.records[0].number, 1);
  EXPECT_EQ(texts.records[0].line, 1);
  EXPECT_EQ(summary(texts.report), "1 documents, 11 bytes");
}

TEST(Text, EndsDocumentsAtBlankLines) {
  const Texts texts = read_texts("\n \na\nb\r\n\t\r\n\n\nc d\n\ne", Documents::blank_line);
  EXPECT_THAT(texts.documents, ElementsAre("a\nb", "c d", "e"));
  EXPECT_EQ(texts.records[0].line, 3);
  EXPECT_EQ(texts.records[1].line, 8);
  EXPECT_EQ(texts.records[2].line, 10);
  EXPECT_EQ(texts.records[1].id, "in_put.txt:2");
  EXPECT_EQ(texts.records[1].number, 2);
  EXPECT_EQ(summary(texts.report), "3 documents, 7 bytes");
}

TEST(Text, ReadsPackedAndLongInputs) {
  std::string bytes(700'000, 'x');
  bytes += "\n\n" + std::string(300'000, 'y') + "\n";
  for (const std::string& packed : {bytes, test::gzip(bytes), test::zstd(bytes)}) {
    EXPECT_THAT(read_texts(packed).documents, ElementsAre(bytes));
    EXPECT_THAT(read_texts(packed, Documents::blank_line).documents,
                ElementsAre(std::string(700'000, 'x'), std::string(300'000, 'y')));
  }
  const std::string packed = test::gzip(bytes);
  EXPECT_THAT(text_error(std::string_view(packed).substr(0, packed.size() - 1)), HasSubstr("is truncated"));
}

TEST(Text, DropsWhiteSpaceThatIsNoSymbol) {
  const Texts texts = read_texts("AC GT\nNN\n\n\nU", Documents::file, Vocabulary::dna());
  EXPECT_THAT(texts.documents, ElementsAre("ACGTNNT"));
  EXPECT_EQ(summary(texts.report),
            "1 documents, 7 nucleotides; 5 bytes of white space dropped, which are no symbols of dna");
  const Vocabulary own = Vocabulary::of_symbols("own", {" ", "to", "t", "o", "be"});
  const Texts words = read_texts("to be\n\ntot o", Documents::blank_line, own);
  EXPECT_THAT(words.records[0].tokens, ElementsAre(1, 0, 4));
  EXPECT_THAT(words.records[1].tokens, ElementsAre(1, 2, 0, 3));
  EXPECT_THAT(words.report.lines, testing::IsEmpty());
}

TEST(Text, NamesWhatIsNoSymbol) {
  EXPECT_THAT(text_error("\nAC\n\nGA\nCxA\n", Documents::blank_line, Vocabulary::dna()),
              AllOf(HasSubstr("folder/in put.txt: line 5, column 2: 'x' is no symbol of the vocabulary dna"),
                    HasSubstr("data.vocabulary")));
  EXPECT_THAT(text_error("x", Documents::file, Vocabulary::dna()), HasSubstr("line 1, column 1"));
}

TEST(Text, RefusesInputsWithoutADocument) {
  EXPECT_THAT(text_error(""), HasSubstr("in put.txt is empty: expected text"));
  EXPECT_THAT(text_error("\n \n", Documents::blank_line), HasSubstr("has no document"));
  EXPECT_THAT(text_error("\n \n", Documents::file, Vocabulary::dna()), HasSubstr("has no document"));
  EXPECT_THAT(error_of<UsageError>([] { read_texts("1", Documents::file, Vocabulary::pixels()); }),
              HasSubstr("pixels cannot be read from text"));
}

TEST(Text, KnowsTwoKindsOfDocuments) {
  EXPECT_EQ(documents_from_name("file"), Documents::file);
  EXPECT_EQ(documents_from_name("blank-line"), Documents::blank_line);
  EXPECT_THAT(error_of<UsageError>([] { documents_from_name("line"); }), HasSubstr("found \"line\""));
}

}  // namespace
}  // namespace performer::data
