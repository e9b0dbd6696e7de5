// SPDX-License-Identifier: Apache-2.0
// SLiM against a pass over the whole batch: gradients, random numbers, memory, training runs.
#include "performer/train/slim.h"

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "performer/base/error.h"
#include "performer/models/folder.h"
#include "performer/train/autocast.h"
#include "performer/train/loss.h"
#include "tests/distributed/ranks.h"
#include "tests/models/make.h"
#include "tests/train/runs.h"

namespace performer::train {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::losses;

struct Example {
  SequenceBatch batch;
  at::Tensor targets, weights;
};

// Random targets and weights; nothing is asked at padding.
Example example_of(const SequenceBatch& batch) {
  Example example{batch, random_tokens(batch.tokens.sizes()), at::rand(batch.tokens.sizes())};
  example.weights.mul_(at::rand(batch.tokens.sizes()).gt(0.2));
  if (batch.key_mask) example.weights.mul_(*batch.key_mask);
  return example;
}

std::vector<at::Tensor> sequences(std::initializer_list<int64_t> lengths) {
  std::vector<at::Tensor> made;
  for (const int64_t length : lengths) made.push_back(random_tokens({length}));
  return made;
}

// Every layout of batches: one segment, many, with empty ones and ones of a single token, rows with and
// without padding, or with masked tokens before others.
std::map<std::string, Example> examples() {
  at::manual_seed(21);
  std::map<std::string, Example> all;
  all["one segment"] = example_of(packed(sequences({97})));
  all["packed"] = example_of(packed(sequences({5, 0, 1, 37, 0, 0, 40, 1, 2, 11, 0})));
  all["padded"] = example_of(padded(sequences({1, 12, 40, 7}), 27));
  all["rows"] = example_of(rows(random_tokens({3, 32})));
  SequenceBatch holes =
      rows(random_tokens({2, 30}));  // masked tokens before others, where they could be seen
  holes.key_mask = at::rand({2, 30}).gt(0.3);
  holes.key_mask->narrow(1, 0, 9)[0].fill_(false);
  all["holes"] = example_of(holes);
  return all;
}

struct Result {
  std::map<std::string, at::Tensor> gradients;
  BatchSums sums;
  at::Tensor generator;  // its state afterwards
};

constexpr double kDivisor = 50;
constexpr int64_t kChunks[] = {1, 13, 37, 64};

Result result_of(LanguageModel& model, const BatchSums& sums) {
  Result result{{}, sums, at::globalContext().defaultGenerator(at::kCPU).get_state()};
  for (const auto& item : model->named_parameters()) {
    result.gradients[item.key()] = item.value().grad().defined() ? item.value().grad().clone() : at::Tensor();
  }
  return result;
}

BatchSums add_whole(LanguageModel& model, const Example& example, bool bfloat16 = false) {
  const at::Tensor logits = [&] {
    const AutocastScope autocast(bfloat16);
    return model->forward(example.batch);
  }();
  const CrossEntropySums sums = cross_entropy_gradient(logits, example.targets, example.weights, kDivisor);
  logits.backward(logits.detach());
  return {sums.loss, sums.correct};
}

BatchSums add_slim(LanguageModel& model, const Example& example, int64_t chunk, bool bfloat16 = false) {
  return slim_backward(model, example.batch, example.targets, example.weights, {chunk, kDivisor, bfloat16});
}

template <class Add>
Result from_zero(LanguageModel& model, Add&& add) {
  at::manual_seed(77);  // the same dropout
  model->zero_grad();
  return result_of(model, add());
}

Result whole(LanguageModel& model, const Example& example) {
  return from_zero(model, [&] { return add_whole(model, example); });
}

Result slim(LanguageModel& model, const Example& example, int64_t chunk) {
  return from_zero(model, [&] { return add_slim(model, example, chunk); });
}

// Size of the difference over that of the gradient (Euclidean), and the parameter where it is largest.
std::pair<double, std::string> distance(const Result& a, const Result& b) {
  std::pair<double, std::string> worst{0, ""};
  for (const auto& [name, gradient] : a.gradients) {
    const at::Tensor& other = b.gradients.at(name);
    EXPECT_EQ(gradient.defined(), other.defined()) << name;
    if (!gradient.defined() || !other.defined()) continue;  // frozen
    const at::Tensor precise = gradient.to(at::kDouble);
    const double scale = std::max(precise.norm().item<double>(), 1e-30);
    const double found = (precise - other.to(at::kDouble)).norm().item<double>() / scale;
    if (!(found <= worst.first)) worst = {found, name};
  }
  return worst;
}

class Slim : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override { at::set_num_threads(1); }  // as in runs.h
};

