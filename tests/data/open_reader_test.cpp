// SPDX-License-Identifier: Apache-2.0
// Which reader a file gets, and readers of many files, archives and raw images.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "performer/base/error.h"
#include "performer/data/image/images.h"
#include "performer/data/reader.h"
#include "performer/data/store.h"
#include "tests/data/packed_bytes.h"
#include "tests/data/pictures.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using performer::test::error_of;
using test::file_with;
using test::kTarEnd;
using test::noise;
using test::tar_entry;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

struct ReadAll {
  std::vector<Record> records;
  std::string format, vocabulary;
  ReadReport report;
  std::optional<ImageShape> shape;
  std::vector<std::string> ids() const {
    std::vector<std::string> result;
    for (const Record& record : records) result.push_back(record.id);
    return result;
  }
};

ReadAll all_of(const std::unique_ptr<Reader>& reader) {
  ReadAll result;
  Record record;
  while (reader->next(record)) result.records.push_back(record);
  result.format = reader->format();
  result.vocabulary = reader->vocabulary().name();
  result.report = reader->report();
  result.shape = reader->image_shape();
  return result;
}

ReadAll read_bytes(std::string_view bytes, const DataConfig& config = {}, const std::string& name = "input",
                   const std::optional<Vocabulary>& vocabulary = std::nullopt) {
  return all_of(open_reader(memory_bytes(bytes), name, config, vocabulary));
}

template <class E = InputError>
std::string reading_error(std::string_view bytes, const DataConfig& config = {},
                          const std::string& name = "input") {
  return error_of<E>([&] { read_bytes(bytes, config, name); });
}

DataConfig with(const std::string& format, const std::string& vocabulary = "auto",
                const std::string& shape = "", const std::string& fit = "error") {
  DataConfig config;
  config.format = format;
  config.vocabulary = vocabulary;
  config.image_shape = shape;
  config.image_fit = fit;
  return config;
}

// A folder of the running test with files of these names and contents.
std::string folder_with(const std::vector<std::pair<std::string, std::string>>& files) {
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  const std::filesystem::path folder = testing::TempDir() + test->test_suite_name() + "_" + test->name();
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  for (const auto& [name, content] : files) {
    std::filesystem::create_directories((folder / name).parent_path());
    std::ofstream(folder / name, std::ios::binary) << content;
  }
  return folder.string();
}

std::string rgb_png(uint32_t height = 2, uint32_t width = 3, uint64_t seed = 1) {
  return test::png({height, width}, noise(height * width * 3, seed));
}
std::string grey_png(uint32_t height = 2, uint32_t width = 3) {
  return test::png({height, width, 8, PNG_COLOR_TYPE_GRAY}, noise(height * width));
}

TEST(Detection, GoesByContent) {
  const std::string png = rgb_png(), jpeg = test::jpeg(2, 3, 3, noise(18)),
                    tar = tar_entry("a.png", png) + kTarEnd;
  const std::vector<std::tuple<std::string, std::string, std::string>> cases = {
      {">a\nACD\n", "fasta", "protein"},  {"\xef\xbb\xbf\n ; note\n\n >a\nACD\n", "fasta", "protein"},
      {"to > be\n>a\n", "text", "bytes"}, {"; only\n", "text", "bytes"},
      {"\x89PNG\r\n", "text", "bytes"},   {png, "image", "pixels"},
      {jpeg, "image", "pixels"},          {tar, "image", "pixels"}};
  for (const auto& [bytes, format, vocabulary] : cases) {
    for (const std::string& form : {bytes, test::gzip(bytes), test::zstd(bytes)}) {
      const ReadAll read = read_bytes(form);
      EXPECT_EQ(read.format, format) << bytes.substr(0, 20);
      EXPECT_EQ(read.vocabulary, vocabulary) << bytes.substr(0, 20);
      EXPECT_EQ(read.records.size(), 1u);
    }
  }
}

