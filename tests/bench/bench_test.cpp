// SPDX-License-Identifier: Apache-2.0
// Rows are right before they have times; what they say is consistent.
#include "performer/bench/bench.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "performer/base/error.h"
#include "performer/bench/cases.h"
#include "performer/bench/memory.h"
#include "performer/bench/report.h"
#include "performer/ops/executor.h"
#include "tests/errors.h"

namespace performer::bench {
namespace {

using ::testing::HasSubstr;

Request small_request(const std::string& op) {
  at::set_num_threads(1);
  Request request;
  request.op = op;
  request.heads = 3;
  request.head_size = 8;
  request.features = 16;
  request.timing = {.repetitions = 2, .seconds = 1e-3};
  if (op == "favor") request.lengths = {16, 40};
  if (op == "decode") request.batch = 3;
  if (op == "train") request.lengths = {24}, request.preset = "tiny", request.batch = 2;
  return request;
}

TEST(BenchFavor, EachRowIsVerifiedAndTimed) {
  Request request = small_request("favor");
  request.kinds = {"favor-softmax", "favor-relu", "favor-trigonometric", "exact", "identity"};
  request.dtypes = {"float32", "bfloat16", "float16"};
  request.targets = {"all"};
  const Report report = run(request);
  const size_t targets = kernels::available_favor_kernels().size() - 1;
  EXPECT_EQ(report.rows.size(), 2 * 2 * 2 * 3 * (3 * targets + 2));
  std::set<std::string> dtypes, directions, names;
  for (const Row& row : report.rows) {
    EXPECT_TRUE(row.timed()) << row.kind << " " << row.target << " " << row.dtype << " " << row.failure;
    EXPECT_GT(row.ns, 0);
    EXPECT_GE(row.ns_median, row.ns);
    EXPECT_EQ(row.verified_tokens, row.length);
    dtypes.insert(row.dtype), directions.insert(row.direction), names.insert(row.target);
    if (row.kind.rfind("favor-", 0) == 0) {
      EXPECT_GT(row.error, 0) << "the reference in double differs from any kernel by rounding";
      EXPECT_GT(row.share_of_limit(), 0);
      EXPECT_LT(row.share_of_limit(), 1);
    }
  }
  EXPECT_EQ(dtypes.size(), 3u);
  EXPECT_EQ(directions.size(), 2u);
  EXPECT_EQ(names.size(), targets + 2);
}

TEST(BenchFavor, LongRowsAreComparedAtTheirEndToo) {
  Request request = small_request("favor");
  request.lengths = {700};
  request.kinds = {"favor-softmax"};
  for (const Row& row : run(request).rows) {
    EXPECT_TRUE(row.timed()) << row.failure;
    EXPECT_LT(row.verified_tokens, row.length);
  }
}

TEST(BenchFavor, TheSameWorkTakesTwiceTheFeatures) {
  Request request = small_request("favor");
  request.kinds = {"favor-softmax"};
  request.directions = {"bidirectional"};
  request.passes = {"forward"};
  request.dtypes = {"float32"};
  const Row one = run(request).rows[0];
  request.features = 32;
  const Row two = run(request).rows[0];
  EXPECT_EQ(one.work, 8 * 16 * 8);
  EXPECT_EQ(two.work, 2 * one.work);
  // Half as many arguments as cosines and sines.
  request.kinds = {"favor-trigonometric"};
  const Row waves = run(request).rows[0];
  EXPECT_EQ(waves.features, 32);
  EXPECT_EQ(waves.work, 4 * 16 * 8 + 4 * 32 * 8);
}

// The transforms of a projection in factors: 3 log2 d additions and 4 products for each of its rows.
TEST(BenchFavor, AKindMayNameItsProjection) {
  Request request = small_request("favor");
  request.kinds = {"favor-softmax", "favor-softmax:hadamard", "favor-softmax:iid:sqrt-d"};
  request.head_size = 32, request.features = 64;
  const Report report = run(request);
  std::set<std::string> kinds;
  for (const Row& row : report.rows) {
    EXPECT_TRUE(row.timed()) << row.kind << " " << row.failure;
    kinds.insert(row.kind);
    if (row.pass != "forward" || row.direction != "bidirectional") continue;
    EXPECT_EQ(row.work, (row.kind == "favor-softmax:hadamard" ? 2 * 64 * 19 : 4 * 32 * 64) + 4 * 64 * 32);
  }
  EXPECT_EQ(kinds.size(), 3u);
  for (const char* wrong : {"favor-softmax:haar", "favor-softmax:iid:sqrt-d:1", "exact:hadamard"}) {
    request.kinds = {wrong};
    EXPECT_THROW(run(request), UsageError) << wrong;
  }
}

// A table that is right but for one number of the output: of the fourth token of the first head, or of the
// last token of the last head.
template <bool kLast>
const kernels::FavorKernels& wrong_kernels() {
  static const kernels::FavorKernels wrong = [] {
    kernels::FavorKernels table = kernels::favor_kernels();
    table.name = "wrong";
    table.forward = [](const kernels::AttentionForward& p, Executor& executor, void* workspace) {
      kernels::favor_kernels().forward(p, executor, workspace);
      if (p.out.type != kernels::DataType::float32 || (kLast && p.shape.query_tokens <= 500)) return;
      const int64_t token = kLast ? p.shape.query_tokens - 1 : 3, head = kLast ? p.shape.heads - 1 : 0;
      static_cast<float*>(p.out.data)[token * p.out.token_stride + head * p.out.head_stride] += 0.5F;
    };
    return table;
  }();
  return wrong;
}

// The rows of the wrong table that a verification finds fault with.
std::vector<Row> refused_rows(Request request, const kernels::FavorKernels& wrong) {
  request.kinds = {"favor-softmax"};
  request.dtypes = {"float32", "bfloat16"};
  request.directions = {"causal", "bidirectional"};
  request.batch = 1;
  Machine machine;
  machine.targets = {&wrong, &kernels::favor_kernels()};
  std::vector<Row> refused;
  for (Case& each : favor_cases(request, machine)) {
    each.verify(each.row);
    if (!each.row.failure.empty()) refused.push_back(each.row);
  }
  return refused;
}

TEST(BenchFavor, ARowThatIsWrongHasAFailure) {
  const std::vector<Row> refused = refused_rows(small_request("favor"), wrong_kernels<false>());
  EXPECT_EQ(refused.size(), 2u * 2 * 2) << "of two lengths, directions and passes";
  for (const Row& row : refused) {
    EXPECT_EQ(row.target, "wrong");
    EXPECT_EQ(row.dtype, "float32");
    EXPECT_THAT(row.failure, HasSubstr("outputs differ from the definition"));
    EXPECT_FALSE(row.timed());
  }
}

TEST(BenchFavor, AWrongEndOfALongRowIsFound) {
  Request request = small_request("favor");
  request.lengths = {40, 700};
  const std::vector<Row> refused = refused_rows(request, wrong_kernels<true>());
  EXPECT_EQ(refused.size(), 2u * 2);
  for (const Row& row : refused) {
    EXPECT_EQ(row.length, 700);
    EXPECT_THAT(row.failure, HasSubstr("outputs of the last token differ"));
  }
}

TEST(BenchFavor, AFailureIsInTheResultsInsteadOfATime) {
  Report report;
  report.rows.resize(1);
  Row& row = report.rows[0];
  row.op = "favor", row.kind = "favor-softmax", row.direction = "causal", row.pass = "forward",
  row.length = 16;
  row.failure = "outputs differ";
  EXPECT_FALSE(report.all_right());
  const auto json = to_json(report);
  EXPECT_TRUE(json[0]["ns"].is_null());
  EXPECT_TRUE(json[0]["share_of_limit"].is_null());
  EXPECT_EQ(json[0]["failure"], "outputs differ");
  EXPECT_THAT(to_text(report), HasSubstr("Not timed: favor-softmax"));
}

TEST(BenchDecode, StatesAreVerified) {
  const Report report = run(small_request("decode"));
  ASSERT_EQ(report.rows.size(), 2u);
  for (const Row& row : report.rows) {
    EXPECT_TRUE(row.timed()) << row.failure;
    EXPECT_EQ(row.batch, 3);
    EXPECT_GT(row.limit, 1e8);
  }
  EXPECT_THAT(to_text(report), HasSubstr("GB/s"));
  EXPECT_EQ(to_svg(report), "");
}

TEST(BenchTrain, AllKindsAgreeWithTheModelInDouble) {
  const Report report = run(small_request("train"));
  ASSERT_EQ(report.rows.size(), 5u * 2 * 2);
  std::map<std::string, double> work;
  for (const Row& row : report.rows) {
    EXPECT_TRUE(row.timed()) << row.kind << " " << row.dtype << " " << row.failure;
    EXPECT_GT(row.extra_bytes, 0);
    if (row.pass == "forward") work[row.kind] = row.work;
  }
  // Two layers of width 64: queries and keys are two matrices of 64 x 64 each, divided by two heads.
  EXPECT_EQ(work["identity+qk"] - work["identity"], 2.0 * 2 * 2 * 64 * 64 / 2);
  EXPECT_EQ(work["identity+qk"], work["favor-softmax"]);
  EXPECT_THAT(to_text(report), HasSubstr("of identity+qk"));
}

TEST(BenchTrain, MakesKindsOfAFixedLengthForTheRow) {
  Request request = small_request("train");
  request.kinds = {"linformer"}, request.directions = {"bidirectional"}, request.lengths = {24, 1500};
  for (const Row& row : run(request).rows) EXPECT_TRUE(row.timed()) << row.length << " " << row.failure;
}

TEST(BenchRequest, NamesWhatIsWrong) {
  const auto failure = [](auto&& change) {
    Request request;
    change(request);
    return test::error_of<UsageError>([&] { validate(request); });
  };
  EXPECT_THAT(failure([](Request& r) { r.op = "attention"; }),
              HasSubstr("--op: 'attention' is none of favor"));
  EXPECT_THAT(failure([](Request& r) { r.kinds = {"favor-sofmax"}; }),
              HasSubstr("did you mean favor-softmax?"));
  EXPECT_THAT(failure([](Request& r) { r.kinds = {"local"}; }), HasSubstr("choose from favor-softmax"));
  EXPECT_THAT(failure([](Request& r) { r.kinds = {"favor-oprf"}; }),
              HasSubstr("--kinds: favor-oprf is not computed"));
  EXPECT_THAT(failure([](Request& r) { r.kinds = {"exact", "exact"}; }), HasSubstr("exact is given twice"));
  EXPECT_THAT(failure([](Request& r) { r.dtypes = {"float64"}; }), HasSubstr("--dtype: 'float64'"));
  EXPECT_THAT(failure([](Request& r) { r.op = "train", r.dtypes = {"float16"}; }),
              HasSubstr("--dtype: 'float16'"));
  EXPECT_THAT(failure([](Request& r) { r.targets = {"cuda"}; }),
              HasSubstr("--targets: cuda is not available here"));
  EXPECT_THAT(failure([](Request& r) { r.lengths = {0}; }), HasSubstr("--lengths must be between 1"));
  EXPECT_THAT(failure([](Request& r) { r.op = "decode", r.lengths = {5}; }), HasSubstr("leave --lengths"));
  EXPECT_THAT(failure([](Request& r) { r.op = "train", r.preset = "bse"; }),
              HasSubstr("did you mean 'base'?"));
}

Row timed_row(const std::string& kind, int64_t length, double ns) {
  Row row;
  row.op = "favor", row.kind = kind, row.direction = "causal", row.pass = "forward", row.dtype = "float32";
  row.target = kind == "exact" ? "libtorch" : "avx2";
  row.length = length, row.heads = 1, row.head_size = 8, row.ns = ns, row.work = 1, row.limit = 1e10;
  return row;
}

TEST(BreakEven, LiesWhereTheLinesCross) {
  std::vector<Row> rows;
  for (const int64_t length : {100, 400, 1600}) {  // exact grows with the length and meets 1000 ns at 200
    rows.push_back(timed_row("exact", length, 5.0 * static_cast<double>(length)));
    rows.push_back(timed_row("favor-softmax", length, 1000));
    rows.push_back(timed_row("favor-relu", length, 10));
    rows.push_back(timed_row("favor-expmod", length, 1e6));
  }
  const auto found = break_even(rows);
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0].relation, '=');
  EXPECT_NEAR(found[0].length, 200, 1e-6);
  EXPECT_EQ(found[1].relation, '<');
  EXPECT_NEAR(found[1].length, 100, 1e-6);
  EXPECT_EQ(found[2].relation, '>');
  EXPECT_NEAR(found[2].length, 1600, 1e-6);
}

