// SPDX-License-Identifier: Apache-2.0
// The labels of a corpus as sections of its file.
#include <cmath>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/data/json.h"
#include "performer/data/labels.h"

namespace performer::data {
namespace {

// "labels": a JSON text with classes, per_token and fingerprint; the others are numbers.
constexpr const char *kDescription = "labels", *kValues = "label values", *kEnds = "label ends",
                     *kWeights = "label weights";

}  // namespace

void LabelledSequences::write(SectionWriter& file) const {
  if (labels_ == nullptr && weight_table_ == nullptr) return;
  const nlohmann::json description = {{"classes", classes()},
                                      {"per_token", labels_ != nullptr && labels_->form().per_token},
                                      {"fingerprint", fingerprint_}};
  file.add_text(kDescription, description.dump());
  const auto add = [&file](const char* name, const auto& numbers) {
    file.begin(name);
    file.append_numbers(std::span(numbers));
  };
  if (labels_ != nullptr) add(kValues, values_), add(kEnds, ends_);
  if (has_weights()) add(kWeights, weights_);
}

LabelledSequences::LabelledSequences(const SectionFile& file, std::span<const int64_t> offsets)
    : file_(&file) {
  if (!file.has(kDescription)) return;
  bool per_token = false;
  read_description(file, per_token);
  size_ = std::ssize(offsets) - 1;
  if (file.has(kValues)) {
    mapped_values_ = file.numbers<float>(kValues);
    mapped_ends_ = file.numbers<int64_t>(kEnds);
    check_values(offsets, per_token);
  }
  if (!file.has(kWeights)) return;
  mapped_weights_ = file.numbers<float>(kWeights);
  check<InputError>(std::ssize(mapped_weights_) == size_, "{}: expected {} weights of sequences, found {}",
                    file.name(), size_, mapped_weights_.size());
  for (const float weight : mapped_weights_) {
    check<InputError>(std::isfinite(weight) && weight >= 0,
                      "{}: a weight must be a number of 0 or more, found {}", file.name(), weight);
  }
}

void LabelledSequences::read_description(const SectionFile& file, bool& per_token) {
  read_json(file.name(), "damaged description of labels", [&] {
    const auto description = nlohmann::json::parse(file.text(kDescription));
    description.at("classes").get_to(classes_);
    description.at("per_token").get_to(per_token);
    description.at("fingerprint").get_to(fingerprint_);
  });
}

void LabelledSequences::check_values(std::span<const int64_t> offsets, bool per_token) const {
  check<InputError>(std::ssize(mapped_ends_) == size_, "{}: expected labels of {} sequences, found {}",
                    file_->name(), size_, mapped_ends_.size());
  int64_t begin = 0;
  for (size_t i = 0; i < mapped_ends_.size(); ++i) {
    const int64_t expected = begin + (per_token ? offsets[i + 1] - offsets[i] : 1);
    check<InputError>(mapped_ends_[i] == expected,
                      "{}: expected the labels of sequence {} to end at {}, found {}", file_->name(), i + 1,
                      expected, mapped_ends_[i]);
    begin = expected;
  }
  check<InputError>(std::ssize(mapped_values_) == begin, "{}: expected {} labels, found {}", file_->name(),
                    begin, mapped_values_.size());
  const auto classes = static_cast<float>(classes_.size());
  for (const float value : mapped_values_) {
    const bool is_class = value >= 0 && value < classes && value == std::floor(value);
    check<InputError>(classes_.empty() ? !std::isinf(value) : is_class || std::isnan(value),
                      "{}: the label {} is none of {} classes", file_->name(), value, classes_.size());
  }
}

std::span<const float> LabelledSequences::values(int64_t index) const {
  const std::span<const float> all = file_ != nullptr ? mapped_values_ : std::span<const float>(values_);
  const std::span<const int64_t> ends = file_ != nullptr ? mapped_ends_ : std::span<const int64_t>(ends_);
  if (ends.empty()) return {};
  const int64_t begin = index == 0 ? 0 : ends[static_cast<size_t>(index) - 1];
  return all.subspan(static_cast<size_t>(begin),
                     static_cast<size_t>(ends[static_cast<size_t>(index)] - begin));
}

}  // namespace performer::data
