// SPDX-License-Identifier: Apache-2.0
#include "performer/data/batches.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <set>

#include "performer/base/error.h"
#include "performer/data/permutation.h"
#include "tests/data/batch_checks.h"
#include "tests/data/sequences.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using performer::test::error_of;
using test::config_of, test::expect_well_formed, test::Ints, test::slice;
using test::ids, test::is_residue, test::kBos, test::kEos, test::kPad;
using test::proteins, test::random_sequences;
using test::Sequences;
using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<Token> residues(std::string_view text) {
  return Vocabulary::protein().encode(text);
}

// The sequences in such an order of the store that epoch 0 of `config` hands them out as they are given.
Sequences in_epoch_order(const Sequences& sequences, const DataConfig& config) {
  Sequences placed(sequences.size());
  const Permutation order(sequences.size(), static_cast<uint64_t>(config.seed), 0);
  for (size_t i = 0; i < sequences.size(); ++i) placed[order(i)] = sequences[i];
  return placed;
}

void expect_equal(const Batch& a, const Batch& b) {
  EXPECT_EQ(a.rows, b.rows);
  EXPECT_EQ(a.width, b.width);
  EXPECT_EQ(a.inputs, b.inputs);
  EXPECT_EQ(a.targets, b.targets);
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_EQ(a.positions, b.positions);
  EXPECT_EQ(a.cu_seqlens, b.cu_seqlens);
  EXPECT_EQ(a.valid, b.valid);
}

TEST(BatchStream, RefusesAnUnknownObjective) {
  const MemoryCorpus store = proteins(Sequences{{1}});
  EXPECT_THAT(error_of<UsageError>([&] { BatchStream(store, {}, "clm"); }), HasSubstr("\"clm\""));
  EXPECT_THAT(error_of<UsageError>([&] { EvaluationStream(store, {}, "clm"); }), HasSubstr("\"clm\""));
}

