// SPDX-License-Identifier: Apache-2.0
#include "performer/data/vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "tests/data/packed_bytes.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using performer::test::error_of;
using test::file_with;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::string encoding_error(std::string_view text, const Vocabulary& vocabulary = Vocabulary::protein()) {
  return error_of<InputError>([&] { vocabulary.encode(text); });
}

std::vector<Vocabulary> every_vocabulary() {
  return {Vocabulary::protein(), Vocabulary::dna(),
          Vocabulary::rna(),     Vocabulary::bytes(),
          Vocabulary::pixels(),  Vocabulary::of_symbols("own", {"ab", "a", " ", "\xc3\xa9"})};
}

// Recorded outputs of protein_lm domains.py (cases all_letters and bytes_and_short).
TEST(Vocabulary, EncodesAsProteinLm) {
  const Vocabulary protein = Vocabulary::protein();
  EXPECT_THAT(protein.encode("ACDEFGHIKLMNPQRSTVWY"),
              ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19));
  EXPECT_THAT(protein.encode("BOUXZ"), ElementsAre(20, 21, 22, 23, 24));
  EXPECT_THAT(protein.encode("<ACD>"), ElementsAre(25, 0, 1, 2, 26));
  EXPECT_THAT(protein.encode("ACD>EF_*"), ElementsAre(0, 1, 2, 26, 3, 4, 27, 28));
  EXPECT_THAT(protein.encode("MKTAYIAKQR*Q_<B>ZZ"),
              ElementsAre(10, 8, 16, 0, 19, 7, 0, 8, 13, 14, 28, 13, 27, 25, 20, 26, 24, 24));
  EXPECT_THAT(protein.encode("ACDBOUXZY>"), ElementsAre(0, 1, 2, 20, 21, 22, 23, 24, 19, 26));
  EXPECT_EQ(protein.size(), 29);
  EXPECT_EQ(protein.symbols(), 25);
  EXPECT_EQ(protein.unit(), "residues");
}

TEST(Vocabulary, DecodesWhatItEncodes) {
  const Vocabulary protein = Vocabulary::protein();
  for (const std::string text : {"ACDEFGHIKLMNPQRSTVWY", "MKTAYIAKQR*Q_<B>ZZ", ""})
    EXPECT_EQ(protein.decode(protein.encode(text)), text);
  EXPECT_EQ(protein.decode(std::vector<int64_t>{0, -1, 29, 1}), "A??C");
  EXPECT_EQ(Vocabulary::bytes().decode(std::vector<int64_t>{65, 256, 259, 260}), "A<bos><mask>?");
  const Vocabulary pixels = Vocabulary::pixels();
  EXPECT_EQ(pixels.decode(pixels.encode(" 0\n255 7 ")), "0 255 7");
  const Vocabulary bytes = Vocabulary::bytes();
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  EXPECT_EQ(bytes.decode(bytes.encode(all)), all);
  EXPECT_EQ(bytes.encode(all)[200], 200);
}

TEST(Vocabulary, ReadsAliasesAsSymbols) {
  EXPECT_THAT(Vocabulary::protein().encode("J"), ElementsAre(23));
  EXPECT_EQ(Vocabulary::protein().token_of('J'), 23);
  EXPECT_THAT(Vocabulary::dna().encode("ACGTNURYSWKMBDHV"),
              ElementsAre(0, 1, 2, 3, 4, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4));
  EXPECT_THAT(Vocabulary::rna().encode("ACGUNTW"), ElementsAre(0, 1, 2, 3, 4, 3, 4));
  EXPECT_EQ(Vocabulary::dna().decode(Vocabulary::dna().encode("AUR")), "ATN");
}

TEST(Vocabulary, KnowsSymbolsFromMarkers) {
  const Vocabulary protein = Vocabulary::protein();
  for (int token = 0; token < 29; ++token) {
    EXPECT_EQ(protein.is_symbol(token), token < 25);
    EXPECT_EQ(protein.token_of(protein.symbol_text(token)[0]), token < 25 ? token : -1);
  }
  EXPECT_FALSE(protein.is_symbol(-1));
  EXPECT_EQ(protein.token_of('a'), -1);
  EXPECT_EQ(protein.token_of('\xff'), -1);
  for (const Vocabulary& vocabulary : every_vocabulary()) {
    EXPECT_EQ(vocabulary.bos(), vocabulary.symbols());
    EXPECT_EQ(vocabulary.eos(), vocabulary.symbols() + 1);
    EXPECT_EQ(vocabulary.pad(), vocabulary.symbols() + 2);
    EXPECT_EQ(vocabulary.mask(), vocabulary.symbols() + 3);
    EXPECT_EQ(vocabulary.size(), vocabulary.symbols() + 4);
  }
}

