// SPDX-License-Identifier: Apache-2.0
#include "performer/train/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "performer/base/error.h"
#include "tests/errors.h"

namespace performer::train {
namespace {

TEST(Schedule, FactorsByHand) {
  const ScheduleOptions options{
      .base = 2, .warmup = 100, .decay_factor = 0.5, .steps_per_decay = 10, .steps_per_cycle = 40};
  EXPECT_DOUBLE_EQ(Schedule("constant", options)(7), 2);
  EXPECT_DOUBLE_EQ(Schedule("linear_warmup", options)(25), 0.25);
  EXPECT_DOUBLE_EQ(Schedule("linear_warmup", options)(1000), 1);
  EXPECT_DOUBLE_EQ(Schedule("rsqrt_decay", options)(4), 0.1);
  EXPECT_DOUBLE_EQ(Schedule("rsqrt_decay", options)(400), 0.05);
  EXPECT_DOUBLE_EQ(Schedule("rsqrt_normalized_decay", options)(400), 0.5);
  EXPECT_DOUBLE_EQ(Schedule("decay_every", options)(9), 1);
  EXPECT_DOUBLE_EQ(Schedule("decay_every", options)(30), 0.125);
  EXPECT_DOUBLE_EQ(Schedule("cosine_decay", options)(50), 1);
  EXPECT_DOUBLE_EQ(Schedule("cosine_decay", options)(110), 0.5 * (1 + std::cos(M_PI / 4)));
  EXPECT_DOUBLE_EQ(Schedule("cosine_decay", options)(140), 1) << "a new cycle";
  EXPECT_DOUBLE_EQ(Schedule(" constant*linear_warmup *rsqrt_decay ", options)(25), 2 * 0.25 / 10);
}

TEST(Schedule, WithoutWarmupTheRateIsFullAtOnce) {
  EXPECT_DOUBLE_EQ(Schedule("constant * linear_warmup", {.base = 3, .warmup = 0})(0), 3);
}

std::string schedule_error(const std::string& factors, const ScheduleOptions& options = {}) {
  return test::error_of<UsageError>([&] { Schedule(factors, options); });
}

TEST(Schedule, ErrorsNameTheFactor) {
  EXPECT_THAT(schedule_error("constant * linear_warmpu"),
              ::testing::AllOf(::testing::HasSubstr("'linear_warmpu'"),
                               ::testing::HasSubstr("did you mean 'linear_warmup'")));
  EXPECT_THAT(schedule_error("constant *"), ::testing::HasSubstr("unknown factor ''"));
  EXPECT_THAT(schedule_error(""), ::testing::HasSubstr("unknown factor ''"));
  EXPECT_THAT(schedule_error("constant", {.warmup = -1}), ::testing::HasSubstr("train.warmup"));
  EXPECT_THAT(schedule_error("constant", {.steps_per_decay = 0}),
              ::testing::HasSubstr("train.steps_per_decay"));
  EXPECT_THAT(schedule_error("constant", {.steps_per_cycle = 0}),
              ::testing::HasSubstr("train.steps_per_cycle"));
}

}  // namespace
}  // namespace performer::train