TEST(Detection, LeavesTheFormatToAVocabularyThatHasOne) {
  EXPECT_EQ(read_bytes(">a\nACU\n", with("auto", "dna")).format, "fasta");
  EXPECT_EQ(read_bytes(">a\nACT\n", with("auto", "rna")).vocabulary, "rna");
  EXPECT_EQ(read_bytes(">a\nAC\n", with("auto", "bytes")).records[0].tokens.size(), 6u);
  EXPECT_EQ(read_bytes(rgb_png(), with("auto", "bytes")).format, "text");
  EXPECT_THAT(reading_error("ACGT", with("auto", "dna")), HasSubstr("is not FASTA"));
  EXPECT_THAT(reading_error("ACGT", with("auto", "pixels")), HasSubstr("holds no images"));
  // That of a model goes before that of the configuration.
  EXPECT_EQ(read_bytes(">a\nACT\n", with("auto", "protein"), "input", Vocabulary::rna()).vocabulary, "rna");
  // One of its own says nothing about the format.
  const std::string symbols = file_with("A\nC\nG\n", ".symbols");
  EXPECT_EQ(read_bytes(">a\nacG\n", with("auto", symbols)).format, "fasta");
  EXPECT_THAT(read_bytes(">a\nacG\n", with("auto", symbols)).records[0].tokens, ElementsAre(0, 1, 2));
  EXPECT_EQ(read_bytes("ACG\n", with("auto", symbols)).format, "text");
}

TEST(Detection, RefusesVocabulariesThatAFormatCannotUse) {
  EXPECT_THAT(reading_error<UsageError>(rgb_png(), with("image", "bytes")),
              HasSubstr("the vocabulary bytes cannot be read from images"));
  EXPECT_THAT(reading_error<UsageError>(">a\nA\n", with("fasta", "pixels")),
              HasSubstr("the vocabulary pixels cannot be read from FASTA"));
  EXPECT_THAT(reading_error<UsageError>(">a\nA\n", with("fasta", "bytes")),
              AllOf(HasSubstr("the vocabulary bytes has the symbol"), HasSubstr("data.format = text")));
  EXPECT_THAT(reading_error<UsageError>("a", with("text", "pixels")),
              HasSubstr("pixels cannot be read from text"));
  EXPECT_THAT(reading_error<UsageError>(">a\nA\n", with("auto", "no-such-file")),
              HasSubstr("there is no such file"));
}

TEST(Detection, NamesWhatCannotBeRead) {
  EXPECT_THAT(reading_error(""), HasSubstr("input is empty: expected FASTA, text or images"));
  EXPECT_THAT(reading_error("", with("image")), HasSubstr("input is empty: expected images"));
  EXPECT_THAT(reading_error("", with("fasta")), HasSubstr("input is empty: expected FASTA"));
  EXPECT_THAT(reading_error("BZh91AY&SY"), HasSubstr("input cannot be read; it looks like bzip2"));
  EXPECT_THAT(reading_error(std::string("\xfd"
                                        "7zXZ\0",
                                        6)),
              HasSubstr("xz -d"));
  EXPECT_THAT(reading_error("PK\x03\x04"), HasSubstr("zip archive"));
  EXPECT_THAT(reading_error("7z\xbc\xaf\x27\x1c"), HasSubstr("7z archive"));
  EXPECT_THAT(reading_error("text", with("image")),
              AllOf(HasSubstr("input holds no images"), HasSubstr("*.u8")));
  const std::string missing = testing::TempDir() + "no-such-file";
  EXPECT_EQ(error_of<InputError>([&] { open_reader(missing, {}); }),
            "cannot read " + missing + ": No such file or directory");
  EXPECT_THAT(error_of<UsageError>([&] { open_reader(std::vector<std::string>{}, {}); }),
              HasSubstr("no file is given"));
}

