// SPDX-License-Identifier: Apache-2.0
#include "performer/data/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <set>

#include "performer/base/error.h"
#include "performer/base/philox.h"
#include "performer/data/fasta/fasta.h"
#include "tests/data/damaged_file.h"
#include "tests/data/packed_bytes.h"
#include "tests/data/sequences.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using test::file_with;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using Side = HashSplit::Side;
using performer::test::error_of;
using test::proteins, test::random_sequences;
using test::Sequences;

Sequences contents(const Corpus& store) {
  Sequences sequences;
  for (int64_t i = 0; i < store.size(); ++i)
    sequences.emplace_back(store.tokens(i).begin(), store.tokens(i).end());
  return sequences;
}

std::string to_fasta(const Sequences& sequences) {
  std::string text;
  for (const auto& sequence : sequences) {
    text += format_fasta("s", Vocabulary::protein().decode(sequence));
  }
  return text;
}

std::string fresh_directory(const std::string& name) {
  const std::string path = testing::TempDir() + name;
  std::filesystem::remove_all(path);
  std::filesystem::create_directories(path);
  return path;
}

TEST(Store, HoldsAllFilesInOrder) {
  const std::string directory = fresh_directory("store_order");
  const SequenceStore store(
      {file_with(">a\nACD\n>b\nj*\n", "1.fasta"), file_with(test::gzip(">a\nEF-G\n"), "2.gz")}, directory);
  EXPECT_EQ(contents(store), (Sequences{{0, 1, 2}, {23}, {3, 4, 5}}));
  EXPECT_EQ(store.total_tokens(), 7);
  EXPECT_EQ(store.format(), "fasta");
  EXPECT_EQ(store.vocabulary(), Vocabulary::protein());
  EXPECT_EQ(summary(store.report()),
            "3 sequences, 7 residues; 1 lower-case letters read as upper case; 1 '*' at the end of a record "
            "dropped; 1 J read as X; 1 gaps dropped");
  EXPECT_TRUE(std::filesystem::is_empty(directory)) << "the temporary file has no name";
}

