// SPDX-License-Identifier: Apache-2.0
#include "performer/data/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "performer/base/error.h"
#include "tests/errors.h"

namespace performer {
namespace {

using test::error_of;
using testing::AllOf;
using testing::HasSubstr;

TEST(DataConfig, RefusesImpossibleValues) {
  const auto error_with = [](auto change) {
    DataConfig config;
    change(config);
    return error_of<UsageError>([&] { validate(config); });
  };
  EXPECT_NO_THROW(validate(DataConfig{}));
  EXPECT_THAT(error_with([](auto& c) { c.length = 1; }),
              HasSubstr("data.length must be at least 2, found 1"));
  EXPECT_THAT(error_with([](auto& c) { c.length = 9000; }),
              HasSubstr("data.batch_tokens (8192) must be at least data.length (9000)"));
  EXPECT_THAT(error_with([](auto& c) { c.holdout = 1; }), HasSubstr("data.holdout"));
  EXPECT_THAT(error_with([](auto& c) { c.holdout = std::nan(""); }), HasSubstr("data.holdout"));
  EXPECT_THAT(error_with([](auto& c) { c.mask_rate = 0; }), HasSubstr("data.mask_rate"));
  EXPECT_THAT(error_with([](auto& c) { c.layout = "dense"; }),
              AllOf(HasSubstr("data.layout"), HasSubstr("dense")));
  EXPECT_THAT(error_with([](auto& c) { c.crop = "end"; }), AllOf(HasSubstr("data.crop"), HasSubstr("end")));
  EXPECT_THAT(error_with([](auto& c) { c.layout = "concatenated", c.crop = "start"; }),
              HasSubstr("no meaning"));
  EXPECT_THAT(error_with([](auto& c) { c.format = "fastq"; }),
              AllOf(HasSubstr("data.format"), HasSubstr("fastq")));
  EXPECT_THAT(error_with([](auto& c) { c.documents = "line"; }),
              AllOf(HasSubstr("data.documents"), HasSubstr("line")));
  EXPECT_THAT(error_with([](auto& c) { c.image_fit = "crop"; }),
              AllOf(HasSubstr("data.image_fit"), HasSubstr("crop")));
  EXPECT_THAT(error_with([](auto& c) { c.image_fit = "shrink"; }), HasSubstr("set data.image_shape"));
  EXPECT_THAT(error_with([](auto& c) { c.image_shape = "64x64"; }), HasSubstr("data.image_shape must be"));
  EXPECT_THAT(error_with([](auto& c) { c.vocabulary = ""; }), HasSubstr("data.vocabulary is empty"));
}

TEST(DataConfig, RefusesVocabulariesThatAFormatCannotUse) {
  const auto check_pair = [](const char* format, const char* vocabulary) {
    DataConfig config;
    config.format = format;
    config.vocabulary = vocabulary;
    validate(config);
  };
  for (const auto& [format, vocabulary] :
       {std::pair("image", "bytes"), std::pair("image", "dna"), std::pair("image", "own.txt"),
        std::pair("fasta", "bytes"), std::pair("fasta", "pixels"), std::pair("text", "pixels")}) {
    EXPECT_THAT(error_of<UsageError>([&, f = format, v = vocabulary] { check_pair(f, v); }),
                HasSubstr(std::string("data.vocabulary = ") + vocabulary +
                          " cannot be read with data.format = " + format));
  }
  for (const auto& [format, vocabulary] :
       {std::pair("image", "pixels"), std::pair("image", "auto"), std::pair("fasta", "rna"),
        std::pair("fasta", "own.txt"), std::pair("text", "bytes"), std::pair("text", "protein"),
        std::pair("auto", "pixels")}) {
    EXPECT_NO_THROW(check_pair(format, vocabulary)) << format << " " << vocabulary;
  }
}

}  // namespace
}  // namespace performer
