// SPDX-License-Identifier: Apache-2.0
// Small random models and files for tests.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <string>
#include <vector>

#include "performer/base/files.h"
#include "performer/data/vocabulary.h"
#include "performer/models/language_model.h"
#include "performer/nn/attention/kind.h"

namespace performer {

struct TinyModel {
  std::string kind = "favor-relu", objective = "causal", positions = "rotary";
  int64_t max_length = 64;
  std::string projection = "auto";  // for kinds with attention.projection
  data::Vocabulary vocabulary = data::Vocabulary::protein();
};

// In evaluation mode, with weights large enough that its predictions are far from uniform.
inline LanguageModel make_model(const TinyModel& options = {}) {
  torch::manual_seed(7);
  ModelConfig model;
  model.objective = options.objective;
  model.positions = options.positions;
  model.max_length = options.max_length;
  model.layers = 2;
  model.width = 32;
  model.heads = 2;
  model.ffn = 48;
  AttentionConfig attention;
  attention.kind = options.kind;
  if (nn::has_option(nn::find_kind(options.kind), "features")) attention.set("features", 24);
  if (nn::has_option(nn::find_kind(options.kind), "projection"))
    attention.set("projection", options.projection);
  LanguageModel result(model, attention, options.vocabulary.size());
  const at::NoGradGuard no_gradients;
  for (auto& parameter : result->parameters()) parameter.add_(at::randn_like(parameter), 0.1);
  result->eval();
  return result;
}

// log p(token i + 1 | tokens 0 .. i) of a causal model by one forward pass over the start marker and all but
// the last.
inline std::vector<double> forward_log_probabilities(
    LanguageModel& model, const std::vector<int64_t>& tokens,
    const data::Vocabulary& vocabulary = data::Vocabulary::protein()) {
  const at::NoGradGuard no_gradients;
  std::vector<int64_t> inputs = {vocabulary.bos()};
  inputs.insert(inputs.end(), tokens.begin(), tokens.end() - 1);
  const auto length = static_cast<int64_t>(inputs.size());
  SequenceBatch batch;
  batch.tokens = at::tensor(inputs, at::kLong).unsqueeze(0);
  batch.positions = at::arange(length, at::kLong).unsqueeze(0);
  const at::Tensor table = at::log_softmax(model->forward(batch)[0].to(at::kDouble), -1);
  std::vector<double> result;
  for (int64_t i = 0; i < length; ++i) result.push_back(table[i][tokens[i]].item<double>());
  return result;
}

inline std::string temporary_file(const std::string& name, const std::string& text) {
  const std::string path = ::testing::TempDir() + "/" + name;
  write_file(path, text);
  return path;
}

}  // namespace performer