TEST(Store, HoldsMoreThanItsBuffer) {
  Sequences sequences = random_sequences(50, 1, 200'000);
  sequences.insert(sequences.begin() + 7, std::vector<Token>(2'500'000, 3));  // one alone, too
  const SequenceStore store({file_with(to_fasta(sequences))}, testing::TempDir());
  EXPECT_TRUE(contents(store) == sequences);
}

TEST(Store, IsTheSameFromMemoryAndFromFiles) {
  const Sequences sequences = random_sequences(500, 2);
  for (const HashSplit& split :
       {HashSplit{}, HashSplit{Side::train, 0.3, 5}, HashSplit{Side::held_out, 0.3, 5}}) {
    const SequenceStore file({file_with(to_fasta(sequences))}, testing::TempDir(), {}, split);
    const MemoryCorpus memory = proteins(sequences, split);
    EXPECT_TRUE(contents(file) == contents(memory));
    EXPECT_EQ(file.fingerprint(), memory.fingerprint());
    EXPECT_EQ(file.total_tokens(), memory.total_tokens());
    EXPECT_EQ(file.report().records, memory.report().records);
  }
}

TEST(Store, FingerprintsOrderAndBounds) {
  const auto fingerprint = [](const Sequences& sequences) { return proteins(sequences).fingerprint(); };
  const uint64_t reference = fingerprint({{0, 1}, {2}});
  EXPECT_EQ(fingerprint({{0, 1}, {2}}), reference);
  EXPECT_NE(fingerprint({{2}, {0, 1}}), reference);
  EXPECT_NE(fingerprint({{0}, {1, 2}}), reference);
  EXPECT_NE(fingerprint({{0, 1}, {3}}), reference);
  EXPECT_NE(fingerprint({{0, 3}, {2}}), reference);
  EXPECT_NE(fingerprint({{0, 1, 2}}), reference);
}

TEST(Store, SplitsEverySequenceToOneSideAndDuplicatesToTheSame) {
  Sequences sequences = random_sequences(4000, 3, 60);
  const Sequences originals(sequences.begin(), sequences.begin() + 2000);
  sequences.insert(sequences.end(), originals.rbegin(), originals.rend());
  const MemoryCorpus train = proteins(sequences, {Side::train, 0.1, 9}),
                     held = proteins(sequences, {Side::held_out, 0.1, 9});
  EXPECT_EQ(train.size() + held.size(), 6000);
  const auto to_text = [](std::span<const Token> sequence) {
    return std::string(sequence.begin(), sequence.end());
  };
  std::set<std::string> in_train;
  for (int64_t i = 0; i < train.size(); ++i) in_train.insert(to_text(train.tokens(i)));
  for (int64_t i = 0; i < held.size(); ++i) EXPECT_FALSE(in_train.contains(to_text(held.tokens(i))));
}

TEST(Store, HoldsOutTheStatedFraction) {
  const Sequences sequences = random_sequences(20'000, 4, 60);
  for (const double fraction : {0.02, 0.25, 0.9}) {
    const MemoryCorpus held = proteins(sequences, {Side::held_out, fraction, 1});
    // Short sequences repeat and go together: 8 standard deviations of independent draws.
    EXPECT_NEAR(held.size(), 20'000 * fraction, 8 * std::sqrt(20'000 * fraction * (1 - fraction)))
        << fraction;
  }
  EXPECT_EQ(proteins(sequences, {Side::train, 0, 1}).size(), 20'000);
}

TEST(Store, SplitsByTheSeed) {
  const Sequences sequences = random_sequences(2000, 5, 60);
  const MemoryCorpus a = proteins(sequences, {Side::held_out, 0.1, 1}),
                     b = proteins(sequences, {Side::held_out, 0.1, 2}),
                     again = proteins(sequences, {Side::held_out, 0.1, 1});
  EXPECT_FALSE(contents(a) == contents(b));
  EXPECT_TRUE(contents(a) == contents(again));
}

TEST(Store, RefusesToBeEmpty) {
  const std::string file = file_with(">a\nACD\n");
  EXPECT_THAT(error_of<UsageError>([&] { SequenceStore({}, testing::TempDir()); }),
              HasSubstr("no file is given"));
  EXPECT_THAT(error_of<InputError>([&] {
                SequenceStore({file}, testing::TempDir(), {}, {Side::held_out, 0, 0});
              }),
              AllOf(HasSubstr("no sequence is left in the held-out part: of 1 sequences"),
                    HasSubstr("validation file")));
  EXPECT_THAT(error_of<UsageError>([&] {
                SequenceStore({file}, testing::TempDir(), {}, {Side::train, 1, 0});
              }),
              HasSubstr("found 1"));
  EXPECT_THAT(error_of<InputError>([&] { proteins(Sequences{{1}, {}}); }), HasSubstr("sequence 2"));
  EXPECT_THAT(error_of<InputError>([&] { proteins(Sequences{{1}, {25}}); }), HasSubstr("sequence 2"));
}

TEST(Store, PassesOnErrorsOfTheReader) {
  EXPECT_THAT(error_of<InputError>([&] { SequenceStore({file_with(">a\nA1\n")}, testing::TempDir()); }),
              HasSubstr("illegal letter '1'"));
}

TEST(Store, SaysThatTheDirectoryCannotBeWritten) {
  const std::string missing = testing::TempDir() + "no-such-directory";
  EXPECT_THAT(error_of<Error>([&] { SequenceStore({file_with(">a\nA\n")}, missing); }),
              AllOf(HasSubstr(missing), HasSubstr("No such file or directory")));
}

// What another process maps.
SectionFile again(const SequenceStore& store) {
  return {test::file_of_bytes(test::bytes_of(store.file())), "the copy"};
}

TEST(Store, IsTheSameInAnotherProcess) {
  Sequences sequences = random_sequences(300, 7);
  const SequenceStore store({file_with(to_fasta(sequences) + ">last\nac-d*\n")}, testing::TempDir(), {},
                            {Side::train, 0.3, 5});
  const SequenceStore copy(again(store));
  EXPECT_TRUE(contents(copy) == contents(store));
  EXPECT_EQ(copy.size(), store.size());
  EXPECT_EQ(copy.total_tokens(), store.total_tokens());
  EXPECT_EQ(copy.fingerprint(), store.fingerprint());
  EXPECT_EQ(copy.vocabulary(), store.vocabulary());
  EXPECT_EQ(copy.vocabulary().name(), "protein");
  EXPECT_EQ(copy.format(), "fasta");
  EXPECT_EQ(copy.image_shape(), std::nullopt);
  EXPECT_EQ(summary(copy.report()), summary(store.report()));
  EXPECT_EQ(copy.report().lines, store.report().lines);
}

TEST(Store, ImagesAndOwnSymbolsAreTheSameInAnotherProcess) {
  DataConfig config;
  config.image_shape = "2x1x3";
  const SequenceStore images({file_with("abcdefABCDEF", ".u8")}, testing::TempDir(), config);
  const SequenceStore copy(again(images));
  EXPECT_EQ(copy.image_shape(), (ImageShape{2, 1, 3}));
  EXPECT_EQ(copy.format(), "image");
  EXPECT_TRUE(contents(copy) == contents(images));
  EXPECT_EQ(copy.size(), 2);
  DataConfig text;
  text.vocabulary = file_with("ab\nc\n\\xFF\n", ".symbols");
  const SequenceStore own({file_with("cab\xFF", ".txt")}, testing::TempDir(), text);
  const SequenceStore other(again(own));
  EXPECT_EQ(other.vocabulary(), own.vocabulary());
  EXPECT_EQ(other.vocabulary().name(), own.vocabulary().name());
  EXPECT_EQ(contents(other), (Sequences{{1, 0, 2}}));
}

TEST(Store, LabelsAreTheSameInAnotherProcess) {
  const std::string fasta = file_with(">a\nACD\n>none\nW\n>b\nEF\n"),
                    table = file_with("id\tlabel\tweight\na\tH?E\t2\nb\tEE\t0.5\n", ".tsv");
  const LabelTable labels(table, {.classes = true, .per_token = true});
  LabelledSequences gathered(&labels, nullptr);
  const SequenceStore store({fasta}, testing::TempDir(), {}, {}, std::nullopt, {}, &gathered);
  const SequenceStore copy(again(store));
  const LabelledSequences found(copy.file(), copy.offsets());
  ASSERT_EQ(found.size(), 2);
  EXPECT_EQ(copy.size(), 2);
  EXPECT_THAT(std::vector(found.values(0).begin(), found.values(0).end()),
              ElementsAre(1, testing::IsNan(), 0));
  EXPECT_THAT(std::vector(found.values(1).begin(), found.values(1).end()), ElementsAre(0, 0));
  EXPECT_THAT(std::vector(found.weights().begin(), found.weights().end()), ElementsAre(2, 0.5));
  EXPECT_TRUE(found.has_weights());
  EXPECT_EQ(found.classes(), labels.classes());
  EXPECT_EQ(found.fingerprint(), gathered.fingerprint());
  const SequenceStore plain({fasta}, testing::TempDir());
  const LabelledSequences nothing(plain.file(), plain.offsets());
  EXPECT_EQ(nothing.size(), 0);
  EXPECT_FALSE(nothing.has_weights());
}

TEST(Store, RefusesADamagedFile) {
  const SequenceStore store({file_with(">a\nACD\n>b\nEF\n")}, testing::TempDir());
  const auto refused = [](const std::string& bytes) {
    return error_of<InputError>([&] { SequenceStore(SectionFile(test::file_of_bytes(bytes), "the file")); });
  };
  const auto offset = [&](size_t index, int64_t value) {
    return refused(test::with_number(store.file(), "offsets", index, value));
  };
  EXPECT_THAT(refused(test::with_number(store.file(), "tokens", 4, Token{25})),
              HasSubstr("the file: token 5 is 25, but the vocabulary has 25 symbols"));
  EXPECT_THAT(offset(0, -1), HasSubstr("expected the offsets of sequences of 5 tokens"));
  EXPECT_THAT(offset(2, 6), HasSubstr("expected the offsets of sequences of 5 tokens"));
  for (const int64_t value : {int64_t{0}, int64_t{5}, int64_t{9}, std::numeric_limits<int64_t>::min(),
                              std::numeric_limits<int64_t>::max()}) {
    EXPECT_THAT(offset(1, value), HasSubstr("begins at token")) << value;
  }
  EXPECT_THAT(refused(test::with_text(store.file(), "fingerprint", "fingerprInt")),
              HasSubstr("damaged description of the corpus"));
  EXPECT_THAT(refused(test::with_text(store.file(), R"("image_shape":"")", R"("image_shape":99)")),
              HasSubstr("damaged description of the corpus"));
  EXPECT_THAT(refused(test::with_text(store.file(), "\"symbols\"", "\"symbolz\"")), HasSubstr("the file"));
  SectionWriter other(testing::TempDir(), "things", "nothing");
  other.add_text("x", "y");
  EXPECT_THAT(error_of<InputError>([&] { SequenceStore(other.finish()); }), HasSubstr("there is no section"));
}

TEST(Store, RefusesDamagedLabels) {
  const std::string fasta = file_with(">a\nACD\n>b\nEF\n");
  const auto store_of = [&](const std::string& table, const LabelForm& form) {
    const LabelTable labels(file_with(table, ".tsv"), form);
    LabelledSequences gathered(&labels, nullptr);
    return std::make_unique<SequenceStore>(std::vector{fasta}, testing::TempDir(), DataConfig{}, HashSplit{},
                                           std::nullopt, ReadProgress{}, &gathered);
  };
  const auto refused = [](const std::string& bytes) {
    const SequenceStore copy(SectionFile(test::file_of_bytes(bytes), "the file"));
    return error_of<InputError>([&] { LabelledSequences(copy.file(), copy.offsets()); });
  };
  const auto classes = store_of("id\tlabel\tweight\na\tx\t2\nb\ty\t1\n", {.classes = true});
  const SectionFile& file = classes->file();
  for (const float value : {-1.F, 2.F, 0.5F, std::numeric_limits<float>::infinity()}) {
    EXPECT_THAT(refused(test::with_number(file, "label values", 1, value)), HasSubstr("none of 2 classes"));
  }
  EXPECT_THAT(refused(test::with_number(file, "label ends", 1, int64_t{3})),
              HasSubstr("expected the labels of sequence 2 to end at 2, found 3"));
  EXPECT_THAT(refused(test::with_number(file, "label weights", 0, -2.F)),
              HasSubstr("a weight must be a number"));
  EXPECT_THAT(refused(test::with_text(file, "\"per_token\":false", "\"per_token\":true ")),
              HasSubstr("expected the labels of sequence 1 to end at 3, found 1"));
  EXPECT_THAT(refused(test::with_text(file, "per_token", "per_tokem")),
              HasSubstr("damaged description of labels"));
}

// A limit on file sizes stands for a full disk: the write fails half-way.
TEST(Store, SaysThatTheDiskIsFull) {
  const std::string file = file_with(to_fasta(random_sequences(30, 6, 200'000)));
  const std::string directory = fresh_directory("store_full");
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 1'500'000;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string message;
  try {
    SequenceStore store({file}, directory);
  } catch (const InputError&) {
    message = "the wrong error: the input is fine";
  } catch (const Error& error) {
    message = error.what();
  }
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, handler);
  EXPECT_THAT(message, AllOf(HasSubstr(directory), HasSubstr("after 1500000 bytes: File too large"),
                             HasSubstr("another disk")));
  EXPECT_TRUE(std::filesystem::is_empty(directory));
}

}  // namespace
}  // namespace performer::data