// protein_lm raises for these too, except J.
TEST(Vocabulary, RefusesOtherLettersByName) {
  for (const char bad : std::string("jja-.| 1"))
    EXPECT_NE(encoding_error(std::string("AC") + bad), "") << bad;
  EXPECT_THAT(encoding_error("ACa"), HasSubstr("illegal letter 'a' at position 3"));
  EXPECT_THAT(encoding_error("\x07"), HasSubstr("illegal letter byte 0x07 at position 1"));
  EXPECT_THAT(
      encoding_error("A-"),
      HasSubstr("upper-case residues (ACDEFGHIKLMNPQRSTVWYBOUXZ; J is read as X) or the markers < > _ *"));
  EXPECT_THAT(encoding_error("ACE", Vocabulary::dna()),
              HasSubstr("upper-case nucleotides (ACGTN; U is read as T; BDHKMRSVWY are read as N)"));
  EXPECT_THAT(
      encoding_error("abq", Vocabulary::of_symbols("own", {"ab", "c"})),
      AllOf(HasSubstr("illegal letter 'q' at position 3"), HasSubstr("the 2 symbols of the vocabulary own")));
  EXPECT_THAT(encoding_error("1 256", Vocabulary::pixels()),
              AllOf(HasSubstr("\"256\" at position 3"), HasSubstr("from 0 to 255")));
  EXPECT_THAT(encoding_error("1,2", Vocabulary::pixels()), HasSubstr("\"1,2\" at position 1"));
}

TEST(Vocabulary, RefusesMarkersInTextsOfUsers) {
  EXPECT_THAT(Vocabulary::protein().encode_symbols("AJ"), ElementsAre(0, 23));
  EXPECT_THAT(error_of<InputError>([] { Vocabulary::protein().encode_symbols("A<"); }),
              HasSubstr("illegal letter '<' at position 2"));
  EXPECT_THAT(Vocabulary::bytes().encode_symbols("<"), ElementsAre('<'));
  EXPECT_THAT(Vocabulary::pixels().encode_symbols("3 4"), ElementsAre(3, 4));
}

TEST(Vocabulary, TakesTheLongestSymbol) {
  const Vocabulary own = Vocabulary::of_symbols("own", {"a", "ab", "abcd", "c", "\xc3\xa9"});
  EXPECT_THAT(own.encode("abcabcd\xc3\xa9"
                         "a"),
              ElementsAre(1, 3, 2, 4, 0));
  EXPECT_FALSE(own.has_letters());
  std::vector<Token> ids;
  EXPECT_EQ(own.encode_prefix("aac ", ids), 3u);
  EXPECT_THAT(ids, ElementsAre(0, 0, 3));
}

