// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/train/config.h"

namespace performer {
namespace {

// The message for a configuration changed by `change`, or "".
template <class Change>
std::string config_error(Change change) {
  TrainConfig config;
  change(config);
  try {
    validate(config);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(TrainConfig, DefaultsAreValid) {
  EXPECT_EQ(config_error([](TrainConfig&) {}), "");
}

TEST(TrainConfig, EveryBadValueIsNamed) {
  using ::testing::HasSubstr;
  EXPECT_THAT(config_error([](TrainConfig& c) { c.steps = 0; }),
              HasSubstr("train.steps must be 1 or more, but is 0"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.accumulate = 0; }), HasSubstr("train.accumulate"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.sequence_parallel = 0; }),
              HasSubstr("train.sequence_parallel"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.log_every = 0; }), HasSubstr("train.log_every"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.evaluate_every = -1; }), HasSubstr("train.evaluate_every"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.checkpoint_every = -1; }),
              HasSubstr("train.checkpoint_every"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.learning_rate = -1; }), HasSubstr("train.learning_rate"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.learning_rate = std::nan(""); }),
              HasSubstr("train.learning_rate"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.weight_decay = INFINITY; }),
              HasSubstr("train.weight_decay"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.clip = -0.5; }), HasSubstr("train.clip"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.adam_beta1 = 1; }), HasSubstr("train.adam_beta1"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.adam_beta2 = -0.1; }), HasSubstr("train.adam_beta2"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.adam_epsilon = -1; }), HasSubstr("train.adam_epsilon"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.precision = "float16"; }), HasSubstr("train.precision"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.decay = "none"; }), HasSubstr("train.decay"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.schedule = "constnat"; }),
              HasSubstr("did you mean 'constant'"));
  EXPECT_THAT(config_error([](TrainConfig& c) { c.warmup = -1; }), HasSubstr("train.warmup"));
}

}  // namespace
}  // namespace performer