TEST_P(Slim, GradientsAreExactInDouble) {
  LanguageModel model = make_model(GetParam());
  model->to(at::kDouble);
  for (const auto& [name, example] : examples()) {
    const Result expected = whole(model, example);
    for (const int64_t chunk : kChunks) {
      const Result got = slim(model, example, chunk);
      const auto [error, parameter] = distance(expected, got);
      EXPECT_LE(error, 1e-11) << name << ", chunks of " << chunk << ", " << parameter;
      EXPECT_NEAR(got.sums.loss, expected.sums.loss, 1e-12 * expected.sums.loss) << name;
      EXPECT_NEAR(got.sums.correct, expected.sums.correct, 1e-12) << name;
    }
  }
}

// What the ranks add to the gradients of their models, together. They are threads: nothing here draws.
Result slim_over(std::vector<LanguageModel>& models, distributed::Communicator& ranks, const Example& example,
                 int64_t chunk) {
  LanguageModel& model = models[static_cast<size_t>(ranks.rank())];
  model->zero_grad();
  const BatchSums own =
      slim_backward(model, example.batch, example.targets, example.weights, {chunk, kDivisor, false, &ranks});
  at::Tensor sums = at::tensor({own.loss, own.correct}, at::kDouble);
  ranks.sum(sums);
  Result result{{}, {sums[0].item<double>(), sums[1].item<double>()}, {}};
  for (const auto& item : model->named_parameters()) {
    if (!item.value().requires_grad()) continue;
    const at::Tensor& gradient = item.value().grad();
    const at::Tensor sum = gradient.defined() ? gradient.clone() : at::zeros_like(item.value());
    ranks.sum(sum);
    result.gradients[item.key()] = sum;
  }
  return result;
}

void expect_exact_over_ranks(const std::function<LanguageModel()>& make) {
  LanguageModel one = make();
  const std::map<std::string, Example> all = examples();
  std::map<std::string, Result> expected;
  for (const auto& [name, example] : all) expected[name] = whole(one, example);
  for (const int size : {2, 3}) {
    std::vector<LanguageModel> models;
    for (int rank = 0; rank < size; ++rank) models.push_back(make());
    testing::expect_no_errors(testing::run_ranks(size, [&](distributed::Communicator& ranks) {
      for (const auto& [name, example] : all) {
        for (const int64_t chunk : {5, 13, 37, 64}) {
          const Result got = slim_over(models, ranks, example, chunk);
          Result whole;  // without what is frozen
          for (const auto& [parameter, gradient] : got.gradients)
            whole.gradients[parameter] = expected.at(name).gradients.at(parameter);
          const auto [error, parameter] = distance(whole, got);
          EXPECT_LE(error, 1e-11) << size << " ranks, " << name << ", chunks of " << chunk << ", "
                                  << parameter;
          const BatchSums& sums = expected.at(name).sums;
          EXPECT_NEAR(got.sums.loss, sums.loss, 1e-12 * sums.loss) << name;
          EXPECT_NEAR(got.sums.correct, sums.correct, 1e-12) << name;
        }
      }
    }));
  }
}

TEST_P(Slim, OverRanksGradientsAreExactInDouble) {
  expect_exact_over_ranks([] {
    LanguageModel model = make_model(GetParam());
    model->to(at::kDouble);
    return model;
  });
}