TEST(Timing, SamplesTakeTurns) {
  std::vector<int> calls;
  const auto slow = [&](int name) {
    return [&calls, name] {
      if (calls.empty() || calls.back() != name) calls.push_back(name);
      const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(3);
      while (std::chrono::steady_clock::now() < end) {
      }
    };
  };
  const auto timings = time_by_turns({slow(1), slow(2)}, {.repetitions = 3, .seconds = 10}, {});
  EXPECT_EQ(calls, (std::vector<int>{1, 2, 1, 2, 1, 2, 1, 2}));
  ASSERT_EQ(timings.size(), 2u);
  EXPECT_GE(timings[0].fastest, 3e-3);
  EXPECT_EQ(timings[0].repetitions, 3);
}

TEST(Timing, SlowRowsGetFewerSamples) {
  int calls = 0;
  const auto work = [&] {
    ++calls;
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(5);
    while (std::chrono::steady_clock::now() < end) {
    }
  };
  EXPECT_EQ(time_by_turns({work}, {.repetitions = 50, .seconds = 1e-3}, {})[0].repetitions, 3);
  EXPECT_EQ(calls, 4) << "one to warm up, three samples";
}

TEST(Timing, ALongFirstCallIsASample) {
  int calls = 0;
  const auto work = [&] {
    ++calls;
    std::this_thread::sleep_for(std::chrono::milliseconds(1010));
  };
  const auto timings = time_by_turns({work}, {.repetitions = 1}, {});
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(timings[0].repetitions, 1);
  EXPECT_GE(timings[0].median, 1.0);
}

