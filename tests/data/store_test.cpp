// SPDX-License-Identifier: Apache-2.0
#include "performer/data/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <numeric>
#include <set>

#include "performer/base/error.h"
#include "performer/base/philox.h"
#include "performer/data/vocabulary.h"
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
using test::random_sequences;
using test::Sequences;

Sequences contents(const SequenceStore& store) {
  Sequences sequences;
  for (int64_t i = 0; i < store.size(); ++i)
    sequences.emplace_back(store.tokens(i).begin(), store.tokens(i).end());
  return sequences;
}

std::string to_fasta(const Sequences& sequences) {
  std::string text;
  for (const auto& sequence : sequences) {
    std::string residues;
    for (const uint8_t token : sequence) residues += letter(token);
    text += format_fasta("s", residues);
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
  EXPECT_EQ(store.residues(), 7);
  EXPECT_EQ(store.counts().records, 3);
  EXPECT_EQ(store.counts().residues, 7);
  EXPECT_EQ(store.counts().stops, 1);
  EXPECT_EQ(store.counts().gaps, 1);
  EXPECT_EQ(store.counts().j_to_x, 1);
  EXPECT_TRUE(std::filesystem::is_empty(directory)) << "the temporary file has no name";
}

TEST(Store, HoldsMoreThanItsBuffer) {
  Sequences sequences = random_sequences(50, 1, 200'000);
  sequences.insert(sequences.begin() + 7, std::vector<uint8_t>(2'500'000, 3));  // one alone, too
  const SequenceStore store({file_with(to_fasta(sequences))}, testing::TempDir());
  EXPECT_TRUE(contents(store) == sequences);
}

TEST(Store, IsTheSameFromMemoryAndFromFiles) {
  const Sequences sequences = random_sequences(500, 2);
  for (const HashSplit& split :
       {HashSplit{}, HashSplit{Side::train, 0.3, 5}, HashSplit{Side::held_out, 0.3, 5}}) {
    const SequenceStore file({file_with(to_fasta(sequences))}, testing::TempDir(), split),
        memory(sequences, split);
    EXPECT_TRUE(contents(file) == contents(memory));
    EXPECT_EQ(file.fingerprint(), memory.fingerprint());
    EXPECT_EQ(file.residues(), memory.residues());
    EXPECT_EQ(file.counts().records, memory.counts().records);
  }
}

TEST(Store, FingerprintsOrderAndBounds) {
  const auto fingerprint = [](const Sequences& sequences) { return SequenceStore(sequences).fingerprint(); };
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
  const SequenceStore train(sequences, {Side::train, 0.1, 9}), held(sequences, {Side::held_out, 0.1, 9});
  EXPECT_EQ(train.size() + held.size(), 6000);
  const auto to_text = [](std::span<const uint8_t> sequence) {
    return std::string(sequence.begin(), sequence.end());
  };
  std::set<std::string> in_train;
  for (int64_t i = 0; i < train.size(); ++i) in_train.insert(to_text(train.tokens(i)));
  for (int64_t i = 0; i < held.size(); ++i) EXPECT_FALSE(in_train.contains(to_text(held.tokens(i))));
}

TEST(Store, HoldsOutTheStatedFraction) {
  const Sequences sequences = random_sequences(20'000, 4, 60);
  for (const double fraction : {0.02, 0.25, 0.9}) {
    const SequenceStore held(sequences, {Side::held_out, fraction, 1});
    // Short sequences repeat and go together: 8 standard deviations of independent draws.
    EXPECT_NEAR(held.size(), 20'000 * fraction, 8 * std::sqrt(20'000 * fraction * (1 - fraction)))
        << fraction;
  }
  EXPECT_EQ(SequenceStore(sequences, {Side::train, 0, 1}).size(), 20'000);
}

TEST(Store, SplitsByTheSeed) {
  const Sequences sequences = random_sequences(2000, 5, 60);
  const SequenceStore a(sequences, {Side::held_out, 0.1, 1}), b(sequences, {Side::held_out, 0.1, 2}),
      again(sequences, {Side::held_out, 0.1, 1});
  EXPECT_FALSE(contents(a) == contents(b));
  EXPECT_TRUE(contents(a) == contents(again));
}

TEST(Store, RefusesToBeEmpty) {
  const std::string file = file_with(">a\nACD\n");
  EXPECT_THAT(error_of<UsageError>([&] { SequenceStore({}, testing::TempDir(), HashSplit{}); }),
              HasSubstr("no FASTA file"));
  EXPECT_THAT(error_of<InputError>([&] {
                SequenceStore({file}, testing::TempDir(), {Side::held_out, 0, 0});
              }),
              AllOf(HasSubstr("held-out part of 1 sequences"), HasSubstr("validation file")));
  EXPECT_THAT(error_of<UsageError>([&] {
                SequenceStore({file}, testing::TempDir(), {Side::train, 1, 0});
              }),
              HasSubstr("found 1"));
  EXPECT_THAT(error_of<InputError>([&] { SequenceStore(Sequences{{1}, {}}); }), HasSubstr("sequence 2"));
  EXPECT_THAT(error_of<InputError>([&] { SequenceStore(Sequences{{1}, {25}}); }), HasSubstr("sequence 2"));
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

TEST(Permutation, IsABijection) {
  std::vector<uint64_t> sizes(2050);
  std::iota(sizes.begin(), sizes.end(), 1);
  sizes.insert(sizes.end(), {4095, 4096, 4097, 65536, 100'000, 262'145});
  for (const uint64_t n : sizes) {
    const Permutation order(n, 3, n);
    std::vector<bool> seen(n);
    for (uint64_t i = 0; i < n; ++i) {
      const uint64_t at = order(i);
      ASSERT_LT(at, n);
      ASSERT_FALSE(seen[at]) << n;
      seen[at] = true;
    }
  }
}

TEST(Permutation, IsNamedBySeedAndEpoch) {
  const auto values = [](uint64_t seed, uint64_t epoch) {
    const Permutation order(1000, seed, epoch);
    std::vector<uint64_t> result;
    for (uint64_t i = 0; i < 1000; ++i) result.push_back(order(i));
    return result;
  };
  EXPECT_EQ(values(1, 2), values(1, 2));
  EXPECT_NE(values(1, 2), values(1, 3));
  EXPECT_NE(values(1, 2), values(2, 2));
  EXPECT_NE(values(1, 2), values(2, 1));
}

TEST(Permutation, WorksOnLargeSizes) {
  for (const uint64_t n : {(uint64_t{1} << 32) + 12345, uint64_t{1} << 62}) {
    const Permutation order(n, 1, 0);
    std::set<uint64_t> seen;
    for (uint64_t i = 0; i < 1000; ++i) seen.insert(order(n - 1 - i));
    EXPECT_EQ(seen.size(), 1000u);
    EXPECT_LT(*seen.rbegin(), n);
  }
}

// Chi-squared with k degrees of freedom is close to normal: 5 standard deviations above its mean.
void expect_uniform(const std::vector<double>& counts, double expected, const std::string& what) {
  double chi_squared = 0;
  for (const double count : counts) chi_squared += (count - expected) * (count - expected) / expected;
  const double k = static_cast<double>(counts.size() - 1);
  EXPECT_LT(chi_squared, k + 5 * std::sqrt(2 * k)) << what;
}

// Over many epochs every place takes every value equally often, neighbours included.
TEST(Permutation, ShufflesEvenly) {
  for (const int n : {3, 5, 16, 37}) {
    constexpr int kEpochs = 40'000;
    std::vector<double> single(n * n), steps(n);
    for (int epoch = 0; epoch < kEpochs; ++epoch) {
      const Permutation order(n, 17, epoch);
      for (int i = 0; i < n; ++i) ++single[i * n + static_cast<int>(order(i))];
      ++steps[(order(1) + n - order(0)) % n];
    }
    EXPECT_EQ(steps[0], 0);
    steps.erase(steps.begin());
    expect_uniform(single, double(kEpochs) / n, "places, n = " + std::to_string(n));
    expect_uniform(steps, double(kEpochs) / (n - 1), "steps, n = " + std::to_string(n));
  }
}

TEST(Permutation, LeavesNoTrendInOneLargeEpoch) {
  constexpr int kSize = 100'003, kBins = 20;
  const Permutation order(kSize, 5, 0);
  std::vector<double> joint(kBins * kBins), ascents(2);
  for (int i = 0; i < kSize; ++i) {
    ++joint[i * int64_t{kBins} / kSize * kBins + static_cast<int64_t>(order(i)) * kBins / kSize];
    if (i > 0) ++ascents[order(i) > order(i - 1)];
  }
  expect_uniform(joint, double(kSize) / (kBins * kBins), "place against value");
  EXPECT_NEAR(ascents[1], kSize / 2.0, 5 * std::sqrt(kSize / 12.0));  // variance of ascents: (n + 1) / 12
}

}  // namespace
}  // namespace performer::data
