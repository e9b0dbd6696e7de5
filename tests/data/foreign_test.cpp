// SPDX-License-Identifier: Apache-2.0
// What files are that are no FASTA, text or images: named, with the cure, and never read as something else.
#include "performer/data/foreign.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "performer/base/error.h"
#include "performer/data/fasta/fasta.h"
#include "performer/data/text/text.h"
#include "tests/data/packed_bytes.h"
#include "tests/data/pictures.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using namespace std::string_view_literals;
using performer::test::error_of;
using testing::AllOf;
using testing::HasSubstr;
using Kind = Foreign::Kind;

struct Example {
  std::string bytes;
  const char *what, *cure;
};

std::string bytes_of(std::string_view bytes) {
  return std::string(bytes);
}

// ASCII text with `width` bytes a letter, the letter's own at `place`.
std::string wide(std::string_view text, size_t width, size_t place, std::string_view mark = "") {
  std::string result(mark);
  for (const char letter : text) {
    std::string group(width, '\0');
    group[place] = letter;
    result += group;
  }
  return result;
}

std::vector<Example> special_examples() {
  const std::string record = ">a\nMKTAYIAKQR\n";
  return {
      {"@r1 1:N:0\nACGTN\n+\nIIIII\n", "FASTQ", "\"fastq\""},
      {"@r1\r\nACGTN\r\n+r1\r\nIIIII\r\n", "FASTQ", "\"fastq\""},
      {"@r1\nACGTN\nACGT\n+\nIIIII\nIIII\n", "FASTQ", "\"fastq\""},
      {"@HD\tVN:1.6\n@SQ\tSN:chr1\tLN:9\n", "SAM", "samtools fasta"},
      {"LOCUS       AAA 60 aa linear\nORIGIN\n 1 mktayiakqr\n//\n", "a GenBank flat file", "\"genbank\""},
      {"ID   INSR_HUMAN  Reviewed; 1382 AA.\nAC   P06213;\nSQ   SEQUENCE 60 AA;\n     MKTAYIAKQR\n//\n",
       "a UniProt flat file", "\"swiss\""},
      {"ID   X56734; SV 1; linear; mRNA; STD; PLN; 1859 BP.\nXX\nAC   X56734;\nXX\n", "an EMBL flat file",
       "\"embl\""},
      {">P1;CRAB_ANAPL\nALPHA CRYSTALLIN B CHAIN\n  MDITIHNPLI RRPLFSWLAP*\n", "PIR (NBRF)", "\"pir\""},
      {"CLUSTAL W (1.83) multiple sequence alignment\n\na MKT\nb MKV\n", "a Clustal alignment",
       "\"clustal\""},
      {"CLUSTAL O(1.2.4) multiple sequence alignment\n\na MKT\n", "a Clustal alignment", "\"clustal\""},
      {"# STOCKHOLM 1.0\na MKT\n//\n", "a Stockholm alignment", "\"stockholm\""},
      {"#NEXUS\nbegin data;\n", "NEXUS", "\"nexus\""},
      {" 2 10\nalpha      MKTAYIAKQR\nbeta       MKTAYIAKQK\n", "a PHYLIP alignment", "\"phylip-relaxed\""},
      {"!!AA_MULTIPLE_ALIGNMENT 1.0\n", "an MSF alignment", "\"msf\""},
      {"HEADER    X\nATOM      1  N   MET A   1\n", "a PDB structure", "\"pdb-atom\""},
      {"ATOM      1  N   MET A   1      27.340  24.430   2.614\nATOM      2\n", "a PDB structure",
       "\"pdb-atom\""},
      {"data_1ABC\n#\n_entry.id 1ABC\n", "an mmCIF structure", "\"cif-atom\""},
      {"##gff-version 3\nchr1\t.\tgene\t1\t9\n##FASTA\n" + record, "GFF", "##FASTA"},
      {"##fileformat=VCFv4.2\n#CHROM\tPOS\n", "VCF", "bcftools"},
      {"HMMER3/f [3.1b2 | February 2015]\nNAME  x\n", "a HMMER profile", "the sequences"},
      {"BLASTP 2.12.0+\n\nQuery= a\n", "a report of BLAST", "blastdbcmd"},
      {"<!DOCTYPE html><html><body>404</body></html>\n", "a web page (HTML)", "download"},
      {"\xef\xbb\xbf\n  <html lang=\"en\">\n", "a web page (HTML)", "download"},
      {"<?xml version=\"1.0\"?>\n<uniprot><entry/></uniprot>\n", "XML", "convert its sequences"},
      {"{\"a\": {\"sequence\": \"MKT\"}}\n", "JSON", "convert its sequences"},
      {"[\n  {\"id\": 1, \"seq\": \"MKT\"}]\n", "JSON", "convert its sequences"},
      {"id\tsequence\na\tMKT\n", "a table with tabs", "awk"},
      {"id,\"Sequence\"\na,MKT\n", "a table with commas", "awk"},
      {"Sequences from our lab, 2024\n>a\nMKTAYIAKQRQISFVKSHFSRQLEERL\n", "FASTA behind other lines",
       "before the first"},
  };
}