TEST(Nucleotides, AreReadWithTheirLettersAndCounted) {
  const ReadAll dna = read_bytes(">a\nacgUNrY-\nB*\n", with("fasta", "dna"));
  EXPECT_EQ(Vocabulary::dna().decode(dna.records[0].tokens), "ACGTNNNN");
  EXPECT_EQ(
      summary(dna.report),
      "1 sequences, 8 nucleotides; 4 lower-case letters read as upper case; 1 '*' at the end of a record "
      "dropped; 1 gaps dropped; 1 U read as T; 3 letters of BDHKMRSVWY read as N");
  EXPECT_THAT(
      reading_error(">a\nACE\n", with("fasta", "dna")),
      HasSubstr("illegal letter 'E'; accepted are ACGTN, U (read as T) and BDHKMRSVWY (read as N) in either "
                "case, gaps '-' and '.', and one '*' at the end"));
  EXPECT_THAT(
      reading_error(">a\nAC1\n", with("fasta")),
      HasSubstr("accepted are ACDEFGHIKLMNPQRSTVWYBOUXZ and J (read as X) in either case, gaps '-' and '.', "
                "and one '*' at the end"));
}

TEST(Nucleotides, AreSuspectedInProteinsOfFiveLetters) {
  const std::string letters = "ACGTUNACGTACGTACGTACGTACGTACGT";
  const auto lines_of = [](const std::string& text) { return read_bytes(text).report.lines; };
  EXPECT_THAT(summary(read_bytes(">a\n" + letters + "\n").report),
              HasSubstr("data.vocabulary must be dna or rna"));
  EXPECT_THAT(lines_of(">a\n" + letters + "E\n"), testing::IsEmpty());
  EXPECT_THAT(lines_of(">a\n" + letters.substr(1) + "\n"), testing::IsEmpty()) << "too short to tell";
}

TEST(OwnSymbols, KeepTheirCaseInFasta) {
  const std::string symbols = file_with("A\na\nB\n-\n*\n", ".symbols");
  const ReadAll read = read_bytes(">x\nAabB-A*\n", with("fasta", symbols));
  EXPECT_THAT(read.records[0].tokens, ElementsAre(0, 1, 2, 2, 3, 0, 4));
  EXPECT_EQ(summary(read.report), "1 sequences, 7 tokens; 1 lower-case letters read as upper case");
  EXPECT_THAT(reading_error<UsageError>(">x\nA\n", with("fasta", file_with("A\n\\s\n", ".symbols"))),
              HasSubstr("has the symbol byte 0x20"));
  EXPECT_THAT(reading_error<UsageError>(">x\nA\n", with("fasta", file_with("AB\n", ".symbols"))),
              HasSubstr("words of letters"));
}

TEST(Folder, IsReadByNameAndWithItsFolders) {
  const std::string folder = folder_with({{"b.txt", "second"},
                                          {"a/z.txt", "first"},
                                          {"c.txt.gz", test::gzip("third")},
                                          {".hidden", "no"},
                                          {".git/x", "no"},
                                          {"d.txt", ""}});
  const ReadAll read = all_of(open_reader(folder, {}));
  EXPECT_THAT(read.ids(), ElementsAre("z.txt", "b.txt", "c.txt.gz"));
  EXPECT_EQ(read.records[2].number, 3);
  EXPECT_EQ(Vocabulary::bytes().decode(read.records[0].tokens), "first");
  EXPECT_EQ(summary(read.report), "3 documents, 16 bytes; 1 empty files passed over");
}

TEST(Folder, OfImagesPassesOverOtherFiles) {
  const std::string folder = folder_with({{"README", "about"},
                                          {"b.png", rgb_png(2, 3, 2)},
                                          {"a.png", rgb_png()},
                                          {"z.txt", ">x\nA\n"},
                                          {"c.jpg", test::jpeg(2, 3, 3, noise(18))}});
  for (const DataConfig& config : {DataConfig{}, with("image")}) {
    const ReadAll read = all_of(open_reader(folder, config));
    EXPECT_EQ(read.format, "image");
    EXPECT_THAT(read.ids(), ElementsAre("a.png", "b.png", "c.jpg"));
    EXPECT_EQ(read.shape, (ImageShape{2, 3, 3}));
    EXPECT_EQ(summary(read.report), "3 images, 54 values; 2 files passed over, which are no images");
  }
}

