// SPDX-License-Identifier: Apache-2.0
#include "performer/models/prediction_head.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/data/json.h"
#include "performer/nn/dense.h"
#include "performer/nn/initialize.h"

namespace performer {
namespace {

constexpr const char* kKey = "head";  // of the file's metadata
constexpr const char *kWeight = "weight", *kBias = "bias";
constexpr size_t kMostClasses = 65536;

bool is_one_of(const std::string& word, const std::vector<std::string>& words) {
  return std::ranges::find(words, word) != words.end();
}

HeadConfig parse_config(const std::string& text, const std::string& source) {
  HeadConfig config;
  const std::string description = source + ": description of the head";
  const auto json = data::parse_json_object(text, description);
  config.kind = data::json_field<std::string>(json, "kind", description);
  config.pool = data::json_field<std::string>(json, "pool", description);
  config.classes = data::json_field<std::vector<std::string>>(json, "classes", description);
  config.mean = data::json_field<double>(json, "mean", description);
  config.scale = data::json_field<double>(json, "scale", description);
  try {
    validate(config);
  } catch (const UsageError& error) {  // here it is the file that is wrong, not the request
    throw InputError(fmt::format("{}: {}", source, error.what()));
  }
  return config;
}

}  // namespace

const std::vector<std::string>& head_kinds() {
  static const std::vector<std::string> kinds = {"sequence-classification", "sequence-regression",
                                                 "token-classification", "token-regression"};
  return kinds;
}

void validate(const HeadConfig& config) {
  check<UsageError>(is_one_of(config.kind, head_kinds()), "the kind of a head must be {}, not '{}'",
                    fmt::join(head_kinds(), ", "), shown(config.kind));
  check<UsageError>(is_one_of(config.pool, {"mean", "first"}),
                    "the pooling of a head must be mean or first, not '{}'", shown(config.pool));
  const size_t classes = config.classes.size();
  check<UsageError>(!config.classifies() || (classes >= 2 && classes <= kMostClasses),
                    "a head of {} needs 2 to {} classes, but has {}", config.kind, kMostClasses, classes);
  check<UsageError>(std::isfinite(config.mean) && std::isfinite(config.scale) && config.scale > 0,
                    "a head scales by {} and adds {}: the first must be above 0", config.scale, config.mean);
}

PredictionHeadImpl::PredictionHeadImpl(const HeadConfig& config, int64_t width) : config_(config) {
  validate(config);
  dense_ = register_module("dense", torch::nn::Linear(width, config.outputs()));
  nn::initialize_linear(dense_, 0);
}

at::Tensor PredictionHeadImpl::forward(const at::Tensor& rows) const {
  return nn::dense(dense_, rows).to(at::kFloat);
}

at::Tensor PredictionHeadImpl::predictions(const at::Tensor& outputs) const {
  return config_.classifies() ? outputs.softmax(-1) : outputs * config_.scale + config_.mean;
}

TensorFile head_file(const PredictionHead& head) {
  const HeadConfig& config = head->config();
  const nlohmann::ordered_json json = {{"kind", config.kind},
                                       {"pool", config.pool},
                                       {"classes", config.classes},
                                       {"mean", config.mean},
                                       {"scale", config.scale}};
  TensorFile file;
  file.metadata = {{"format", "performer"}, {kKey, json.dump()}};
  for (const auto& item : head->named_parameters())
    file.tensors[item.key().substr(item.key().rfind('.') + 1)] = item.value().detach();
  return file;
}

PredictionHead parse_head(const TensorFile& file, int64_t width, const std::string& source) {
  const auto found = file.metadata.find(kKey);
  check<InputError>(found != file.metadata.end(), "{} does not say what its weights predict", source);
  PredictionHead head(parse_config(found->second, source), width);
  const at::NoGradGuard no_grad;
  for (const auto& item : head->named_parameters()) {
    const std::string name = item.key().substr(item.key().rfind('.') + 1);
    const auto tensor = file.tensors.find(name);
    check<InputError>(
        tensor != file.tensors.end() && tensor->second.sizes().equals(item.value().sizes()) &&
            tensor->second.is_floating_point(),
        "{}: the tensor '{}' must be of floating-point numbers [{}], for {} outputs of a model of width {}",
        source, name, fmt::join(item.value().sizes(), ", "), head->config().outputs(), width);
    item.value().copy_(tensor->second);
  }
  check<InputError>(file.tensors.size() == 2, "{} has {} tensors, expected {} and {}", source,
                    file.tensors.size(), kWeight, kBias);
  head->eval();
  return head;
}

}  // namespace performer
