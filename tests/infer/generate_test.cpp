// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/generate.h"

#include <gmock/gmock.h>

#include <numeric>
#include <set>

#include "performer/base/error.h"
#include "tests/infer/tiny_model.h"

namespace performer {
namespace {

std::vector<GeneratedSequence> collect(LanguageModel& model, const GenerateRequest& request) {
  std::vector<GeneratedSequence> result;
  generate(model, request, [&](const GeneratedSequence& sequence) { result.push_back(sequence); });
  return result;
}

std::vector<std::string> residues(const std::vector<GeneratedSequence>& sequences) {
  std::vector<std::string> result;
  for (const auto& sequence : sequences) result.push_back(sequence.residues);
  return result;
}

class GenerateKinds : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(
    Kinds, GenerateKinds,
    testing::Values("favor-relu", "favor-softmax", "exact", "identity", "jax-relu",
                    "fast-transformers-elu"));  // presets have no state: the prefix is read again

TEST_P(GenerateKinds, StreamedLogLikelihoodIsThatOfTheFullForwardPass) {
  LanguageModel model = make_model({.kind = GetParam()});
  for (const std::string prompt : {"", "MKTAY"}) {
    const auto sequences = collect(model, {.count = 5, .prompt = prompt, .max_length = 40, .seed = 3});
    ASSERT_EQ(sequences.size(), 5u);
    std::set<std::string> different;
    for (const auto& sequence : sequences) {
      std::vector<int64_t> tokens = data::encode(sequence.residues);
      if (sequence.ended) tokens.push_back(data::kEos);
      const std::vector<double> expected = forward_log_probabilities(model, tokens);
      const auto prompt_size = static_cast<int64_t>(prompt.size());
      const double sum = std::accumulate(expected.begin() + prompt_size, expected.end(), 0.0);
      EXPECT_NEAR(sequence.log_likelihood, sum, 2e-4) << sequence.residues;
      EXPECT_EQ(sequence.sampled, static_cast<int64_t>(tokens.size()) - prompt_size);
      EXPECT_TRUE(sequence.residues.starts_with(prompt));
      different.insert(sequence.residues);
    }
    EXPECT_GT(different.size(), 3u);
  }
}

TEST_P(GenerateKinds, BatchSizeAndCountChangeNothing) {
  LanguageModel model = make_model({.kind = GetParam()});
  const auto all = residues(collect(model, {.count = 7, .max_length = 30, .seed = 11}));
  for (const int64_t batch_size : {1, 3}) {
    EXPECT_EQ(residues(collect(model, {.count = 7, .max_length = 30, .seed = 11, .batch_size = batch_size})),
              all);
  }
  const auto fewer = residues(collect(model, {.count = 2, .max_length = 30, .seed = 11}));
  EXPECT_EQ(fewer, std::vector<std::string>(all.begin(), all.begin() + 2));
  EXPECT_NE(residues(collect(model, {.count = 7, .max_length = 30, .seed = 12})), all);
}

TEST(Generate, SinkIsCalledInOrderAndLengthsAreKept) {
  LanguageModel model = make_model();
  const auto sequences = collect(model, {.count = 9, .max_length = 12, .batch_size = 4});
  ASSERT_EQ(sequences.size(), 9u);
  for (size_t i = 0; i < sequences.size(); ++i) {
    EXPECT_EQ(sequences[i].index, static_cast<int64_t>(i));
    EXPECT_GE(sequences[i].residues.size(), 1u);
    EXPECT_LE(sequences[i].residues.size(), 12u);
    if (!sequences[i].ended) {
      EXPECT_EQ(sequences[i].residues.size(), 12u);
    }
    EXPECT_EQ(sequences[i].residues.find_first_not_of("ACDEFGHIKLMNPQRSTVWYBOUXZ"), std::string::npos);
  }
  EXPECT_TRUE(collect(model, {.count = 0}).empty());
}

// The bias of the output layer is the only parameter of the vocabulary's size.
void add_to_output_bias(LanguageModel& model, int64_t token, double amount) {
  const at::NoGradGuard no_gradients;
  int found = 0;
  for (auto& parameter : model->parameters()) {
    if (parameter.dim() != 1 || parameter.size(0) != data::kVocabularySize) continue;
    parameter[token] += amount;
    ++found;
  }
  ASSERT_EQ(found, 1);
}

TEST(Generate, ASequenceHasAtLeastOneResidue) {
  LanguageModel model = make_model();
  add_to_output_bias(model, data::kEos, 1000);
  for (const auto& sequence : collect(model, {.count = 3})) {
    EXPECT_EQ(sequence.residues.size(), 1u);
    EXPECT_TRUE(sequence.ended);
    EXPECT_EQ(sequence.sampled, 2);
  }
}

TEST(Generate, MarkersAreNeverSampled) {
  LanguageModel model = make_model();
  for (const int64_t marker : {data::kBos, data::kPad, data::kMask}) add_to_output_bias(model, marker, 1000);
  for (const auto& sequence : collect(model, {.count = 4, .max_length = 10})) {
    EXPECT_EQ(sequence.residues.find_first_of("<>_*?"), std::string::npos);
  }
}

TEST(Generate, TemperatureZeroFollowsTheMostProbableResidues) {
  LanguageModel model = make_model();
  GenerateRequest request{.count = 2, .prompt = "MK", .max_length = 10};
  request.sampling.temperature = 0;
  const auto sequences = collect(model, request);
  EXPECT_EQ(sequences[0].residues, sequences[1].residues);
}

TEST(Generate, ImpossibleRequestsAreErrors) {
  LanguageModel causal = make_model(), masked = make_model({.objective = "masked"});
  LanguageModel learned = make_model({.positions = "learned", .max_length = 16});
  EXPECT_THROW(collect(masked, {}), UsageError);
  EXPECT_THROW(collect(learned, {.max_length = 17}), UsageError);
  EXPECT_EQ(collect(learned, {.max_length = 16}).size(), 1u);
  EXPECT_THROW(collect(causal, {.prompt = "MKTAY", .max_length = 5}), UsageError);
  EXPECT_THROW(collect(causal, {.max_length = 0}), UsageError);
  EXPECT_THROW(collect(causal, {.count = -1}), UsageError);
  EXPECT_THROW(collect(causal, {.batch_size = 0}), UsageError);
  try {
    collect(causal, {.prompt = "MK1"});
    FAIL();
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("position 3: '1'"));
  }
}

}  // namespace
}  // namespace performer