TEST(Folder, NamesWhyItCannotBeRead) {
  EXPECT_THAT(error_of<InputError>([&] { open_reader(folder_with({}), {}); }), HasSubstr("has no files"));
  EXPECT_THAT(error_of<InputError>([&] {
                open_reader(folder_with({{"a", ""}}), {});
              }),
              HasSubstr("is empty: expected FASTA, text or images"));
  EXPECT_THAT(error_of<InputError>([&] {
                open_reader(folder_with({{"a", ""}, {"b", ""}}), with("text"));
              }),
              HasSubstr("has no file to read as text"));
  EXPECT_THAT(error_of<InputError>([&] {
                open_reader(folder_with({{"a", "x"}}), with("image"));
              }),
              HasSubstr("has no file to read as image"));
  EXPECT_THAT(error_of<InputError>([&] {
                open_reader(folder_with({{"a", ">x\nA\n"}, {"b", "x"}}), {});
              }),
              AllOf(HasSubstr("/a is fasta, but"), HasSubstr("/b is text"), HasSubstr("data.format")));
}

TEST(Files, MustHaveOneFormat) {
  const std::string fasta = file_with(">a\nA\n"), text = file_with("text", ".txt"),
                    image = file_with(rgb_png(), ".png");
  EXPECT_THAT(error_of<InputError>([&] { open_reader({fasta, text}, {}); }), HasSubstr("is text: all files"));
  EXPECT_THAT(error_of<InputError>([&] {
                open_reader({text, image}, {});
              }),
              HasSubstr("is image: all files"));
  EXPECT_THAT(error_of<InputError>([&] {
                all_of(open_reader({image, text}, with("image")));
              }),
              HasSubstr("holds no images"));
  EXPECT_EQ(all_of(open_reader({fasta, text}, with("text"))).report.records, 2);
}

// Programs are given pipes, which can be opened and read only once.
TEST(Files, MayBePipes) {
  const std::string path = testing::TempDir() + "Files_MayBePipes";
  std::filesystem::remove(path);
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  std::thread writer([&] { std::ofstream(path) << ">a\nACD\n"; });
  const ReadAll read = all_of(open_reader(path, {}));
  writer.join();
  EXPECT_EQ(read.format, "fasta");
  EXPECT_THAT(read.ids(), ElementsAre("a"));
}

TEST(Images, HaveTokensRowByRow) {
  const ReadAll read = read_bytes(rgb_png(2, 3), {}, "some/pic ture.png");
  EXPECT_EQ(Vocabulary::bytes().decode(read.records[0].tokens), noise(18));
  EXPECT_EQ(read.records[0].id, "pic_ture.png");
  EXPECT_EQ(read.records[0].header, "some/pic ture.png");
  EXPECT_EQ(read.records[0].line, 0);
  EXPECT_EQ(summary(read.report), "1 images, 18 values");
}

TEST(Images, MustHaveOneSize) {
  const std::string mixed = tar_entry("a.png", rgb_png(2, 3)) + tar_entry("b.png", rgb_png(4, 6)) + kTarEnd;
  EXPECT_THAT(reading_error(mixed),
              AllOf(HasSubstr("input: b.png has the shape 4x6x3, but input: a.png has 2x3x3"),
                    HasSubstr("must have one size"), HasSubstr("data.image_fit = shrink")));
  EXPECT_THAT(reading_error(mixed, with("image", "auto", "4x6x3")),
              HasSubstr("input: a.png has the shape 2x3x3, but data.image_shape is 4x6x3"));
  const ReadAll shrunk = read_bytes(mixed, with("image", "auto", "2x3x3", "shrink"));
  EXPECT_EQ(summary(shrunk.report), "2 images, 36 values; 1 images shrunk to 2x3x3");
  EXPECT_THAT(reading_error(mixed, with("image", "auto", "4x3x3", "shrink")),
              HasSubstr("by one whole number"));
  EXPECT_THAT(reading_error(mixed, with("image", "auto", "2x2x3", "shrink")),
              HasSubstr("by one whole number"));
  EXPECT_THAT(reading_error(rgb_png(4, 6), with("image", "auto", "2x2x3", "shrink")),
              HasSubstr("by one whole number"));
  // Also over several files.
  const std::string a = file_with(rgb_png(2, 3), "a.png"), b = file_with(rgb_png(3, 2), "b.png");
  EXPECT_THAT(error_of<InputError>([&] {
                all_of(open_reader({a, b}, {}));
              }),
              AllOf(HasSubstr(b + " has the shape 3x2x3"), HasSubstr(a + " has 2x3x3")));
}

