// SPDX-License-Identifier: Apache-2.0
// The state of streamed sequences belongs to them, not to the model: streams may be interleaved, across
// redraws too, and threads may share a model.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <thread>
#include <type_traits>

#include "performer/infer/generate.h"
#include "performer/infer/score.h"
#include "tests/infer/tiny_model.h"

namespace performer {
namespace {

// What these tests and users of several threads rely on: a step changes the state that is given, and nothing
// of the model.
static_assert(std::is_invocable_r_v<at::Tensor, decltype(&LanguageModelImpl::step), const LanguageModelImpl&,
                                    const at::Tensor&, DecodeState&>);

constexpr int64_t kSteps = 24;

// The tokens of a stream, the same whenever it is asked for.
std::vector<int64_t> tokens_of(int64_t stream) {
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < kSteps; ++i) tokens.push_back((7 * i + 11 * stream + i * i) % 25);
  return tokens;
}

// A stream of one sequence, fed step by step.
class Stream {
 public:
  Stream(const LanguageModel& model, int64_t number)
      : model_(model), tokens_(tokens_of(number)), state_(model->begin(1)) {}

  void step() {
    const at::Tensor token = at::tensor({tokens_[logits_.size()]}, at::kLong);
    const LanguageModelImpl& model = *model_;
    logits_.push_back(model.step(token, state_));
  }
  Stream& run() {
    while (static_cast<int64_t>(logits_.size()) < kSteps) step();
    return *this;
  }
  const std::vector<at::Tensor>& logits() const { return logits_; }

 private:
  LanguageModel model_;
  std::vector<int64_t> tokens_;
  DecodeState state_;
  std::vector<at::Tensor> logits_;
};

void expect_same(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& expected,
                 const std::string& what) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_TRUE(at::equal(found[i], expected[i])) << what << ", token " << i + 1;
  }
}

// Runs a function for each of `count` numbers, all at the same time.
void in_threads(int count, const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
}

class Streams : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Kinds, Streams,
                         testing::Values("favor-relu", "favor-softmax", "favor-oprf", "exact", "local",
                                         "sparse", "global", "lsh", "identity"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& letter : name) letter = letter == '-' ? '_' : letter;
                           return name;
                         });

TEST_P(Streams, InterleavedAcrossARedrawGiveWhatEachGivesAlone) {
  LanguageModel model = make_model({.kind = GetParam(), .projection = "orthogonal"});
  const bool redraws = nn::find_kind(GetParam()).capabilities.redraws;
  // Alone: the first with the projections of its beginning, the second with those after the redraw.
  const auto first_alone = Stream(model, 1).run().logits();
  model->redraw(1);
  const auto second_alone = Stream(model, 2).run().logits();
  EXPECT_NE(at::equal(Stream(model, 1).run().logits().back(), first_alone.back()), redraws)
      << "the redraw must matter, or this test shows nothing";

  model->redraw(0);
  Stream first(model, 1);
  for (int64_t i = 0; i < kSteps / 3; ++i) first.step();
  model->redraw(1);
  Stream second(model, 2);
  for (int64_t i = 0; i < kSteps / 3; ++i) {
    second.step();
    first.step();
  }
  model->redraw(2);
  second.run();
  first.run();
  expect_same(first.logits(), first_alone, "the stream begun before the redraw");
  expect_same(second.logits(), second_alone, "the stream begun after it");
}

TEST_P(Streams, ThreadsStepTheirOwnStreamsOfOneModel) {
  LanguageModel model = make_model({.kind = GetParam(), .projection = "orthogonal"});
  constexpr int kThreads = 4;
  std::vector<std::vector<at::Tensor>> alone, found(kThreads);
  for (int i = 0; i < kThreads; ++i) alone.push_back(Stream(model, i).run().logits());
  in_threads(kThreads, [&](int i) { found[i] = Stream(model, i).run().logits(); });
  for (int i = 0; i < kThreads; ++i) expect_same(found[i], alone[i], "thread " + std::to_string(i));
}

TEST_P(Streams, ThreadsScoreWithOneModel) {
  LanguageModel model = make_model({.kind = GetParam(), .projection = "orthogonal"});
  const data::Vocabulary vocabulary = data::Vocabulary::protein();
  const auto scores = [&](int number) {
    std::vector<data::Token> tokens;
    for (const int64_t token : tokens_of(number)) tokens.push_back(static_cast<data::Token>(token));
    const std::string fasta =
        ">a\n" + vocabulary.decode(tokens) + "\n>b\n" + vocabulary.decode(tokens) + "\n";
    const auto reader = data::open_reader(data::memory_bytes(fasta), "memory", {}, vocabulary);
    std::vector<float> values;
    score(model, *reader, "memory", {30}, [&](const SequenceScore& score) {
      values.insert(values.end(), score.log_probabilities.begin(), score.log_probabilities.end());
    });
    return values;
  };
  constexpr int kThreads = 4;
  std::vector<std::vector<float>> alone, found(kThreads);
  for (int i = 0; i < kThreads; ++i) alone.push_back(scores(i));
  in_threads(kThreads, [&](int i) { found[i] = scores(i); });
  for (int i = 0; i < kThreads; ++i) {
    EXPECT_EQ(found[i].size(), static_cast<size_t>(2 * kSteps));
    EXPECT_EQ(found[i], alone[i]) << "thread " << i;
  }
}

TEST_P(Streams, ThreadsGenerateWithOneModel) {
  LanguageModel model = make_model({.kind = GetParam(), .projection = "orthogonal"});
  const auto sample = [&](int number) {
    std::vector<std::vector<data::Token>> sequences;
    generate(model, data::Vocabulary::protein(),
             {.count = 3, .max_length = 15, .seed = static_cast<uint64_t>(number)},
             [&](const GeneratedSequence& sequence) { sequences.push_back(sequence.tokens); });
    return sequences;
  };
  constexpr int kThreads = 3;
  std::vector<std::vector<std::vector<data::Token>>> alone, found(kThreads);
  for (int i = 0; i < kThreads; ++i) alone.push_back(sample(i));
  in_threads(kThreads, [&](int i) { found[i] = sample(i); });
  EXPECT_EQ(found, alone);
}

}  // namespace
}  // namespace performer