// Nobody waits for gradients that no layer wants.
TEST(SlimFrozen, GradientsOfTheOtherLayersAreExact) {
  const auto make = [] {
    LanguageModel model = make_model({"favor-softmax"});
    model->to(at::kDouble);
    for (const auto& item : model->named_parameters()) {
      const bool first = item.key().starts_with("embedding") || item.key().starts_with("blocks_0");
      item.value().requires_grad_(!first);
    }
    return model;
  };
  expect_exact_over_ranks(make);
  LanguageModel model = make();
  for (const auto& [name, example] : examples()) {
    const Result expected = whole(model, example);
    for (const int64_t chunk : kChunks)
      EXPECT_LE(distance(expected, slim(model, example, chunk)).first, 1e-11) << name;
  }
}

// In float32 neither way is exact, and their roundings have nothing to do with each other. SLiM may miss the
// gradient in double by four times what the pass over the whole batch does, plus what a single token with a
// small denominator makes of a rounding. Subtraction of states would cost more at this length.
TEST_P(Slim, LosesNothingInFloat) {
  LanguageModel model = make_model(GetParam()), precise = make_model(GetParam());
  precise->to(at::kDouble);
  for (const auto& [name, example] : examples()) {
    const Result exact = whole(precise, example);
    const double allowed = 4 * distance(exact, whole(model, example)).first + 1e-5;
    for (const int64_t chunk : kChunks) {
      const auto [error, parameter] = distance(exact, slim(model, example, chunk));
      EXPECT_LE(error, allowed) << name << ", chunks of " << chunk << ", " << parameter;
    }
  }
}

TEST_P(Slim, DropsTheSameElements) {
  LanguageModel model = make_model(GetParam());
  model->train();
  for (const auto& [name, example] : examples()) {
    const Result expected = whole(model, example);
    for (const int64_t chunk : kChunks) {
      const Result got = slim(model, example, chunk);
      const auto [error, parameter] = distance(expected, got);
      EXPECT_LE(error, 1e-4) << name << ", chunks of " << chunk << ", " << parameter;
      EXPECT_TRUE(at::equal(got.generator, expected.generator)) << name << ": it draws other numbers";
    }
    model->eval();
    EXPECT_GT(distance(expected, whole(model, example)).first, 1e-2)
        << "dropout is off: the test shows nothing";
    model->train();
  }
}

TEST_P(Slim, OneChunkIsTheWholeBatchBitForBit) {
  LanguageModel model = make_model(GetParam());
  model->train();
  for (const auto& [name, example] : examples()) {
    const Result expected = whole(model, example);
    const Result got = slim(model, example, int64_t{1} << 40);
    EXPECT_EQ(got.sums.loss, expected.sums.loss) << name;
    EXPECT_EQ(got.sums.correct, expected.sums.correct) << name;
    for (const auto& [parameter, gradient] : expected.gradients) {
      EXPECT_TRUE(at::equal(got.gradients.at(parameter), gradient)) << name << " " << parameter;
    }
  }
}

TEST_P(Slim, AddsToTheGradientsThatAreThere) {
  LanguageModel model = make_model(GetParam());
  model->to(at::kDouble);
  const auto all = examples();
  const Result expected = from_zero(model, [&] {
    add_whole(model, all.at("packed"));
    add_whole(model, all.at("padded"));
    return add_whole(model, all.at("holes"));
  });
  const Result got = from_zero(model, [&] {
    add_slim(model, all.at("packed"), 16);
    add_slim(model, all.at("padded"), 9);
    return add_slim(model, all.at("holes"), 4);
  });
  EXPECT_LE(distance(expected, got).first, 1e-11);
}