TEST(Images, OfGreyBecomeColourWhereOthersHaveIt) {
  const std::string colour_first = tar_entry("a.png", rgb_png()) + tar_entry("b.png", grey_png()) + kTarEnd,
                    grey_first = tar_entry("a.png", grey_png()) + tar_entry("b.png", rgb_png()) + kTarEnd;
  EXPECT_EQ(summary(read_bytes(colour_first).report),
            "2 images, 36 values; 1 greyscale images read as red, green and blue");
  EXPECT_THAT(reading_error(grey_first),
              AllOf(HasSubstr("b.png has the shape 2x3x3, but input: a.png has 2x3x1"),
                    HasSubstr("set data.image_shape = 2x3x3, which takes greyscale pictures too")));
  EXPECT_EQ(read_bytes(grey_first, with("image", "auto", "2x3x3")).report.tokens, 36);
  EXPECT_EQ(read_bytes(grey_png()).shape, (ImageShape{2, 3, 1}));
}

TEST(Images, ReportWhatDecodingChanged) {
  const std::string deep = test::png({1, 1, 16, PNG_COLOR_TYPE_RGBA}, "abcdefgh");
  EXPECT_EQ(
      summary(read_bytes(tar_entry("a", deep) + tar_entry("b", deep) + kTarEnd).report),
      "2 images, 6 values; 2 images of 16 bits a channel rounded to 8; 2 images with transparency laid on "
      "white");
}

TEST(Tar, GivesPicturesInItsOrder) {
  const std::string folder = tar_entry("folder/", "", '5'), link = tar_entry("link", "", '2'),
                    global = tar_entry("pax", "11 a=bcdef\n", 'g');
  const std::string archive = global + folder + tar_entry("folder/b.png", rgb_png()) + link +
                              tar_entry("note.txt", noise(1000)) + tar_entry("empty", "") +
                              tar_entry("a.jpg", test::jpeg(2, 3, 3, noise(18))) + kTarEnd + noise(100);
  const ReadAll read = read_bytes(archive);
  EXPECT_THAT(read.ids(), ElementsAre("b.png", "a.jpg"));
  EXPECT_EQ(read.records[0].header, "input: folder/b.png");
  EXPECT_EQ(summary(read.report),
            "2 images, 36 values; 2 files of archives passed over, which are no PNG or JPEG pictures");
}

TEST(Tar, KnowsLongNames) {
  const std::string name = std::string(150, 'n') + ".png", record = " path=" + name + "\n";
  const std::string pax = std::to_string(record.size() + 3) + record;
  const ReadAll read =
      read_bytes(tar_entry("././@LongLink", name + std::string(1, '\0'), 'L') +
                 tar_entry("short", rgb_png()) + tar_entry("PaxHeader", "10 a=bcde\n" + pax, 'x') +
                 tar_entry("short", rgb_png()) + tar_entry("short", rgb_png()) + kTarEnd);
  EXPECT_THAT(read.ids(), ElementsAre(name, name, "short"));
}

