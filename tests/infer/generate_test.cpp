// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/generate.h"

#include <gmock/gmock.h>

#include <numeric>
#include <set>

#include "performer/base/error.h"
#include "tests/infer/tiny_model.h"

namespace performer {
namespace {

const data::Vocabulary kProtein = data::Vocabulary::protein();

std::vector<data::Token> prompt_of(const std::string& text) {
  return encode_prompt(kProtein, text);
}
std::string text_of(const GeneratedSequence& sequence) {
  return kProtein.decode(sequence.tokens);
}

std::vector<GeneratedSequence> collect(LanguageModel& model, const GenerateRequest& request,
                                       const data::Vocabulary& vocabulary = kProtein) {
  std::vector<GeneratedSequence> result;
  generate(model, vocabulary, request,
           [&](const GeneratedSequence& sequence) { result.push_back(sequence); });
  return result;
}

std::vector<std::string> residues(const std::vector<GeneratedSequence>& sequences) {
  std::vector<std::string> result;
  for (const auto& sequence : sequences) result.push_back(text_of(sequence));
  return result;
}

// Exact attention as a kind that does not stream: for each token the prefix is read again.
constexpr const char* kWithoutState = "exact-without-state";
const bool kRegistered = [] {
  nn::AttentionKind kind = nn::find_kind("exact");
  kind.name = kWithoutState;
  kind.capabilities.streams = false;
  nn::register_kind(std::move(kind));
  return true;
}();

class GenerateKinds : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Kinds, GenerateKinds,
                         testing::Values("favor-relu", "favor-softmax", "exact", "local", "sparse", "global",
                                         "lsh", "identity", kWithoutState));

TEST_P(GenerateKinds, StreamedLogLikelihoodIsThatOfTheFullForwardPass) {
  LanguageModel model = make_model({.kind = GetParam()});
  for (const std::string prompt : {"", "MKTAY"}) {
    const auto sequences =
        collect(model, {.count = 5, .prompt = prompt_of(prompt), .max_length = 40, .seed = 3});
    ASSERT_EQ(sequences.size(), 5u);
    std::set<std::string> different;
    for (const auto& sequence : sequences) {
      std::vector<int64_t> tokens(sequence.tokens.begin(), sequence.tokens.end());
      if (sequence.ended) tokens.push_back(kProtein.eos());
      const std::vector<double> expected = forward_log_probabilities(model, tokens);
      const auto prompt_size = static_cast<int64_t>(prompt.size());
      const double sum = std::accumulate(expected.begin() + prompt_size, expected.end(), 0.0);
      EXPECT_NEAR(sequence.log_likelihood, sum, 2e-4) << text_of(sequence);
      EXPECT_EQ(sequence.sampled, static_cast<int64_t>(tokens.size()) - prompt_size);
      EXPECT_TRUE(text_of(sequence).starts_with(prompt));
      different.insert(text_of(sequence));
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
    EXPECT_GE(sequences[i].tokens.size(), 1u);
    EXPECT_LE(sequences[i].tokens.size(), 12u);
    if (!sequences[i].ended) {
      EXPECT_EQ(sequences[i].tokens.size(), 12u);
    }
    EXPECT_EQ(text_of(sequences[i]).find_first_not_of("ACDEFGHIKLMNPQRSTVWYBOUXZ"), std::string::npos);
  }
  EXPECT_TRUE(collect(model, {.count = 0}).empty());
}

// The bias of the output layer is the only parameter of the vocabulary's size.
void add_to_output_bias(LanguageModel& model, int64_t token, double amount) {
  const at::NoGradGuard no_gradients;
  int found = 0;
  for (auto& parameter : model->parameters()) {
    if (parameter.dim() != 1 || parameter.size(0) != kProtein.size()) continue;
    parameter[token] += amount;
    ++found;
  }
  ASSERT_EQ(found, 1);
}

TEST(Generate, ASequenceHasAtLeastOneResidue) {
  LanguageModel model = make_model();
  add_to_output_bias(model, kProtein.eos(), 1000);
  for (const auto& sequence : collect(model, {.count = 3})) {
    EXPECT_EQ(sequence.tokens.size(), 1u);
    EXPECT_TRUE(sequence.ended);
    EXPECT_EQ(sequence.sampled, 2);
  }
}

TEST(Generate, MarkersAreNeverSampled) {
  LanguageModel model = make_model();
  for (const int64_t marker : {kProtein.bos(), kProtein.pad(), kProtein.mask()}) {
    add_to_output_bias(model, marker, 1000);
  }
  for (const auto& sequence : collect(model, {.count = 4, .max_length = 10})) {
    EXPECT_EQ(text_of(sequence).find_first_of("<>_*?"), std::string::npos);
  }
}

TEST(Generate, TemperatureZeroFollowsTheMostProbableResidues) {
  LanguageModel model = make_model();
  GenerateRequest request{.count = 2, .prompt = prompt_of("MK"), .max_length = 10};
  request.sampling.temperature = 0;
  const auto sequences = collect(model, request);
  EXPECT_EQ(sequences[0].tokens, sequences[1].tokens);
}

TEST(Generate, ImpossibleRequestsAreErrors) {
  LanguageModel causal = make_model(), masked = make_model({.objective = "masked"});
  LanguageModel learned = make_model({.positions = "learned", .max_length = 16});
  EXPECT_THROW(collect(masked, {}), UsageError);
  EXPECT_THROW(collect(learned, {.max_length = 17}), UsageError);
  EXPECT_EQ(collect(learned, {.max_length = 16}).size(), 1u);
  EXPECT_THROW(collect(causal, {.prompt = prompt_of("MKTAY"), .max_length = 5}), UsageError);
  EXPECT_THROW(collect(causal, {.max_length = 0}), UsageError);
  EXPECT_THROW(collect(causal, {.count = -1}), UsageError);
  EXPECT_THROW(collect(causal, {.batch_size = 0}), UsageError);
  EXPECT_THROW(collect(causal, {.prompt = {kProtein.bos()}}), UsageError);
  EXPECT_THROW(collect(causal, {}, data::Vocabulary::dna()), UsageError);
  try {
    prompt_of("MK1");
    FAIL();
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("prompt"), testing::HasSubstr("position 3"),
                                             testing::HasSubstr("'1'")));
  }
  EXPECT_THROW(prompt_of("MK>"), InputError) << "markers are none of a user's symbols";
}