TEST_P(Slim, Bfloat16StaysNearTheWholeBatch) {
  LanguageModel model = make_model(GetParam()), precise = make_model(GetParam());
  precise->to(at::kDouble);
  const Example example = examples().at("packed");
  const Result exact = whole(precise, example);
  const double allowed =
      2 * distance(exact, from_zero(model, [&] { return add_whole(model, example, true); })).first;
  ASSERT_GT(allowed, 1e-4) << "autocast must do something";
  for (const int64_t chunk : {7, 16, 64}) {
    const Result got = from_zero(model, [&] { return add_slim(model, example, chunk, true); });
    EXPECT_LE(distance(exact, got).first, allowed) << "chunks of " << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(All, Slim,
                         ::testing::Values(Variant{"favor-relu"}, Variant{"favor-softmax"},
                                           Variant{"favor-relu", "learned", "post"},
                                           Variant{"favor-softmax", "sinusoidal", "pre", true},
                                           Variant{"favor-softmax", "none", "post", true}),
                         [](const auto& info) { return variant_name(info.param); });

TEST(SlimBatches, WithoutTokensAddNothing) {
  LanguageModel model = make_model({"favor-relu"});
  const Example empty = example_of(rows(at::empty({2, 0}, at::kLong)));
  const BatchSums sums = add_slim(model, empty, 4);
  EXPECT_EQ(sums.loss, 0);
  EXPECT_THROW(add_slim(model, empty, 0), UsageError);
}

// Bytes that LibTorch has allocated on this thread, and the most there were.
class MemoryMeter : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
    now_ += size;
    peak_ = std::max(peak_, now_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  double peak_mib() const { return static_cast<double>(peak_) / (1 << 20); }

 private:
  int64_t now_ = 0, peak_ = 0;
};

// The gradients are there already: what is measured are activations and states alone.
template <class Add>
double peak_mib(Add&& add) {
  const auto meter = std::make_shared<MemoryMeter>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, meter);
  add();
  return meter->peak_mib();
}

TEST(SlimMemory, FallsWithTheChunk) {
  at::set_num_threads(1);
  ModelConfig config;
  config.layers = 4;
  config.width = 64;
  config.heads = 2;
  config.ffn = 256;
  AttentionConfig attention;
  attention.kind = "favor-softmax";
  attention.set("features", 32);
  at::manual_seed(1);
  LanguageModel model(config, attention, kVocabulary);
  model->train();
  constexpr double kMiB = 1 << 20;
  const int64_t tokens = 2048;
  const auto state = static_cast<double>(config.layers * 32 * (config.width + 2 * config.heads)) * 4 / kMiB;
  // Each layer keeps the weights of its queries, keys and values joined, whatever the chunk.
  const double joined = static_cast<double>(config.layers * 3 * config.width * config.width) * 4 / kMiB;
  const auto check = [&](const SequenceBatch& batch, const std::string& what, const auto& bounds) {
    const Example example = example_of(batch);
    add_whole(model, example);
    const double whole = peak_mib([&] { add_whole(model, example); });
    EXPECT_GT(whole, 20) << "the meter must see the activations";
    for (const int64_t chunk : {512, 128, 32}) {
      const double peak = peak_mib([&] { add_slim(model, example, chunk); });
      const double activations = whole * static_cast<double>(chunk) / tokens,
                   states = state * static_cast<double>(bounds(chunk) + 3);  // three are at work
      EXPECT_LT(peak, 1.1 * (activations + states + joined)) << what << ", chunks of " << chunk;
    }
  };
  check(rows(random_tokens({1, tokens})), "one sequence", [&](int64_t chunk) { return tokens / chunk; });
  std::vector<at::Tensor> proteins(20, random_tokens({tokens / 20}));
  proteins.push_back(random_tokens({tokens % 20}));
  check(packed(proteins), "packed", [&](int64_t chunk) { return tokens / 20 / chunk + 1; });
}

class SlimRuns : public testing::RunTest {
 protected:
  LanguageModelRequest slim(const std::string& output, int64_t chunk) {
    LanguageModelRequest made = request(output);
    made.train.slim_chunk = chunk;
    return made;
  }
};

TEST_F(SlimRuns, LearnTheSame) {
  for (const char* kind : {"favor-softmax", "favor-relu"}) {
    for (const char* layout : {"packed", "padded", "concatenated"}) {
      const std::string name = std::string(kind) + layout;
      LanguageModelRequest plain = request(name);
      plain.attention.kind = kind;
      plain.data.layout = layout;
      run(plain);
      const auto expected = losses(plain.output);
      ASSERT_EQ(expected.size(), 10u);
      for (const int64_t chunk : {7, 20}) {
        LanguageModelRequest lean = plain;
        lean.output = folder_ / fmt::format("{}{}", name, chunk);
        lean.train.slim_chunk = chunk;
        run(lean);
        const auto got = losses(lean.output);
        ASSERT_EQ(got.size(), expected.size());
        EXPECT_NE(got, expected) << "the option must do something";
        for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-4) << name << " " << i;
        for (const char* key : {"accuracy", "tokens"}) {
          EXPECT_EQ(testing::records(lean.output)[0][key], testing::records(plain.output)[0][key]) << key;
        }
      }
    }
  }
}