TEST(BatchStream, PacksCausalSegments) {
  const DataConfig config = config_of("packed", 6, 9);
  const MemoryCorpus store =
      proteins(in_epoch_order({residues("ACD"), residues("EFGH"), residues("IKLMNPQ")}, config));
  BatchStream stream(store, config, "causal");
  Batch batch = stream.next();
  expect_well_formed(batch);
  EXPECT_EQ(batch.rows, 1);
  EXPECT_EQ(batch.inputs, ids("<ACD<EFGH"));
  EXPECT_EQ(batch.targets, ids("ACD>EFGH>"));
  EXPECT_THAT(batch.weights, Each(1));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 3, 0, 1, 2, 3, 4));
  EXPECT_THAT(batch.cu_seqlens, ElementsAre(0, 4, 9));
  EXPECT_THAT(batch.valid, IsEmpty());
  EXPECT_EQ(batch.targets_counted(), 9);
  // BOS I .. Q has eight inputs: pieces of six and two; the second goes on at position 6 with N as its first
  // input. What does not fit any more, from the next epoch, waits.
  batch = stream.next();
  EXPECT_EQ(slice(batch.inputs, 0, 8), ids("<IKLMNPQ"));
  EXPECT_EQ(slice(batch.targets, 0, 8), ids("IKLMNPQ>"));
  EXPECT_EQ(slice(batch.positions, 0, 8), (Ints{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_THAT(batch.cu_seqlens, ElementsAre(0, 6, 8));
  EXPECT_EQ(stream.cursor(), (Cursor{1, 0, 0}));
  EXPECT_EQ(stream.crops().sequences, 3);
  EXPECT_EQ(stream.crops().cropped, 1);
  EXPECT_EQ(stream.crops().pieces, 4);
  EXPECT_EQ(stream.crops().tokens_dropped, 0);
}

TEST(BatchStream, PadsRows) {
  const DataConfig config = config_of("padded", 6, 13);
  const MemoryCorpus store = proteins(in_epoch_order({residues("ACD"), residues("EFGHI")}, config));
  BatchStream stream(store, config, "causal");
  const Batch batch = stream.next();
  expect_well_formed(batch);
  EXPECT_EQ(batch.rows, 2);
  EXPECT_EQ(batch.width, 6);
  EXPECT_EQ(batch.inputs, ids("<ACD__<EFGHI"));
  EXPECT_EQ(batch.targets, ids("ACD>__EFGHI>"));
  EXPECT_THAT(batch.weights, ElementsAre(1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1));
  EXPECT_THAT(batch.valid, ElementsAre(1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 3, 0, 0, 0, 1, 2, 3, 4, 5));
  EXPECT_THAT(batch.cu_seqlens, IsEmpty());
  EXPECT_EQ(batch.targets_counted(), 10);
  EXPECT_EQ(batch.tokens_read(), 10);
}

TEST(BatchStream, MasksBetweenMarkers) {
  DataConfig config = config_of("packed", 16, 16);
  config.mask_rate = 1;
  const MemoryCorpus store = proteins(in_epoch_order({residues("ACDEF"), residues("GHIKLMN")}, config));
  BatchStream stream(store, config, "masked");
  const Batch batch = stream.next();
  expect_well_formed(batch);
  EXPECT_EQ(batch.targets, ids("<ACDEF><GHIKLMN>"));
  EXPECT_THAT(batch.weights, ElementsAre(0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0));
  EXPECT_THAT(batch.cu_seqlens, ElementsAre(0, 7, 16));
  EXPECT_EQ(batch.targets_counted(), 12);
  EXPECT_EQ(batch.tokens_read(), 16);
  for (const int64_t marker : {0, 6, 7, 15}) EXPECT_EQ(batch.inputs[marker], batch.targets[marker]);
  EXPECT_NE(batch.inputs, batch.targets);
}

TEST(BatchStream, TakesMarkersAndReplacementsFromTheVocabulary) {
  const Vocabulary seven = Vocabulary::of_symbols("seven", {"a", "b", "c", "d", "e", "f", "g"});
  const MemoryCorpus corpus({{0, 6, 3}}, seven);
  BatchStream causal(corpus, config_of("padded", 6, 6), "causal");
  const Batch batch = causal.next();
  EXPECT_THAT(batch.inputs, ElementsAre(7, 0, 6, 3, 9, 9));
  EXPECT_THAT(batch.targets, ElementsAre(0, 6, 3, 8, 9, 9));
  EXPECT_EQ(batch.tokens_read(), 4);
  DataConfig config = config_of("concatenated", 8, 4000);
  config.mask_rate = 1;
  std::set<int64_t> inputs;
  BatchStream masked(corpus, config, "masked");
  for (const int64_t input : masked.next().inputs) inputs.insert(input);
  EXPECT_THAT(inputs, ElementsAre(0, 1, 2, 3, 4, 5, 6, 8, 10)) << "all symbols, EOS and MASK";
}

// Recorded from protein_lm data.py batch_ds with pack_length = 6 (cropped to 8 residues before). Its
// incomplete last batch is dropped; here the stream goes on.
const std::vector<std::string> kPipeline = {"ACDEFGHI", "MKT", "BOUXZ", "AAAA", "GGGGGGGG", "PLMK", "W"};

Sequences pipeline_sequences() {
  Sequences sequences;
  for (const std::string& text : kPipeline) sequences.push_back(residues(text));
  return sequences;
}

TEST(BatchStream, ConcatenatesAsProteinLm) {
  const DataConfig config = config_of("concatenated", 6, 12);
  const MemoryCorpus store = proteins(in_epoch_order(pipeline_sequences(), config));
  BatchStream stream(store, config, "causal");
  const std::vector<Ints> golden = {{0, 1, 2, 3, 4, 5, 6, 7, 26, 10, 8, 16},
                                    {26, 20, 21, 22, 23, 24, 26, 0, 0, 0, 0, 26},
                                    {5, 5, 5, 5, 5, 5, 5, 5, 26, 12, 9, 10}};
  for (const Ints& targets : golden) {
    const Batch batch = stream.next();
    expect_well_formed(batch);
    EXPECT_EQ(batch.rows, 2);
    EXPECT_EQ(batch.targets, targets);
    for (const int64_t row : {0, 6}) {  // modules.py shift_right
      EXPECT_EQ(batch.inputs[row], kBos);
      EXPECT_EQ(slice(batch.inputs, row + 1, row + 6), slice(targets, row, row + 5));
      EXPECT_EQ(slice(batch.positions, row, row + 6), (Ints{0, 1, 2, 3, 4, 5}));
    }
    EXPECT_THAT(batch.weights, Each(1));
    EXPECT_THAT(batch.valid, IsEmpty());
    EXPECT_THAT(batch.cu_seqlens, IsEmpty());
  }
  EXPECT_EQ(stream.cursor(), (Cursor{0, 5, 3})) << "K EOS W EOS are left";
  const Ints targets = stream.next().targets;
  EXPECT_EQ(slice(targets, 0, 4), ids("K>W>"));
}

// Recorded from protein_lm data.py batch_ds without packing: the same prefixes, but no end marker.
TEST(BatchStream, PadsAsProteinLmPlusEndMarkers) {
  const DataConfig config = config_of("padded", 8, 16, "start");
  Sequences sequences = pipeline_sequences();
  sequences[0] = residues("ACDEFGHIKLMNPQRSTVWY");
  const MemoryCorpus store = proteins(in_epoch_order(sequences, config));
  BatchStream stream(store, config, "causal");
  const std::vector<Ints> golden = {{0, 1, 2, 3, 4, 5, 6, 7, 10, 8, 16, 27, 27, 27, 27, 27},
                                    {20, 21, 22, 23, 24, 27, 27, 27, 0, 0, 0, 0, 27, 27, 27, 27},
                                    {5, 5, 5, 5, 5, 5, 5, 5, 12, 9, 10, 8, 27, 27, 27, 27}};
  for (const Ints& recorded : golden) {
    Ints expected = recorded;
    for (size_t i = 1; i < expected.size(); ++i) {
      if (i % 8 != 0 && recorded[i] == kPad && recorded[i - 1] != kPad) expected[i] = kEos;
    }
    EXPECT_EQ(stream.next().targets, expected);
  }
  EXPECT_EQ(stream.crops().cropped, 2)
      << "the eight G have nine inputs with BOS, and lose their end marker only";
  EXPECT_EQ(stream.crops().tokens_dropped, 12);
}

// Every residue and end marker of every sequence is asked for exactly once an epoch, in pieces within the
// limits.
TEST(BatchStream, PacksEveryTokenOnceAnEpoch) {
  const Sequences sequences = random_sequences(60, 5, 70);
  const MemoryCorpus store = proteins(sequences);
  const DataConfig config = config_of("packed", 16, 40);
  BatchStream stream(store, config, "causal");
  std::map<Ints, int> found;
  Ints open;  // the sequence whose pieces are coming in
  while (stream.cursor().epoch < 2) {
    const Batch batch = stream.next();
    expect_well_formed(batch);
    EXPECT_LE(batch.width, 40);
    for (size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s) {
      const int64_t begin = batch.cu_seqlens[s], end = batch.cu_seqlens[s + 1];
      ASSERT_LE(end - begin, 16);
      EXPECT_EQ(batch.positions[begin], std::ssize(open));
      EXPECT_EQ(batch.inputs[begin], open.empty() ? kBos : open.back());
      EXPECT_EQ(slice(batch.inputs, begin + 1, end), slice(batch.targets, begin, end - 1));
      open.insert(open.end(), batch.targets.begin() + begin, batch.targets.begin() + end);
      if (open.back() == kEos) {
        ++found[open];
        open.clear();
      }
    }
  }
  std::map<Ints, int> expected;
  for (const auto& sequence : sequences) {
    Ints targets(sequence.begin(), sequence.end());
    targets.push_back(kEos);
    expected[targets] += 2;
  }
  // The last batch may reach into the third epoch.
  int extra = 0;
  for (const auto& [targets, count] : expected) {
    EXPECT_GE(found[targets], count);
    extra += found[targets] - count;
  }
  EXPECT_EQ(found.size(), expected.size());
  EXPECT_EQ(extra + 120 + (open.empty() ? 0 : 1), stream.crops().sequences);
  EXPECT_LE(extra, 20);
}

TEST(BatchStream, WastesNoRoomThatThePieceWouldFit) {
  const MemoryCorpus store = proteins(random_sequences(100, 6, 30));
  BatchStream stream(store, config_of("packed", 31, 64), "causal"),
      probe(store, config_of("packed", 31, 64), "causal");
  for (int i = 0; i < 50; ++i) {
    const Batch batch = stream.next();
    probe.seek(stream.cursor());
    EXPECT_GT(batch.width + probe.next().cu_seqlens[1], 64);
  }
}

TEST(BatchStream, CropsRandomWindowsEvenly) {
  std::vector<Token> sequence(20);
  std::iota(sequence.begin(), sequence.end(), Token{0});
  const MemoryCorpus store = proteins(Sequences{sequence});
  BatchStream stream(store, config_of("padded", 15, 15, "random"), "causal");
  std::map<int64_t, int> begins;
  constexpr int kEpochs = 3500;
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    const Batch batch = stream.next();
    const int64_t begin = batch.positions[0];
    ++begins[begin];
    ASSERT_EQ(batch.inputs[0], begin == 0 ? kBos : begin - 1);
    ASSERT_EQ(batch.targets[14], begin == 6 ? kEos : begin + 14);
    ASSERT_EQ(batch.targets_counted(), 15);
  }
  ASSERT_EQ(begins.size(), 7u);  // 21 inputs
  for (const auto& [begin, count] : begins)
    EXPECT_NEAR(count, kEpochs / 7, 5 * std::sqrt(kEpochs / 7.)) << begin;
  EXPECT_EQ(stream.crops().cropped, kEpochs);
  // 5 of 20 residues are lost, 6 when the window reaches the end marker.
  EXPECT_EQ(stream.crops().tokens_dropped, 5 * kEpochs + begins[6]);
}

TEST(BatchStream, CountsDroppedResiduesOfMaskedWindows) {
  const MemoryCorpus store = proteins(Sequences{std::vector<Token>(20, 1)});
  BatchStream stream(store, config_of("padded", 10, 10, "random"), "masked");
  int64_t dropped = 0;
  for (int epoch = 0; epoch < 200; ++epoch) {
    const Batch batch = stream.next();
    dropped += 20 - std::ranges::count_if(batch.targets, is_residue);
  }
  EXPECT_EQ(stream.crops().tokens_dropped, dropped);
}

TEST(BatchStream, RefusesLongSequencesOnRequest) {
  const MemoryCorpus store = proteins(Sequences{std::vector<Token>(9, 1), std::vector<Token>(10, 1)});
  EXPECT_NO_THROW(BatchStream(store, config_of("packed", 11, 20, "error"), "causal"));
  EXPECT_THAT(
      error_of<InputError>([&] { BatchStream(store, config_of("packed", 10, 20, "error"), "causal"); }),
      AllOf(HasSubstr("sequence 2 of the training set has 11 tokens"), HasSubstr("data.length is 10")));
  EXPECT_THROW(BatchStream(store, config_of("packed", 11, 20, "error"), "masked"), InputError);
}

TEST(BatchStream, ShufflesEachEpochAnew) {
  Sequences sequences;
  for (Token i = 0; i < 20; ++i) sequences.push_back({i});
  const MemoryCorpus store = proteins(sequences);
  const auto epoch_order = [&](int64_t seed, int64_t epoch) {
    DataConfig config = config_of("padded", 2, 40);
    config.seed = seed;
    BatchStream stream(store, config, "causal");
    stream.seek({epoch, 0, 0});
    return stream.next().targets;
  };
  std::set<Ints> orders;
  for (const int64_t seed : {1, 2}) {
    for (const int64_t epoch : {0, 1, 2}) {
      const Ints targets = epoch_order(seed, epoch);
      orders.insert(targets);
      EXPECT_EQ(std::set<int64_t>(targets.begin(), targets.end()).size(), 21u);
    }
  }
  EXPECT_EQ(orders.size(), 6u);
}

using Form = std::tuple<std::string, std::string, std::string>;  // layout, crop, objective

class EveryStream : public testing::TestWithParam<Form> {
 protected:
  DataConfig config() const { return config_of(std::get<0>(GetParam()), 24, 100, std::get<1>(GetParam())); }
  const std::string& objective() const { return std::get<2>(GetParam()); }
};

TEST_P(EveryStream, ContinuesBitExactlyFromItsCursor) {
  const MemoryCorpus store = proteins(random_sequences(30, 8, 80));
  BatchStream stream(store, config(), objective());
  for (int step = 0; step < 60; ++step) {
    const Cursor cursor = stream.cursor();
    const Batch batch = stream.next();
    expect_well_formed(batch);
    BatchStream resumed(store, config(), objective());
    resumed.seek(cursor);
    expect_equal(resumed.next(), batch);
    EXPECT_EQ(resumed.cursor(), stream.cursor());
  }
  EXPECT_GT(stream.cursor().epoch, 1);
}

INSTANTIATE_TEST_SUITE_P(
    Forms, EveryStream,
    testing::Values(Form{"packed", "split", "causal"}, Form{"packed", "random", "causal"},
                    Form{"packed", "start", "masked"}, Form{"packed", "split", "masked"},
                    Form{"padded", "split", "masked"}, Form{"padded", "random", "masked"},
                    Form{"padded", "start", "causal"}, Form{"concatenated", "split", "causal"},
                    Form{"concatenated", "split", "masked"}));

TEST(BatchStream, RefusesPlacesThatDoNotExist) {
  const MemoryCorpus store = proteins(Sequences{std::vector<Token>(20, 1)});
  BatchStream split(store, config_of("packed", 8, 8), "causal");
  EXPECT_NO_THROW(split.seek({5, 0, 16}));
  const Cursor before = split.cursor();
  for (const Cursor bad : {Cursor{-1, 0, 0}, Cursor{0, 1, 0}, Cursor{0, -1, 0}, Cursor{0, 0, 3},
                           Cursor{0, 0, 24}, Cursor{0, 0, -8}}) {
    EXPECT_THAT(error_of<InputError>([&] { split.seek(bad); }), HasSubstr("not that of the checkpoint"));
    EXPECT_EQ(split.cursor(), before);
  }
  BatchStream start(store, config_of("packed", 8, 8, "start"), "causal");
  EXPECT_THROW(start.seek({0, 0, 8}), InputError);
  BatchStream concatenated(store, config_of("concatenated", 8, 8), "causal");
  EXPECT_NO_THROW(concatenated.seek({0, 0, 20}));
  EXPECT_THROW(concatenated.seek({0, 0, 21}), InputError);
}

// The corrupted residues of an epoch by sequence, keyed by the (unique) residues.
std::map<std::string, Ints> masked_epoch(const Corpus& store, const DataConfig& config, int64_t epoch) {
  BatchStream stream(store, config, "masked");
  stream.seek({epoch, 0, 0});
  std::map<std::string, Ints> result;
  std::string sequence;
  Ints inputs;
  while (stream.cursor().epoch == epoch) {
    const Batch batch = stream.next();
    for (size_t i = 0; i < batch.inputs.size(); ++i) {
      if (is_residue(batch.targets[i])) {
        sequence += Vocabulary::protein().symbol_text(batch.targets[i]);
        inputs.push_back(batch.inputs[i]);
      }
      if (batch.targets[i] != kEos) continue;
      result.emplace(sequence, inputs);  // a repetition, from the next epoch, is not taken
      sequence.clear();
      inputs.clear();
    }
  }
  return result;
}

TEST(BatchStream, PlainBatchesHideNothingAndSayWhoseTheSegmentsAre) {
  const Sequences sequences = random_sequences(20, 9, 4);
  const MemoryCorpus store = proteins(sequences);
  for (const char* layout : {"packed", "padded"}) {
    DataConfig config = config_of(layout, 8, 40);
    config.crop = "split";
    BatchStream stream(store, config, "plain");
    for (int i = 0; i < 10; ++i) {
      const Batch batch = stream.next();
      EXPECT_EQ(batch.inputs, batch.targets);
      const bool packed = !batch.cu_seqlens.empty();
      ASSERT_EQ(batch.sequences.size(),
                packed ? batch.cu_seqlens.size() - 1 : static_cast<size_t>(batch.rows));
      for (size_t segment = 0; segment < batch.sequences.size(); ++segment) {
        const size_t at = packed ? static_cast<size_t>(batch.cu_seqlens[segment])
                                 : segment * static_cast<size_t>(batch.width);
        const auto tokens = store.tokens(batch.sequences[segment]);
        const auto place = static_cast<size_t>(batch.positions[at]);
        const int64_t expected = place == 0 ? kBos : place <= tokens.size() ? tokens[place - 1] : kEos;
        EXPECT_EQ(batch.inputs[at], expected);
      }
    }
  }
}

TEST(BatchStream, WeightsOfSequencesMultiplyThoseOfTokens) {
  const Sequences sequences = random_sequences(12, 9, 4);
  const MemoryCorpus store = proteins(sequences);
  std::vector<float> weights;
  for (size_t i = 0; i < sequences.size(); ++i) weights.push_back(0.5F * static_cast<float>(i));
  for (const char* objective : {"causal", "masked"}) {
    BatchStream stream(store, config_of("packed", 16, 64), objective, weights),
        plain(store, config_of("packed", 16, 64), objective);
    for (int i = 0; i < 5; ++i) {
      const Batch batch = stream.next(), without = plain.next();
      for (size_t segment = 0; segment < batch.sequences.size(); ++segment) {
        for (auto at = batch.cu_seqlens[segment]; at < batch.cu_seqlens[segment + 1]; ++at) {
          const auto place = static_cast<size_t>(at);
          EXPECT_EQ(batch.weights[place],
                    without.weights[place] * weights[static_cast<size_t>(batch.sequences[segment])]);
        }
      }
    }
  }
  const std::vector<float> few = {1};
  EXPECT_THROW(BatchStream(store, config_of("packed", 16, 64), "causal", few), Error);
}

TEST(BatchStream, MasksDependOnSeedEpochAndSequenceOnly) {
  const MemoryCorpus store = proteins(random_sequences(40, 9, 60));
  DataConfig config = config_of("packed", 16, 64);
  const auto reference = masked_epoch(store, config, 4);
  EXPECT_EQ(reference.size(), 40u);
  EXPECT_EQ(masked_epoch(store, config_of("packed", 61, 200), 4), reference)
      << "length of pieces and batches";
  EXPECT_EQ(masked_epoch(store, config_of("padded", 16, 48), 4), reference) << "layout";
  EXPECT_EQ(masked_epoch(store, config_of("concatenated", 16, 48), 4), reference) << "layout";
  EXPECT_NE(masked_epoch(store, config, 5), reference);
  config.seed = 4;
  EXPECT_NE(masked_epoch(store, config, 4), reference);
}

}  // namespace
}  // namespace performer::data