TEST(Tar, IsTruncatedAtEveryByte) {
  const std::string archive = tar_entry("a.png", rgb_png()) + tar_entry("note", "text") + kTarEnd;
  for (size_t size = 512; size < archive.size() - 512; size += size < 600 ? 1 : 37) {
    EXPECT_THAT(reading_error(std::string_view(archive).substr(0, size)),
                HasSubstr("input is truncated: the tar archive ends in the middle"))
        << size;
  }
}

TEST(Tar, IsDamagedWhereAHeaderFails) {
  std::string archive = tar_entry("a.png", rgb_png()) + tar_entry("b.png", rgb_png()) + kTarEnd;
  archive[archive.find("b.png")] = 'c';
  EXPECT_THAT(reading_error(archive),
              HasSubstr("input is damaged: a header of the tar archive fails its check"));
  EXPECT_THAT(reading_error(tar_entry("x", std::string((1 << 20) + 1, 'n'), 'L') + kTarEnd),
              HasSubstr("a name in the tar archive has 1048577 bytes"));
  EXPECT_THAT(reading_error(tar_entry("note", "text") + kTarEnd), HasSubstr("without a PNG or JPEG picture"));
  std::string broken = tar_entry("a.png", rgb_png().substr(0, 60)) + kTarEnd;
  EXPECT_THAT(reading_error(broken), HasSubstr("input: a.png is a damaged PNG picture"));
}

TEST(RawImages, HaveTheShapeOfTheirName) {
  const std::string bytes = noise(2 * 12);
  for (const std::string& form : {bytes, test::zstd(bytes)}) {
    const ReadAll read = read_bytes(form, {}, form == bytes ? "x/set_2x2x2x3.u8" : "x/set_2x2x2x3.u8.zst");
    EXPECT_EQ(read.format, "image");
    EXPECT_EQ(read.shape, (ImageShape{2, 2, 3}));
    EXPECT_EQ(Vocabulary::bytes().decode(read.records[1].tokens), bytes.substr(12));
    EXPECT_EQ(read.records.size(), 2u);
    EXPECT_EQ(read.records[1].id, form == bytes ? "set_2x2x2x3.u8:2" : "set_2x2x2x3.u8.zst:2");
  }
  EXPECT_EQ(summary(read_bytes(noise(16), with("auto", "auto", "2x2x1", "shrink"), "s_1x4x4x1.u8").report),
            "1 images, 4 values; 1 images shrunk to 2x2x1");
  EXPECT_THAT(reading_error(noise(11), {}, "s_1x2x2x3.u8"),
              HasSubstr("s_1x2x2x3.u8 does not hold the 1 images of shape 2x2x3: it ends in image 1"));
  EXPECT_THAT(reading_error(noise(12), {}, "s_2x2x2x3.u8"), HasSubstr("it ends in image 2"));
  EXPECT_THAT(reading_error(noise(36), {}, "s_2x2x2x3.u8"), HasSubstr("it goes on with image 3"));
  EXPECT_THAT(reading_error(noise(16), {}, "s_2x2x2x2.u8"), HasSubstr("the shape 2x2x2 of its name is none"));
  EXPECT_THAT(reading_error(noise(16), {}, "s_x2x2x3.u8"), HasSubstr("the number of images in its name"));
  EXPECT_THAT(reading_error<UsageError>(noise(16), {}, "s_2x2x3.u8"), HasSubstr("of an unknown shape"));
}

TEST(RawImages, TakeTheShapeOfTheConfiguration) {
  const ReadAll read = read_bytes(noise(24), with("auto", "auto", "2x2x3"), "set.u8");
  EXPECT_EQ(read.records.size(), 2u);
  EXPECT_THAT(reading_error<UsageError>(noise(24), {}, "set.u8"),
              AllOf(HasSubstr("set.u8 holds raw images of an unknown shape"), HasSubstr("data.image_shape")));
  EXPECT_THAT(reading_error(noise(25), with("auto", "auto", "2x2x3"), "set.u8"),
              HasSubstr("does not hold whole images of shape 2x2x3: it ends in image 3"));
}

