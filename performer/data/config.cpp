// SPDX-License-Identifier: Apache-2.0
#include "performer/data/config.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "performer/base/error.h"
#include "performer/data/reader.h"

namespace performer {
namespace {

bool is_one_of(const std::string& word, const std::vector<std::string>& words) {
  return std::ranges::find(words, word) != words.end();
}

void validate_source(const DataConfig& config) {
  const std::string &format = config.format, &vocabulary = config.vocabulary;
  const bool impossible = (format == "image" && !is_one_of(vocabulary, {"auto", "pixels"})) ||
                          (format == "fasta" && is_one_of(vocabulary, {"bytes", "pixels"})) ||
                          (format == "text" && vocabulary == "pixels");
  check<UsageError>(!impossible,
                    "data.vocabulary = {} cannot be read with data.format = {}: leave one of them at auto",
                    vocabulary, format);
  check<UsageError>(!vocabulary.empty(),
                    "data.vocabulary is empty: expected auto, {}, or a file with one symbol a line",
                    fmt::join(data::vocabulary_names(), ", "));
  if (!config.image_shape.empty()) data::parse_image_shape(config.image_shape);
  check<UsageError>(config.image_fit != "shrink" || !config.image_shape.empty(),
                    "data.image_fit = shrink needs the shape to shrink to: set data.image_shape");
}

}  // namespace

void validate(const DataConfig& config) {
  check<UsageError>(config.length >= 2, "data.length must be at least 2, found {}", config.length);
  check<UsageError>(
      config.batch_tokens >= config.length,
      "data.batch_tokens ({}) must be at least data.length ({}): a batch holds the longest piece",
      config.batch_tokens, config.length);
  check<UsageError>(config.holdout >= 0 && config.holdout < 1,
                    "data.holdout must be at least 0 and below 1, found {}", config.holdout);
  check<UsageError>(config.mask_rate > 0 && config.mask_rate <= 1,
                    "data.mask_rate must be above 0 and at most 1, found {}", config.mask_rate);
  check_choices(list_fields("data", config));
  check<UsageError>(config.layout != "concatenated" || config.crop == "split",
                    "data.crop = {} has no meaning with data.layout = concatenated, which cuts no sequence: "
                    "leave it at split",
                    config.crop);
  validate_source(config);
}

}  // namespace performer