std::vector<Example> binary_examples() {
  const std::string fasta = ">a\r\nMKTAYIAK\r\n";
  return {
      {wide(fasta, 2, 0, "\xff\xfe"), "text in UTF-16", "iconv -f UTF-16 -t UTF-8"},
      {wide(fasta, 2, 1, "\xfe\xff"), "text in UTF-16", "iconv -f UTF-16 -t UTF-8"},
      {wide(fasta, 2, 0), "text in UTF-16LE", "iconv -f UTF-16LE"},
      {wide(fasta, 2, 1), "text in UTF-16BE", "iconv -f UTF-16BE"},
      {wide(fasta, 4, 0, "\xff\xfe\0\0"sv), "text in UTF-32", "iconv -f UTF-32"},
      {wide(fasta, 4, 3, "\0\0\xfe\xff"sv), "text in UTF-32", "iconv -f UTF-32"},
      {wide(fasta, 4, 0), "text in UTF-32LE", "iconv -f UTF-32LE"},
      {wide(fasta, 4, 3), "text in UTF-32BE", "iconv -f UTF-32BE"},
      {"BZh91AY&SY", "bzip2", "bunzip2"},
      {bytes_of("\xfd\x37zXZ\0"sv), "xz", "xz -d"},
      {"LZIP\x01", "lzip", "lzip -d"},
      {"\x04\x22\x4d\x18@", "lz4", "lz4 -d"},
      {"\x1f\x9d\x90", "compress (.Z)", "gzip -d"},
      {bytes_of("\x5d\0\0\x80\0"sv), "lzma", "xz -d"},
      {"PK\x03\x04", "a zip archive", "unpack"},
      {bytes_of("PK\x05\x06\0\0"sv), "an empty zip archive", "unpack"},
      {"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack"},
      {bytes_of("Rar!\x1a\x07\0"sv), "a rar archive", "unpack"},
      {"BAM\x01", "BAM", "samtools"},
      {"CRAM\x03", "CRAM", "samtools"},
      {"NCBI.sra....", "SRA", "fasterq-dump"},
      {"\x43\x27\x41\x1a", "2bit", "twoBitToFa"},
      {"\x93NUMPY\x01", "a NumPy array", "export"},
      {"\x89HDF\r\n\x1a\n", "HDF5", "export"},
      {"PAR1\x15", "Parquet", "export"},
      {bytes_of("SQLite format 3\0"sv), "an SQLite database", "export"},
      {"%PDF-1.7\n", "PDF", "export"},
      {"{\\rtf1\\ansi", "rich text", "plain text"},
      {"\x7f"
       "ELF\x02",
       "a program", "the file that was meant"},
      {"GIF89a", "a GIF picture", "PNG"},
      {bytes_of("II*\0"sv), "a TIFF picture", "PNG"},
      {"RIFFxxxxWEBPVP8 ", "a WebP picture", "PNG"},
      {bytes_of("BMxxxx\0\0\0\0"sv), "a BMP picture", "PNG"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS", "git lfs pull"},
      {bytes_of("some \0 bytes"sv), "binary data", "meant"},
  };
}

TEST(Foreign, IsNamedWhereFastaIsExpected) {
  std::vector<Example> examples = special_examples();
  for (const Example& example : binary_examples()) examples.push_back(example);
  examples.push_back({"{\"a\": 1}\n", "JSON", "convert"});
  examples.push_back({"a\tb\nc\td\n", "a table with tabs", "awk"});
  examples.push_back({"MKTAYIAKQRQISFVKSHFSRQLEERL\n", "a sequence without a header", "'>name'"});
  examples.push_back({test::png({1, 1}, "abc"), "a PNG picture", "data.format = image"});
  examples.push_back({test::jpeg(2, 3, 1, "abcdef"), "a JPEG picture", "data.format = image"});
  examples.push_back({test::tar_entry("a.fasta", ">a\nMKT\n") + test::kTarEnd, "a tar archive", "tar -xf"});
  for (const Example& example : examples) {
    for (const std::string& form : {example.bytes, test::gzip(example.bytes), test::zstd(example.bytes)}) {
      // Data that begin as packed ones do are packed twice, which is refused before.
      if (form != example.bytes && example.bytes.starts_with("\x1f\x8b")) continue;
      EXPECT_THAT(error_of<InputError>([&] { FastaReader(memory_bytes(form), "input"); }),
                  AllOf(HasSubstr("input is not FASTA"), HasSubstr("; it looks like "),
                        HasSubstr(example.what), HasSubstr(example.cure)))
          << example.what;
    }
  }
}

TEST(Foreign, IsNotReadAsTextUnlessThatIsAskedFor) {
  for (const auto& [examples, kind] :
       {std::pair(special_examples(), Kind::special), {binary_examples(), Kind::binary}}) {
    for (const Example& example : examples) {
      const std::optional<Foreign> foreign = identify(example.bytes);
      ASSERT_TRUE(foreign.has_value()) << example.what;
      EXPECT_EQ(foreign->kind, kind) << example.what;
      const std::string message =
          error_of<InputError>([&] { open_reader(memory_bytes(example.bytes), "input", {}); });
      EXPECT_THAT(message, AllOf(HasSubstr("input cannot be read; it looks like "), HasSubstr(example.what)));
      EXPECT_EQ(message.find("data.format = text") != std::string::npos, kind == Kind::special) << message;
      DataConfig text;
      text.format = "text";
      Record record;
      const auto reader = open_reader(memory_bytes(example.bytes), "input", text);
      ASSERT_TRUE(reader->next(record));
      EXPECT_EQ(record.tokens.size(), example.bytes.size()) << example.what;
    }
  }
}

TEST(Foreign, IsNotSeenInTextAndFasta) {
  for (const std::string_view text : {"To be, or not to be\n"sv,
                                      "The ID   of\nAC   x\n"sv,
                                      "> quoted\n> mail\n"sv,
                                      "Dear all,\n> quoted\nyes, that\n"sv,
                                      "@home\nis where\nI am\n"sv,
                                      "@home\nwhere\nlife\n"sv,
                                      "BMP4 is a protein\n"sv,
                                      "BZhang wrote\n"sv,
                                      "HEADER    of a letter\nbody\n"sv,
                                      "LOCUS of control\n"sv,
                                      "3 4\n1 2\n"sv,
                                      "3 4 5\nname of it\n"sv,
                                      "[sic] is Latin\n"sv,
                                      "<3 you\n"sv,
                                      "# heading\n"sv,
                                      "data_of\nours\n"sv,
                                      "\xe4\xb8\xad\xe6\x96\x87\n"sv,
                                      "caf\xe9\n"sv,
                                      "a"sv,
                                      ""sv,
                                      ">a\nMKT\n"sv,
                                      ">N1;size=12;\nACGT\n"sv,
                                      ">P1\nMKT\n"sv,
                                      "; x\n>a\nMKT\n"sv,
                                      "ACGTACGT\n"sv,
                                      "Rarely!\n"sv}) {
    EXPECT_FALSE(identify(text).has_value()) << text << ": " << looks_like(identify(text));
  }
  // Like any text: named to those only who expect FASTA.
  for (const std::string_view text : {"{\"a\": 1}\n"sv, "a,b\nc,d\n"sv, "a\tb\nc\td\n"sv,
                                      "<?xml version=\"1.0\"?><note/>\n"sv, "[1, 2]\n[\"a\"]\n"sv}) {
    DataConfig config;
    EXPECT_EQ(open_reader(memory_bytes(text), "input", config)->format(), "text") << text;
  }
}

TEST(Foreign, MayLieInAFolderOfImagesOnly) {
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  const std::string folder = testing::TempDir() + test->name();
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/about.pdf") << "%PDF-1.7\n";
  std::ofstream(folder + "/note.txt") << "hello";
  EXPECT_THAT(error_of<InputError>([&] { open_reader(folder, {}); }),
              AllOf(HasSubstr("about.pdf cannot be read"), HasSubstr("PDF")));
  std::filesystem::remove(folder + "/note.txt");
  std::ofstream(folder + "/z.png", std::ios::binary) << test::png({1, 1}, "abc");
  const auto reader = open_reader(folder, {});
  Record record;
  EXPECT_TRUE(reader->next(record));
  EXPECT_FALSE(reader->next(record));
  EXPECT_EQ(summary(reader->report()), "1 images, 3 values; 1 files passed over, which are no images");
}

TEST(Foreign, IsNamedWhereImagesAreExpected) {
  DataConfig config;
  config.format = "image";
  EXPECT_THAT(error_of<InputError>([&] { open_reader(memory_bytes("GIF89a"), "input", config); }),
              AllOf(HasSubstr("input holds no images"), HasSubstr("a GIF picture: convert it to PNG")));
}

TEST(Foreign, TarOfSequencesIsToBeUnpacked) {
  const std::string archive = test::tar_entry("a.fasta", ">a\nMKT\n") + test::kTarEnd;
  for (const std::string& form : {archive, test::gzip(archive)}) {
    EXPECT_THAT(
        error_of<InputError>([&] {
          Record record;
          open_reader(memory_bytes(form), "input", {})->next(record);
        }),
        AllOf(HasSubstr("input is a tar archive without a PNG or JPEG picture"), HasSubstr("tar -xf")));
  }
}

}  // namespace
}  // namespace performer::data