TEST_F(SlimRuns, AreTheSameWithChunksAsLargeAsBatches) {
  const LanguageModelRequest plain = request("plain"), lean = slim("lean", 128);
  run(plain);
  run(lean);
  EXPECT_EQ(losses(lean.output), losses(plain.output));
}

TEST_F(SlimRuns, Bfloat16StaysNearFloat32) {
  LanguageModelRequest full = slim("full", 24), half = slim("half", 24);
  half.train.precision = "bfloat16";
  run(full);
  run(half);
  const auto a = losses(full.output), b = losses(half.output);
  ASSERT_EQ(a.size(), b.size());
  EXPECT_NE(a, b);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 0.05) << "step " << i + 1;
}

TEST_F(SlimRuns, ResumeWithoutATrace) {
  for (const char* layout : {"packed", "padded"}) {
    LanguageModelRequest with = slim(layout, 20);
    with.data.layout = layout;
    with.train.steps = 3;
    run(with);
    with.resume = true;
    with.train.steps = 9;
    run(with);
    LanguageModelRequest never_stopped = with;
    never_stopped.output += "-whole";
    never_stopped.resume = false;
    run(never_stopped);
    EXPECT_EQ(losses(with.output), losses(never_stopped.output)) << layout;
    const auto expected = model_state(load_model(never_stopped.output).model),
               got = model_state(load_model(with.output).model);
    for (const auto& [name, tensor] : expected) EXPECT_TRUE(at::equal(tensor, got.at(name))) << name;

    with.train.slim_chunk = 0;  // changes rounding
    EXPECT_THAT(failure(with), AllOf(HasSubstr("train.slim_chunk is 0"), HasSubstr("started with 20")));
  }
}

TEST_F(SlimRuns, RefuseWhatHasNoState) {
  const auto refusal = [&](const auto& change) {
    LanguageModelRequest with = slim("run", 16);
    change(with);
    return failure(with);
  };
  EXPECT_EQ(refusal([](auto& r) { r.train.steps = 1; }), "");
  EXPECT_THAT(refusal([](auto& r) { r.model.objective = "masked"; }),
              AllOf(HasSubstr("train.slim_chunk = 16"), HasSubstr("model.objective = causal"),
                    HasSubstr("train.checkpoint_activations = true")));
  for (const char* kind : {"exact", "identity"}) {
    EXPECT_THAT(refusal([&](auto& r) {
                  r.attention.kind = kind;
                  r.attention.options.clear();
                }),
                AllOf(HasSubstr("train.slim_chunk = 16"), HasSubstr("favor-relu"), HasSubstr(kind)));
  }
  EXPECT_THAT(refusal([](auto& r) { r.train.checkpoint_activations = true; }),
              AllOf(HasSubstr("train.checkpoint_activations"), HasSubstr("lower train.slim_chunk")));
  EXPECT_THAT(refusal([](auto& r) { r.train.slim_chunk = -1; }),
              HasSubstr("train.slim_chunk must be 0 or more, but is -1"));
}

// A batch that is refused without SLiM is not with it.
TEST_F(SlimRuns, CountAsTheMemoryOfAChunk) {
  LanguageModelRequest with = request("run");
  with.train_files = {folder_ / "absent.fasta"};  // found out after the memory
  with.data.batch_tokens = int64_t{1} << 40;
  EXPECT_THAT(failure(with), AllOf(HasSubstr("out of memory"), HasSubstr("set train.slim_chunk")));
  with.train.slim_chunk = int64_t{1} << 38;
  EXPECT_THAT(failure(with), AllOf(HasSubstr("out of memory"), HasSubstr("lower train.slim_chunk")));
  with.train.slim_chunk = 64;
  EXPECT_THAT(failure(with), AllOf(HasSubstr("absent.fasta"), ::testing::Not(HasSubstr("out of memory"))));
}

}  // namespace
}  // namespace performer::train