TEST(Limits, CountTheirOperations) {
  SerialExecutor serial;
  for (const auto& spinners : {float_spinners(), bfloat16_spinners()}) {
    for (const Spinner& spinner : spinners) {
      if (!spinner.usable()) continue;
      EXPECT_GT(measure(spinner, serial).flops, 1e8) << spinner.name;
    }
  }
  Spinner liar = float_spinners().back();
  liar.expected = 2;
  EXPECT_THAT(test::error_of<Error>([&] { measure(liar, serial); }), HasSubstr("cannot be measured"));
  EXPECT_GT(memory_bandwidth(1 << 20, serial), 1e8);
}

TEST(Limits, FollowWhatTheKernelsUse) {
  SerialExecutor serial;
  EXPECT_EQ(bfloat16_limit(serial, {"avx512", "avx2"}).name, float_limit(serial).name);
}

TEST(PeakTensorBytes, CountsWhatLivesAtOneTime) {
  const at::Tensor before = at::zeros({1000}, at::kFloat);
  const int64_t peak = peak_tensor_bytes([&] {
    const at::Tensor a = at::zeros({1000}, at::kFloat);
    at::zeros({2000}, at::kFloat);  // freed at once
    at::zeros({1500}, at::kFloat);
  });
  EXPECT_GE(peak, 12000);
  EXPECT_LT(peak, 14000);
  EXPECT_EQ(peak_tensor_bytes([] {}), 0);
}

TEST(Figure, HasALineForEachKindAndDtype) {
  Request request = small_request("favor");
  request.kinds = {"favor-softmax", "exact", "identity"};
  const Report report = run(request);
  const std::string svg = to_svg(report);
  EXPECT_THAT(svg, HasSubstr("prefers-color-scheme: dark"));
  EXPECT_THAT(svg, HasSubstr("identity, the bound X (OPT), bfloat16"));
  size_t lines = 0;
  for (size_t at = svg.find("line\" d=\"M"); at != std::string::npos; at = svg.find("line\" d=\"M", at + 1))
    ++lines;
  // Two directions of three panels with six lines each, and six in the legend.
  EXPECT_EQ(lines, 2u * 3 * 6 + 6);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

}  // namespace
}  // namespace performer::bench