TEST(Vocabulary, ReadsAFileWithOneSymbolALine) {
  const std::string path =
      file_with("# note\nab\r\n\n\\s\n\\x41\n\\#\n\\\\\n\\n\n\xc3\xa9\na b\n", ".symbols");
  const Vocabulary own = Vocabulary::from_file(path);
  EXPECT_EQ(own.symbols(), 8);
  EXPECT_EQ(own.unit(), "tokens");
  EXPECT_EQ(own.name(), "Vocabulary_ReadsAFileWithOneSymbolALine");
  EXPECT_THAT(own.encode("ab A#\\\n\xc3\xa9"
                         "a b"),
              ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  std::string texts;
  for (int64_t id = 0; id < own.size(); ++id) texts += own.symbol_text(id) + " ";
  EXPECT_EQ(texts, "ab \\s A # \\\\ \\n \xc3\xa9 a\\sb <bos> <eos> <pad> <mask> ");
  EXPECT_EQ(Vocabulary::named(path), own);
}

TEST(Vocabulary, NamesTheFaultOfAFile) {
  const auto error = [](std::string_view text) {
    const std::string path = file_with(text, ".symbols");
    return error_of<InputError>([&] { Vocabulary::from_file(path); });
  };
  EXPECT_THAT(error("a\n\\q\n"),
              AllOf(HasSubstr(".symbols: line 2: unknown escape in \"\\q\""), HasSubstr("\\xHH")));
  EXPECT_THAT(error("\\x4\n"), HasSubstr("line 1: unknown escape"));
  EXPECT_THAT(error("\\x4g\n"), HasSubstr("line 1: unknown escape"));
  EXPECT_THAT(error("a\\\n"), HasSubstr("line 1: unknown escape"));
  EXPECT_THAT(error("a\n#\n\nb\n\\x61\n"),
              HasSubstr("line 5 gives the symbol \"a\" a second time, after line 1"));
  EXPECT_THAT(error("# only\n\n"), HasSubstr("has no symbol"));
  std::string many;
  for (int i = 0; i < 65'533; ++i) many += "s" + std::to_string(i) + "\n";
  EXPECT_THAT(error(many), AllOf(HasSubstr("has 65533 symbols"), HasSubstr("at most 65532")));
  EXPECT_THAT(error_of<UsageError>([] { Vocabulary::named("protien"); }),
              AllOf(HasSubstr("data.vocabulary = protien"),
                    HasSubstr("protein, dna, rna, bytes, pixels, or the path")));
  EXPECT_THAT(error_of<InputError>([] {
                Vocabulary::of_symbols("own", {"a", ""});
              }),
              HasSubstr("symbol 2 is empty"));
}

TEST(Vocabulary, IsFoundByItsName) {
  for (const std::string& name : vocabulary_names()) EXPECT_EQ(Vocabulary::named(name).name(), name);
}

TEST(Vocabulary, EqualsByContentNotByName) {
  std::set<uint64_t> fingerprints;
  for (const Vocabulary& a : every_vocabulary()) {
    fingerprints.insert(a.fingerprint());
    int equal = 0;
    for (const Vocabulary& b : every_vocabulary()) equal += a == b;
    EXPECT_EQ(equal, 1) << a.name();
  }
  EXPECT_EQ(fingerprints.size(), every_vocabulary().size());
  const auto own = [](const std::string& name) { return Vocabulary::of_symbols(name, {"x", "y"}); };
  EXPECT_EQ(own("a"), own("b"));
  EXPECT_EQ(own("a").fingerprint(), own("b").fingerprint());
  EXPECT_NE(Vocabulary::of_symbols("a", {"xy", "z"}).fingerprint(),
            Vocabulary::of_symbols("a", {"x", "yz"}).fingerprint());
  EXPECT_EQ(Vocabulary::protein().fingerprint(), 0x65d36a69045b28e1) << "folders of models depend on it";
}

TEST(Vocabulary, SurvivesJson) {
  for (const Vocabulary& vocabulary : every_vocabulary()) {
    const Vocabulary copy = Vocabulary::from_json(vocabulary.to_json(), "tokenizer.json");
    EXPECT_EQ(copy, vocabulary);
    EXPECT_EQ(copy.fingerprint(), vocabulary.fingerprint());
    EXPECT_EQ(copy.name(), vocabulary.name());
    EXPECT_EQ(copy.unit(), vocabulary.unit());
    EXPECT_EQ(copy.symbol_text(0), vocabulary.symbol_text(0));
  }
  EXPECT_EQ(Vocabulary::from_json(Vocabulary::protein().to_json(), "t").token_of('J'), 23);
}

TEST(Vocabulary, NamesTheFaultOfItsJson) {
  const auto error = [](const std::string& from, const std::string& to) {
    std::string text = Vocabulary::protein().to_json();
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    return error_of<InputError>([&] { Vocabulary::from_json(text, "tokenizer.json"); });
  };
  EXPECT_THAT(error("{", ""), HasSubstr("tokenizer.json, line 2, column 9: not JSON"));
  EXPECT_THAT(error("\"spelling\"", "\"spelled\""),
              HasSubstr("tokenizer.json: 'spelling' is missing: expected text"));
  EXPECT_THAT(error("\"bos\": 25", "\"bos\": \"<s>\""),
              HasSubstr("'bos' must be a whole number, not \"<s>\""));
  EXPECT_THAT(error("\"C\"", "7"), HasSubstr("'symbols' must be a list of texts, not ["));
  EXPECT_THAT(error("\"aliases\": {", "\"aliases\": 1, \"more\": {"),
              HasSubstr("'aliases' must be an object"));
  EXPECT_THAT(error("\"J\": \"X\"", "\"J\": null"), HasSubstr("the alias 'J' must be text, not null"));
  EXPECT_THAT(error("\"letters\"", "\"words\""),
              HasSubstr("spelling must be letters or numbers, found \"words\""));
  EXPECT_THAT(error("\"C\"", "\"A\""), HasSubstr("symbol 2 gives the symbol \"A\" a second time"));
  EXPECT_THAT(error("\"C\"", "\"\\\\q\""), HasSubstr("unknown escape"));
  EXPECT_THAT(error("\"J\": \"X\"", "\"J\": \"1\""), HasSubstr("the alias \"J\" of \"1\""));
  EXPECT_THAT(error("\"bos\": 25", "\"bos\": 24"), HasSubstr("the id of bos is 24, expected 25"));
  EXPECT_THAT(error("\"<>_*\"", "\"<>\""), HasSubstr("four letters or none"));
}

TEST(Vocabulary, HashesOneByteATokenWhereThatIsEnough) {
  const std::vector<Token> tokens = {0, 24, 7};
  EXPECT_EQ(sequence_hash(tokens, Vocabulary::protein()), stable_hash(std::string_view("\x00\x18\x07", 3)));
  std::vector<std::string> symbols;
  for (int i = 0; i < 257; ++i) symbols.push_back("s" + std::to_string(i) + ";");
  EXPECT_EQ(sequence_hash(std::vector<Token>{256, 1}, Vocabulary::of_symbols("own", symbols)),
            stable_hash(std::string_view("\x00\x01\x01\x00", 4)));
}

}  // namespace
}  // namespace performer::data
