// SPDX-License-Identifier: Apache-2.0
// What a source says about itself: config.json of a Hugging Face folder, or the arguments in a checkpoint.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "performer/models/readers/stored.h"

namespace performer::convert {

// Values by key; nested objects joined with points. Lists are left out, but for their elements by number.
class SourceConfig {
 public:
  SourceConfig() = default;
  SourceConfig(std::map<std::string, Scalar> values, std::string source)
      : values_(std::move(values)), source_(std::move(source)) {}
  // Throws InputError naming `path` when the text is no JSON object, or nested more than 32 deep.
  static SourceConfig of_json(const std::string& text, const std::string& path);

  bool has(const std::string& key) const { return values_.contains(key); }
  // Throw InputError naming source and key when the value is missing or of another type. Keys in `or_key` are
  // looked at second.
  int64_t whole(const std::string& key, const std::string& or_key = "") const;
  // The same from 1 to kLargestSize.
  int64_t size(const std::string& key, const std::string& or_key = "") const;
  int64_t whole_or(const std::string& key, int64_t otherwise) const;
  double real_or(const std::string& key, double otherwise) const;
  bool flag_or(const std::string& key, bool otherwise) const;
  std::string text_or(const std::string& key, const std::string& otherwise) const;
  // Throws InputError unless the value is missing or `only`: for options that would change what is computed.
  void require(const std::string& key, const Scalar& only) const;

  // The values whose keys begin with PREFIX and a point, without these.
  SourceConfig part(const std::string& prefix) const;
  const std::string& source() const { return source_; }
  const std::map<std::string, Scalar>& values() const { return values_; }

 private:
  const Scalar* find(const std::string& key) const;

  std::map<std::string, Scalar> values_;
  std::string source_;
};

}  // namespace performer::convert
