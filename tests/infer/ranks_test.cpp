// SPDX-License-Identifier: Apache-2.0
// Reading an input on several ranks gives what one process gives.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fmt/format.h>

#include "performer/base/error.h"
#include "performer/base/philox.h"
#include "performer/data/byte_source.h"
#include "performer/infer/embed.h"
#include "performer/infer/score.h"
#include "tests/distributed/ranks.h"
#include "tests/infer/tiny_model.h"

namespace performer {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

// Proteins of the lengths, with names.
std::string fasta_of(const std::vector<int64_t>& lengths) {
  PhiloxStream random(1);
  std::string text;
  for (size_t i = 0; i < lengths.size(); ++i) {
    text += fmt::format(">p{}\n", i);
    for (int64_t k = 0; k < lengths[i]; ++k) text += "ACDEFGHIKLMNPQRSTVWY"[random.below(20)];
    text += "\n";
  }
  return text;
}
std::vector<int64_t> many_lengths() {
  PhiloxStream random(2);
  std::vector<int64_t> lengths(60);
  for (int64_t& length : lengths) length = 1 + static_cast<int64_t>(random.below(50));
  lengths[7] = 200;  // longer than a batch
  lengths[8] = 130;
  lengths[40] = 170;
  return lengths;
}

std::unique_ptr<data::Reader> reader_of(const std::string& fasta) {
  return data::open_reader(data::memory_bytes(fasta), "memory", {}, data::Vocabulary::protein());
}

// What rank 0 of `size` ranks tells, one line a sequence; every rank has a model of its own.
struct Scored {
  std::vector<std::string> ids;
  std::vector<std::vector<float>> values;
};
Scored scored(const TinyModel& options, const std::string& fasta, int size, int64_t slices = 1,
              int64_t batch_tokens = 100) {
  Scored found;
  std::vector<LanguageModel> models;  // all are made from the same seed of the one generator
  for (int rank = 0; rank < size; ++rank) models.push_back(make_model(options));
  const auto as_rank = [&](distributed::Communicator& communicator) {
    const ReadingRanks ranks(communicator, slices);
    const auto reader = reader_of(fasta);
    const ScoreRequest request{batch_tokens, &ranks, ::testing::TempDir()};
    score(models[static_cast<size_t>(communicator.rank())], *reader, "memory", request,
          [&](const SequenceScore& score) {
            EXPECT_EQ(communicator.rank(), 0) << "only rank 0 speaks";
            found.ids.push_back(score.id);
            found.values.push_back(score.log_probabilities);
          });
  };
  if (size == 1) {
    as_rank(*distributed::single_rank());
  } else {
    testing::expect_no_errors(testing::run_ranks(size, as_rank));
  }
  return found;
}

TEST(ReadingRanks, WorkIsDividedEvenly) {
  EXPECT_EQ(divide_work({5, 1, 1, 1, 1, 1}, 2), (std::vector<int>{0, 1, 1, 1, 1, 1}));
  EXPECT_EQ(divide_work({}, 3), std::vector<int>());
  EXPECT_EQ(divide_work({4, 3, 2}, 1), (std::vector<int>{0, 0, 0}));
  PhiloxStream random(3);
  std::vector<int64_t> costs(100), load(3);
  for (int64_t& cost : costs) cost = 50 + static_cast<int64_t>(random.below(100));
  const std::vector<int> owners = divide_work(costs, 3);
  for (size_t i = 0; i < costs.size(); ++i) load[static_cast<size_t>(owners[i])] += costs[i];
  EXPECT_LE(*std::ranges::max_element(load) - *std::ranges::min_element(load), 150);
}

TEST(ReadingRanks, ScoresAreThoseOfOneProcessBitForBit) {
  const std::string fasta = fasta_of(many_lengths());
  for (const char* objective : {"causal", "masked"}) {
    for (const char* kind : {"favor-softmax", "exact"}) {
      const TinyModel options{.kind = kind, .objective = objective};
      const Scored one = scored(options, fasta, 1);
      ASSERT_EQ(one.ids.size(), 60u);
      for (const int size : {2, 3}) {
        const Scored several = scored(options, fasta, size);
        EXPECT_EQ(several.ids, one.ids);
        EXPECT_EQ(several.values, one.values) << kind << ", " << objective << ", " << size << " ranks";
      }
    }
  }
}

TEST(ReadingRanks, ScoresOfSlicesAgree) {
  const std::string fasta = fasta_of(many_lengths());
  for (const char* kind : {"favor-softmax", "favor-relu"}) {
    const Scored one = scored({.kind = kind}, fasta, 1);
    for (const int size : {2, 3}) {
      const Scored several = scored({.kind = kind}, fasta, size, size);
      ASSERT_EQ(several.ids, one.ids);
      for (size_t i = 0; i < one.ids.size(); ++i) {
        ASSERT_EQ(several.values[i].size(), one.values[i].size());
        if (one.values[i].size() <= 100) {
          EXPECT_EQ(several.values[i], one.values[i]) << "not in slices";
        }
        for (size_t k = 0; k < one.values[i].size(); ++k)
          EXPECT_NEAR(several.values[i][k], one.values[i][k], 2e-4)
              << kind << ", " << i << ", token " << k + 1;
      }
    }
  }
}

// Chunks within slices, at a length where float32 has lost what it can lose.
TEST(ReadingRanks, AVeryLongSequenceIsScoredAlike) {
  const std::string fasta = fasta_of({100000});
  const Scored one = scored({.kind = "favor-softmax"}, fasta, 1, 1, 4096),
               two = scored({.kind = "favor-softmax"}, fasta, 2, 2, 4096);
  ASSERT_EQ(two.values.size(), 1u);
  ASSERT_EQ(two.values[0].size(), 100000u);
  double difference = 0, total = 0, other = 0;
  for (size_t k = 0; k < two.values[0].size(); ++k) {
    difference = std::max<double>(difference, std::abs(two.values[0][k] - one.values[0][k]));
    total += one.values[0][k];
    other += two.values[0][k];
  }
  EXPECT_LT(difference, 1e-3);
  EXPECT_NEAR(other / total, 1, 1e-6);
}

// Keeps what embed() makes.
class Kept final : public EmbeddingSink {
 public:
  Kept(std::vector<int64_t> layers, int64_t width) : layers_(std::move(layers)), width_(width) {}
  const std::vector<int64_t>& layers() const override { return layers_; }
  int64_t width() const override { return width_; }
  std::span<const EmbeddedSequence> finished() const override { return before; }
  void begin(const data::Record& record, int64_t rows) override {
    ids.push_back(record.id);
    rows_.push_back(at::full({rows, std::ssize(layers_), width_}, std::nan("")));
  }
  void write(int64_t first, int64_t place, const at::Tensor& values) override {
    rows_.back().narrow(0, first, values.size(0)).select(1, place).copy_(values);
  }
  void end() override {}
  at::Tensor all() const { return at::cat(rows_); }