TEST(Store, HoldsTextAndImages) {
  const std::string text = file_with("to be\n\nor not", ".txt");
  DataConfig config;
  config.documents = "blank-line";
  const SequenceStore texts({text, text}, testing::TempDir(), config);
  EXPECT_EQ(texts.size(), 4);
  EXPECT_EQ(texts.format(), "text");
  EXPECT_EQ(texts.vocabulary(), Vocabulary::bytes());
  EXPECT_EQ(Vocabulary::bytes().decode(texts.tokens(3)), "or not");
  EXPECT_EQ(texts.image_shape(), std::nullopt);
  record_source(config, texts);
  EXPECT_EQ(config.format, "text");
  EXPECT_EQ(config.vocabulary, "bytes");
  EXPECT_EQ(config.image_shape, "");

  const SequenceStore images({file_with(rgb_png(), ".png")}, testing::TempDir());
  EXPECT_EQ(images.image_shape(), (ImageShape{2, 3, 3}));
  EXPECT_EQ(images.vocabulary(), Vocabulary::pixels());
  DataConfig recorded;
  record_source(recorded, images);
  EXPECT_EQ(recorded.image_shape, "2x3x3");
  EXPECT_EQ(recorded.vocabulary, "pixels");
}

// Files of ids beyond one byte.
TEST(Store, HoldsLargeVocabularies) {
  std::string symbols, text;
  for (int i = 0; i < 1000; ++i) {
    symbols += "w" + std::to_string(i) + ".\n";
    if (i % 3 == 0) text += "w" + std::to_string(i) + ".";
  }
  const SequenceStore store({file_with(text, ".txt")}, testing::TempDir(),
                            with("text", file_with(symbols, ".symbols")));
  ASSERT_EQ(store.total_tokens(), 334);
  for (int64_t i = 0; i < 334; ++i) EXPECT_EQ(store.tokens(0)[i], 3 * i);
}

TEST(MemoryCorpus, HoldsAnySymbols) {
  const Vocabulary seven = Vocabulary::of_symbols("seven", {"a", "b", "c", "d", "e", "f", "g"});
  const MemoryCorpus corpus({{0, 6}, {3}}, seven);
  EXPECT_EQ(corpus.size(), 2);
  EXPECT_EQ(corpus.total_tokens(), 3);
  EXPECT_EQ(corpus.format(), "memory");
  EXPECT_EQ(summary(corpus.report()), "2 sequences, 3 tokens");
  EXPECT_THAT(error_of<InputError>([&] {
                MemoryCorpus({{0}, {7}}, seven);
              }),
              HasSubstr("sequence 2 is not one of tokens: expected ids 0 to 6"));
  DataConfig config;
  record_source(config, corpus);
  EXPECT_EQ(config.format, "auto");
  EXPECT_EQ(config.vocabulary, "seven");
  const ImageShape shape{1, 2, 1};
  EXPECT_EQ(MemoryCorpus({{0, 255}}, Vocabulary::pixels(), {}, shape).image_shape(), shape);
  EXPECT_THAT(error_of<InputError>([&] { MemoryCorpus({{0}}, Vocabulary::pixels(), {}, shape); }),
              HasSubstr("sequence 1 has 1 tokens, but an image of shape 1x2x1 has 2"));
}

// The project's own picture sets, where they are.
TEST(Images, OfTheSharedSetsAreRead) {
  const char* folder = std::getenv("PERFORMER_IMAGES");
  if (folder == nullptr) GTEST_SKIP() << "set PERFORMER_IMAGES to a folder with tinyimagenet64_val.tar";
  const SequenceStore images({std::string(folder) + "/tinyimagenet64_val.tar"}, testing::TempDir());
  EXPECT_EQ(images.size(), 2000);
  EXPECT_EQ(images.image_shape(), (ImageShape{64, 64, 3}));
  const SequenceStore crops({std::string(folder) + "/crops_137x64x64x3.u8"}, testing::TempDir());
  EXPECT_EQ(crops.size(), 137);
}

}  // namespace
}  // namespace performer::data
