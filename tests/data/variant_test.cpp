// SPDX-License-Identifier: Apache-2.0
#include "performer/data/variant.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "performer/base/error.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const Vocabulary kProtein = Vocabulary::protein();
const std::vector<Token> kWild = Vocabulary::protein().encode("MKTAYIAKQR");

// The changed sequence as text.
std::string changed_text(const std::string& variant, int64_t offset = 0) {
  const std::vector<Edit> edits = parse_variant(variant);
  check_edits(edits, kWild, kProtein, offset);
  return kProtein.decode(apply_edits(edits, kWild, kProtein, offset));
}

std::string variant_refusal(const std::string& variant, int64_t offset = 0) {
  return performer::test::error_of<InputError>([&] { changed_text(variant, offset); });
}

TEST(Variants, AreReadInTheNotationsOfTheField) {
  for (const char* text :
       {"A4P", "p.Ala4Pro", "p.(Ala4Pro)", "Ala4Pro", "ALA4PRO", "NP_003997.1:p.Ala4Pro", " A4P\r"}) {
    EXPECT_EQ(changed_text(text), "MKTPYIAKQR") << text;
  }
  for (const char* text :
       {"A4P:Y5D", "Y5D:A4P", "A4P,Y5D", "A4P;Y5D", "p.[Ala4Pro;Tyr5Asp]", "p.[(Ala4Pro;Tyr5Asp)]"}) {
    EXPECT_EQ(changed_text(text), "MKTPDIAKQR") << text;
  }
  for (const char* text : {"WT", "=", "p.=", "Ala4=", "A4A"})
    EXPECT_EQ(changed_text(text), "MKTAYIAKQR") << text;
}

TEST(Variants, InsertAndDelete) {
  for (const char* text : {"A4del", "A4-", "p.Ala4del"}) EXPECT_EQ(changed_text(text), "MKTYIAKQR") << text;
  for (const char* text : {"K2_A4del", "p.Lys2_Ala4del"}) EXPECT_EQ(changed_text(text), "MYIAKQR") << text;
  for (const char* text : {"T3_A4insGS", "p.Thr3_Ala4insGlySer", "p.(Thr3_Ala4insGlySer)"}) {
    EXPECT_EQ(changed_text(text), "MKTGSAYIAKQR") << text;
  }
  EXPECT_EQ(changed_text("A4dup"), "MKTAAYIAKQR");
  EXPECT_EQ(changed_text("p.Lys2_Ala4dup"), "MKTAKTAYIAKQR");
  EXPECT_EQ(changed_text("A4delinsWV"), "MKTWVYIAKQR");
  EXPECT_EQ(changed_text("p.Ala4_Ile6delinsTrp"), "MKTWAKQR");
  for (const char* text : {"Y5*", "p.Tyr5Ter", "Y5Ter"}) EXPECT_EQ(changed_text(text), "MKTA") << text;
  // Changes beside each other; an insertion at the end.
  EXPECT_EQ(changed_text("K2del:T3_A4insG:A4W"), "MTGWYIAKQR");
  EXPECT_EQ(changed_text("A4W:T3_A4insG"), "MKTGWYIAKQR") << "the insertion lies before the position";
  EXPECT_EQ(changed_text("R10delinsRGG"), "MKTAYIAKQRGG");
  EXPECT_EQ(changed_text("M1del"), "KTAYIAKQR");
}

TEST(Variants, AreWrittenAsTheyAreRead) {
  for (const char* text :
       {"A4P:Y5D", "K2_A4del", "T3_A4insGS", "A4dup", "K2_A4dup", "A4delinsWV", "Y5*", "WT"}) {
    EXPECT_EQ(to_text(parse_variant(text)), text);
  }
  EXPECT_EQ(to_text(parse_variant("p.[Tyr5Asp;Ala4Pro]")), "A4P:Y5D");
  EXPECT_TRUE(only_substitutions(parse_variant("A4P:Y5D")));
  EXPECT_FALSE(only_substitutions(parse_variant("A4P:Y5del")));
}

TEST(Variants, TakeAnOffset) {
  EXPECT_EQ(changed_text("A28P", 24), "MKTPYIAKQR");
  EXPECT_EQ(changed_text("K26_A28del", 24), "MYIAKQR");
  EXPECT_THAT(variant_refusal("A4P", 24),
              AllOf(HasSubstr("position 4"), HasSubstr("25 to 34"), HasSubstr("--offset")));
}

TEST(Variants, ThatDoNotFitSayWhatWasExpectedAndFound) {
  EXPECT_THAT(variant_refusal("G4P"),
              AllOf(HasSubstr("expected G at position 4"), HasSubstr("found A"), HasSubstr("--offset")));
  EXPECT_THAT(variant_refusal("K2_G4del"), HasSubstr("expected G at position 4"));
  EXPECT_THAT(variant_refusal("A40P"), AllOf(HasSubstr("position 40"), HasSubstr("1 to 10")));
  const Vocabulary dna = Vocabulary::dna();
  const std::vector<Token> acgt = dna.encode("ACGT");
  EXPECT_THAT(performer::test::error_of<InputError>([&] { check_edits(parse_variant("A1P"), acgt, dna, 0); }),
              HasSubstr("'P' is no symbol of the vocabulary dna"));
}

TEST(Variants, ThatCannotBeReadSayWhatWasExpected) {
  EXPECT_THAT(variant_refusal("4P"),
              AllOf(HasSubstr("'4P'"), HasSubstr("expected the residue that is changed")));
  EXPECT_THAT(variant_refusal("A"), HasSubstr("expected a position"));
  EXPECT_THAT(variant_refusal("A4"), HasSubstr("expected the new residue"));
  EXPECT_THAT(variant_refusal("A4PP"), AllOf(HasSubstr("the end of the variant"), HasSubstr("found 'P'")));
  EXPECT_THAT(variant_refusal("A0P"), HasSubstr("positions count from 1"));
  EXPECT_THAT(variant_refusal("A4_K2del"), HasSubstr("a range whose end is behind its beginning"));
  EXPECT_THAT(variant_refusal("K2_A4insG"), HasSubstr("between two neighbouring positions"));
  EXPECT_THAT(variant_refusal("K2_T3insX*"), HasSubstr("inserts a stop"));
  EXPECT_THAT(variant_refusal("p.(Ala4Pro"), HasSubstr("expected ')' at its end"));
  EXPECT_THAT(variant_refusal(""), HasSubstr("an empty cell"));
  EXPECT_THAT(variant_refusal("A4P:A4G"), HasSubstr("changes position 4 twice"));
  EXPECT_THAT(variant_refusal("K2_A4del:T3G"), HasSubstr("changes position 3 twice"));
  EXPECT_THAT(variant_refusal("T3_A4insG:T3_A4insW"), HasSubstr("changes position 4 twice"));
  EXPECT_THAT(variant_refusal("p.Arg9ProfsTer23"), HasSubstr("is a frameshift"));
  EXPECT_THAT(variant_refusal("p.Ter11GlnextTer17"), HasSubstr("is an extension"));
  EXPECT_THAT(variant_refusal("c.76A>T"), HasSubstr("a change of nucleotides"));
  EXPECT_THAT(variant_refusal("NM_004006.2:c.76A>T"), HasSubstr("a change of nucleotides"));
  EXPECT_THAT(variant_refusal("A99999999999999999999P"), HasSubstr("is no variant"));
}

}  // namespace
}  // namespace performer::data