  std::vector<std::string> ids;
  std::vector<EmbeddedSequence> before;

 private:
  std::vector<int64_t> layers_;
  int64_t width_;
  std::vector<at::Tensor> rows_;
};

Kept embedded(const TinyModel& options, const std::string& fasta, int size, int64_t slices,
              const std::string& pool, const std::vector<EmbeddedSequence>& before = {}) {
  std::vector<Kept> kept(static_cast<size_t>(size), Kept({0, 1, 2}, 32));
  kept[0].before = before;
  std::vector<LanguageModel> models;
  for (int rank = 0; rank < size; ++rank) models.push_back(make_model(options));
  const auto as_rank = [&](distributed::Communicator& communicator) {
    const at::NoGradGuard no_gradients;
    const ReadingRanks ranks(communicator, slices);
    const auto reader = reader_of(fasta);
    EmbedRequest request{parse_pooling(pool), 100, 100};
    request.temporary_folder = ::testing::TempDir();
    request.ranks = &ranks;
    const auto rank = static_cast<size_t>(communicator.rank());
    embed(models[rank], *reader, "memory", request, kept[rank]);
    if (rank > 0) {
      EXPECT_TRUE(kept[rank].ids.empty()) << "only rank 0 writes";
    }
  };
  if (size == 1) {
    as_rank(*distributed::single_rank());
  } else {
    testing::expect_no_errors(testing::run_ranks(size, as_rank));
  }
  return kept[0];
}

TEST(ReadingRanks, EmbeddingsAreThoseOfOneProcess) {
  const std::string fasta = fasta_of(many_lengths());
  for (const char* objective : {"causal", "masked"}) {
    const TinyModel options{.kind = "favor-softmax", .objective = objective};
    for (const char* pool : {"mean", "max", "first", "tokens"}) {
      const Kept one = embedded(options, fasta, 1, 1, pool);
      const at::Tensor expected = one.all();
      ASSERT_FALSE(expected.isnan().any().item<bool>());
      for (const int size : {2, 3}) {
        const Kept whole = embedded(options, fasta, size, 1, pool);
        EXPECT_EQ(whole.ids, one.ids);
        EXPECT_TRUE(at::equal(whole.all(), expected))
            << objective << ", " << pool << ", " << size << " ranks";
        const Kept sliced = embedded(options, fasta, size, size, pool);
        EXPECT_EQ(sliced.ids, one.ids);
        EXPECT_TRUE(at::allclose(sliced.all(), expected, 2e-4, 2e-4))
            << objective << ", " << pool << ", " << size
            << " slices: " << (sliced.all() - expected).abs().max().item<double>();
      }
    }
  }
}

// The sums over all keys keep their digits, however many slices and chunks they are made of.
TEST(ReadingRanks, AVeryLongSequenceIsEmbeddedAlike) {
  const std::string fasta = fasta_of({50000});
  const TinyModel options{.kind = "favor-relu", .objective = "masked"};
  const at::Tensor one = embedded(options, fasta, 1, 1, "mean").all();
  for (const int size : {2, 3}) {
    const at::Tensor several = embedded(options, fasta, size, size, "mean").all();
    EXPECT_LT((several - one).abs().max().item<double>(), 5e-6) << size << " slices";
  }
}

TEST(ReadingRanks, WhatIsFinishedIsPassedOverOnAllRanks) {
  const std::string fasta = fasta_of({10, 20, 150, 30, 40});
  const TinyModel options{.kind = "favor-softmax"};
  const at::Tensor all = embedded(options, fasta, 1, 1, "mean").all();
  const std::vector<EmbeddedSequence> before = {{"p0", 10, 0, 1}, {"p1", 20, 1, 1}};
  for (const int64_t slices : {1, 2}) {
    const Kept rest = embedded(options, fasta, 2, slices, "mean", before);
    EXPECT_EQ(rest.ids, (std::vector<std::string>{"p2", "p3", "p4"}));
    EXPECT_TRUE(at::allclose(rest.all(), all.narrow(0, 2, 3), 2e-4, 2e-4));
  }
}

TEST(ReadingRanks, WhatCannotLieInSlicesIsNamed) {
  const auto errors = [](const TinyModel& options, int size, int64_t slices) {
    std::vector<LanguageModel> models;
    for (int rank = 0; rank < size; ++rank) models.push_back(make_model(options));
    return testing::run_ranks(size, [&](distributed::Communicator& communicator) {
      const ReadingRanks ranks(communicator, slices);
      const auto reader = reader_of(">a\nMKT\n");
      score(models[static_cast<size_t>(communicator.rank())], *reader, "memory", {.ranks = &ranks},
            [](const SequenceScore&) {});
    });
  };
  EXPECT_THAT(errors({.kind = "exact"}, 2, 2),
              Each(AllOf(HasSubstr("--sequence-parallel 2"), HasSubstr("attention.kind = exact"))));
  EXPECT_THAT(errors({.objective = "masked"}, 2, 2),
              Each(AllOf(HasSubstr("--sequence-parallel 2"), HasSubstr("divide these passes"))));
  EXPECT_THAT(errors({}, 3, 2), Each(HasSubstr("--sequence-parallel is 2, but there are 3 ranks")));
}

}  // namespace
}  // namespace performer
