// SPDX-License-Identifier: Apache-2.0
#include "performer/train/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace performer::train {
namespace {

constexpr ProgressState kHalfWay{.step = 500,
                                 .steps = 1000,
                                 .elapsed = 151,
                                 .pace = 0.302,
                                 .loss = 2.8124,
                                 .accuracy = 0.1312,
                                 .tokens_per_second = 9713.6};

TEST(Progress, Durations) {
  EXPECT_EQ(format_duration(0), "0:00");
  EXPECT_EQ(format_duration(59.6), "1:00");
  EXPECT_EQ(format_duration(245), "4:05");
  EXPECT_EQ(format_duration(3723), "1:02:03");
  EXPECT_EQ(format_duration(-3), "0:00");
}

TEST(Progress, Status) {
  EXPECT_EQ(format_status(kHalfWay), "500/1000  loss 2.812  accuracy 0.131  9,714 tokens/s  2:31 left");
  ProgressState state = kHalfWay;
  state.pace = 0;
  state.tokens_per_second = 1234567;
  EXPECT_EQ(format_status(state), "500/1000  loss 2.812  accuracy 0.131  1,234,567 tokens/s");
}

TEST(Progress, WithoutAccuracy) {
  ProgressState state = kHalfWay;
  state.accuracy = std::nan("");
  EXPECT_EQ(format_status(state), "500/1000  loss 2.812  9,714 tokens/s  2:31 left");
}

TEST(Progress, SaysHowFarByWhatEndsTheRun) {
  ProgressState state = kHalfWay;
  state.elapsed = 130;
  state.time_limit = 300;  // 170 s left, and the steps left take 151 s
  EXPECT_FALSE(ends_by_time(state));
  EXPECT_DOUBLE_EQ(fraction_done(state), 0.5);
  EXPECT_THAT(format_status(state), ::testing::StartsWith("500/1000  loss"));

  state.pace = 0.5;  // 250 s
  EXPECT_TRUE(ends_by_time(state));
  EXPECT_DOUBLE_EQ(fraction_done(state), 130.0 / 300);
  EXPECT_EQ(format_status(state), "2:10 of 5:00  step 500  loss 2.812  accuracy 0.131  9,714 tokens/s");
  EXPECT_THAT(format_progress(state, 100), ::testing::StartsWith("[=============>  "));

  state.pace = 0;  // not known: only the limit is certain
  EXPECT_TRUE(ends_by_time(state));
  state.time_limit = 0;
  EXPECT_FALSE(ends_by_time(state));
  state.time_limit = 100;  // the step under way went beyond it
  EXPECT_DOUBLE_EQ(fraction_done(state), 1);
}

TEST(Progress, LineFitsTheTerminal) {
  EXPECT_THAT(format_progress(kHalfWay, 80), ::testing::StartsWith("[======>      ]  500/1000"));
  for (const int columns : {0, 1, 20, 60, 79, 80, 200}) {
    EXPECT_LE(format_progress(kHalfWay, columns).size(), static_cast<size_t>(columns));
  }
  EXPECT_THAT(format_progress(kHalfWay, 65), ::testing::StartsWith("500/1000")) << "no room for a bar";
  ProgressState done = kHalfWay;
  done.step = 1000;
  EXPECT_THAT(format_progress(done, 200),
              ::testing::StartsWith("[==============================]  1000/1000"));
}

}  // namespace
}  // namespace performer::train