TEST(Generate, AKindWithoutStateDrawsTheSameAsOneWithIt) {
  LanguageModel streams = make_model({.kind = "exact"}), rereads = make_model({.kind = kWithoutState});
  ASSERT_TRUE(streams->streams());
  ASSERT_FALSE(rereads->streams());
  const GenerateRequest request{.count = 4, .prompt = prompt_of("MK"), .max_length = 25, .seed = 2};
  EXPECT_EQ(residues(collect(streams, request)), residues(collect(rereads, request)));
}

TEST(Generate, AnyVocabularyIsSampled) {
  for (const data::Vocabulary& vocabulary : {data::Vocabulary::dna(), data::Vocabulary::bytes(),
                                             data::Vocabulary::of_symbols("moves", {"go", "stop"})}) {
    LanguageModel model = make_model({.vocabulary = vocabulary});
    const auto sequences = collect(model, {.count = 6, .max_length = 20, .seed = 1}, vocabulary);
    ASSERT_EQ(sequences.size(), 6u);
    std::set<data::Token> seen;
    for (const auto& sequence : sequences) {
      std::vector<int64_t> tokens(sequence.tokens.begin(), sequence.tokens.end());
      seen.insert(sequence.tokens.begin(), sequence.tokens.end());
      for (const int64_t token : tokens) EXPECT_TRUE(vocabulary.is_symbol(token)) << vocabulary.name();
      if (sequence.ended) tokens.push_back(vocabulary.eos());
      const auto expected = forward_log_probabilities(model, tokens, vocabulary);
      EXPECT_NEAR(sequence.log_likelihood, std::accumulate(expected.begin(), expected.end(), 0.0), 2e-4);
    }
    EXPECT_GT(seen.size(), 1u) << vocabulary.name();
  }
}

TEST(Generate, AnExactLengthHasNoEndMarker) {
  LanguageModel model = make_model();
  add_to_output_bias(model, kProtein.eos(), 1000);
  const auto sequences =
      collect(model, {.count = 3, .prompt = prompt_of("MK"), .max_length = 9, .exact_length = true});
  for (const auto& sequence : sequences) {
    EXPECT_EQ(sequence.tokens.size(), 9u);
    EXPECT_EQ(sequence.sampled, 7);
    EXPECT_FALSE(sequence.ended);
    EXPECT_LT(sequence.log_likelihood, -1000) << "under the model itself, which would have ended";
  }
}

}  // namespace
}  // namespace performer
