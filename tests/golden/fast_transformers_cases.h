// SPDX-License-Identifier: Apache-2.0
// What the tests against fast-transformers' recordings share.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/references/fast_transformers/attention.h"
#include "performer/references/fast_transformers/layers_attention.h"
#include "performer/references/fast_transformers/masks.h"
#include "tests/golden/golden.h"

namespace performer::golden::fast_transformers {

namespace ft = references::fast_transformers;

inline constexpr const char* kSystem = "fast-transformers";
inline const std::vector<at::ScalarType> kTypes = {at::kFloat, at::kDouble};

// Options of the feature maps, and what a recording says of itself.
// Redraws have no effect on a recorded projection.
inline const std::set<std::string> kMapOptions = {
    "n_dims",     "softmax_temp", "orthogonal",         "stabilize",       "smoothing",    "kernel_fn",
    "activation", "redraw",       "deterministic_eval", "resolved_n_dims", "resolved_temp"};

// Options of attentions, and what masks them.
inline const std::set<std::string> kAttentionOptions = {
    "eps", "softmax_temp", "attention_dropout", "length_limit", "topk", "local_context", "mask", "causal"};

// A test failure for an option that the test does not know: a recording whose option was ignored would prove
// nothing.
inline void expect_known(const Case& item, std::set<std::string> known, bool with_map = true) {
  if (with_map) known.insert(kMapOptions.begin(), kMapOptions.end());
  known.insert(kAttentionOptions.begin(), kAttentionOptions.end());
  for (const auto& [name, value] : item.options.items()) {
    EXPECT_TRUE(known.contains(name))
        << item.group << " " << item.id << ": unknown option " << name << " = " << value;
  }
}

template <class T>
T option_or(const nlohmann::json& options, const char* name, const T& otherwise) {
  const auto found = options.find(name);
  return found == options.end() || found->is_null() ? otherwise : found->get<T>();
}

// Our name of a function that a recording calls by its Python name: without the module before it or a remark
// behind it, and with hyphens.
inline std::string function_name(std::string name) {
  name = name.substr(name.rfind('.') + 1);
  name = name.substr(0, name.find(' '));
  for (char& letter : name) letter = letter == '_' ? '-' : letter;
  if (name == "elu-feature-map" || name == "elu1" || name == "elu-plus-1" || name == "elu-plus-one")
    return "elu+1";
  return name;
}

// Options of the map that the library calls `name`; draws are kept as they are.
inline ft::FeatureMapOptions map_options(const std::string& name, const nlohmann::json& given) {
  static const std::map<std::string, std::string> names = {
      {"elu", "elu"},
      {"elu_feature_map", "elu"},
      {"activation", "activation"},
      {"ActivationFunctionFeatureMap", "activation"},
      {"Favor", "favor"},
      {"RandomFourierFeatures", "random-fourier"},
      {"SmoothedRandomFourierFeatures", "smoothed-random-fourier"},
      {"GeneralizedRandomFeatures", "generalized"}};
  const auto found = names.find(name);
  check<InputError>(found != names.end(), "unknown feature map '{}' in a recording", name);
  ft::FeatureMapOptions options;
  options.map = found->second;
  const char* function = options.map == "activation" ? "activation" : "kernel_fn";
  options.function = function_name(option_or<std::string>(given, function, "relu"));
  options.n_dims = option_or<int64_t>(given, "n_dims", 0);
  options.softmax_temp = option_or<double>(given, "softmax_temp", 0);
  const auto orthogonal = given.find("orthogonal");
  if (orthogonal != given.end() && orthogonal->is_boolean())
    options.draw = orthogonal->get<bool>() ? "orthogonal" : "iid";
  options.stabilize = option_or(given, "stabilize", false);
  options.smoothing = option_or<double>(given, "smoothing", 1);
  options.redraw = 0;
  return options;
}

// Gives `map` the recorded projection, in `type`.
inline void set_omega(const ft::FeatureMapImpl& map, const at::Tensor& omega, at::ScalarType type) {
  check<InputError>(map.omega().sizes() == omega.sizes(),
                    "a recorded omega is {} x {}, but the map's is {} x {}", omega.size(0), omega.size(1),
                    map.omega().size(0), map.omega().size(1));
  at::Tensor(map.omega()).set_data(omega.to(type));
}

inline void expect_resolved(const Case& item, const ft::FeatureMapImpl& map) {
  const nlohmann::json &dims = item.options.value("resolved_n_dims", nlohmann::json()),
                       temp = item.options.value("resolved_temp", nlohmann::json());
  if (dims.is_number()) {
    EXPECT_EQ(map.n_dims(), dims.get<int64_t>()) << item.id;
  }
  if (temp.is_number()) {
    EXPECT_DOUBLE_EQ(map.softmax_temp(), temp.get<double>()) << item.id;
  }
}

// What the folders with recordings of this system say of it beside the cases.
inline std::vector<nlohmann::json> descriptions() {
  std::vector<nlohmann::json> found;
  for (const std::string& folder : folders()) {
    const auto index = nlohmann::json::parse(read_file(folder + "/index.json"));
    const nlohmann::json meta = index.value("meta", nlohmann::json());
    if (!meta.is_object() || !meta.contains("reference") || !meta["reference"].is_string()) continue;
    if (meta["reference"].get<std::string>().find(kSystem) != std::string::npos) found.push_back(meta);
  }
  return found;
}

// Input `name` as a leaf in `type`.
inline at::Tensor leaf(const Case& item, const std::string& name, at::ScalarType type) {
  return item.tensor(name).to(type).clone().set_requires_grad(true);
}

inline ft::LengthMask lengths_of(const Case& item, const std::string& name, int64_t batch, int64_t tokens) {
  if (!item.has(name)) return ft::LengthMask(at::full({batch}, tokens, at::kLong), tokens);
  return ft::LengthMask(item.tensor(name).to(at::kLong), tokens);
}

// The mask of `rows` queries and `columns` keys: a recorded matrix, or triangular where the case or the kind
// asks for it, or all ones.
inline ft::AttentionMask mask_of_queries(const Case& item, bool causal, int64_t rows, int64_t columns) {
  for (const char* name : {"attn_mask", "mask"}) {
    if (item.has(name)) return ft::FullMask(item.tensor(name).ne(0));
  }
  const auto named = item.options.find("mask");
  const std::string mask = named != item.options.end() && named->is_string() ? named->get<std::string>() : "";
  for (const char* word : {"causal", "Causal", "triangular"}) causal |= mask.find(word) != std::string::npos;
  if (option_or(item.options, "causal", false) || causal) return ft::TriangularCausalMask(rows);
  return ft::FullMask(rows, columns);
}

// The options of an attention that are not its feature map's.
inline ft::InnerAttentionOptions attention_options(const nlohmann::json& given) {
  ft::InnerAttentionOptions options;
  options.eps = option_or(given, "eps", options.eps);
  options.softmax_temp = option_or(given, "softmax_temp", options.softmax_temp);
  options.attention_dropout = option_or(given, "attention_dropout", options.attention_dropout);
  options.length_limit = option_or(given, "length_limit", options.length_limit);
  options.topk = option_or(given, "topk", options.topk);
  options.local_context = option_or(given, "local_context", options.local_context);
  return options;
}

// Our kind of one of the library's classes, whatever its form.
inline std::string attention_kind(std::string name) {
  for (const std::string form : {"Recurrent", "Cross"}) {
    if (name.starts_with(form)) name = name.substr(form.size());
  }
  static const std::map<std::string, std::string> kinds = {{"LinearAttention", "linear"},
                                                           {"CausalLinearAttention", "causal-linear"},
                                                           {"FullAttention", "full"},
                                                           {"LocalAttention", "local"},
                                                           {"ExactTopKAttention", "exact-topk"}};
  const auto found = kinds.find(name);
  check<InputError>(found != kinds.end(), "unknown attention '{}' in a recording", name);
  return found->second;
}

// The two parts of a state as the library returns them: sums of linear attention, keys and values of full
// attention.
inline std::pair<at::Tensor, at::Tensor> state_parts(const ft::AttentionState& state) {
  if (state.linear.defined()) return {state.linear.s.clone(), state.linear.z.clone()};
  if (state.key_mask.defined()) return {state.keys, state.values};  // of a memory
  return {state.keys.narrow(2, 0, state.length), state.values.narrow(2, 0, state.length)};
}

// Runs a case in both types; what it throws is its failure and does not keep others from running.
template <class Run>
void in_all_types(const Case& item, const Run& run) {
  for (const at::ScalarType type : kTypes) {
    try {
      run(type);
    } catch (const std::exception& error) {
      ADD_FAILURE() << item.group << " " << item.id << ": " << error.what();
    }
  }
}

// Compares output `name` where the recording has one that can be trusted in this type.
inline void expect_output(Group& group, const Case& item, const std::string& name, const at::Tensor& actual) {
  const auto found = item.outputs.find(name);
  if (found == item.outputs.end()) return;
  if (found->second.f32_unreliable && actual.scalar_type() != at::kDouble) return;
  group.expect(item, name, actual);
}

// Compares "out" and the gradients of sum(out * cot): "d" + name of each of `leaves`. Fails for outputs that
// are neither.
inline void expect_all(Group& group, const Case& item, const at::Tensor& out,
                       const std::map<std::string, at::Tensor>& leaves,
                       const std::set<std::string>& others = {}) {
  expect_output(group, item, "out", out.detach());
  std::vector<std::string> names;
  std::vector<at::Tensor> inputs;
  for (const auto& [name, output] : item.outputs) {
    if (name == "out" || others.contains(name)) continue;
    const auto found = name.front() == 'd' ? leaves.find(name.substr(1)) : leaves.end();
    if (found == leaves.end()) {
      ADD_FAILURE() << item.group << " " << item.id << ": nothing is compared with output " << name;
      continue;
    }
    names.push_back(name);
    inputs.push_back(found->second);
  }
  if (inputs.empty()) return;
  const auto gradients =
      torch::autograd::grad({(out * item.tensor("cot").to(out.scalar_type())).sum()}, inputs, {},
                            /*retain_graph=*/std::nullopt, /*create_graph=*/false, /*allow_unused=*/true);
  for (size_t i = 0; i < names.size(); ++i) {
    expect_output(group, item, names[i], gradients[i].defined() ? gradients[i] : at::zeros_like(inputs[i]));
  }
}

}  // namespace performer::golden::fast_transformers
