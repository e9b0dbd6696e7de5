// SPDX-License-Identifier: Apache-2.0
#include "tests/golden/golden.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <limits>
#include <regex>
#include <sstream>

#include "performer/base/error.h"
#include "performer/base/files.h"

namespace performer::golden {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

void add_folder(const std::string& path, std::vector<std::string>& found) {
  if (fs::exists(fs::path(path) / "index.json")) {
    found.push_back(path);
    return;
  }
  std::error_code error;
  std::set<std::string> below;  // sorted: the order of a directory is arbitrary
  for (const auto& entry : fs::directory_iterator(path, error)) {
    if (fs::exists(entry.path() / "index.json")) below.insert(entry.path().string());
  }
  found.insert(found.end(), below.begin(), below.end());
}

// {"atol", "rtol"} or null; null is replaced by the other precision's.
void read_tolerance(const json& value, double& atol, double& rtol) {
  // null where the reference gives no number to hold anything to.
  if (value.is_object() && value.contains("atol") && value["atol"].is_number()) atol = value["atol"];
  if (value.is_object() && value.contains("rtol") && value["rtol"].is_number()) rtol = value["rtol"];
}

Output read_output(const std::string& name, const json& value) {
  Output output;
  output.name = name;
  output.exact = value.value("exact", false);
  if (value.contains("float64") && value["float64"].is_string()) output.float64_name = value["float64"];
  read_tolerance(value.value("f32", json()), output.atol32, output.rtol32);
  output.atol64 = output.atol32;
  output.rtol64 = output.rtol32;
  read_tolerance(value.value("f64", json()), output.atol64, output.rtol64);
  output.only_where = value.value("compare_only_where", "");
  output.f32_unreliable = value.contains("f32_unreliable") && value["f32_unreliable"] != json(false);
  return output;
}

// Where to compare, as a mask that broadcasts over the leading dimensions of the output: "NAME != INT" (an
// input) or "rows A..B" (of the first dimension).
at::Tensor where_mask(const Case& item, const Output& output, const at::Tensor& expected) {
  std::smatch match;
  at::Tensor mask;
  if (std::regex_search(output.only_where, match, std::regex(R"(^(\w+) != (-?\d+))"))) {
    mask = item.tensor(match[1]).ne(std::stol(match[2]));
  } else if (std::regex_search(output.only_where, match, std::regex(R"(^rows (\d+)\.\.(\d+))"))) {
    const at::Tensor row = at::arange(expected.size(0));
    mask = row.ge(std::stol(match[1])).logical_and(row.le(std::stol(match[2])));
  } else {
    throw InputError(fmt::format("{}: cannot read the condition '{}'", item.id, output.only_where));
  }
  while (mask.dim() < expected.dim()) mask = mask.unsqueeze(-1);
  return mask.expand_as(expected);
}

std::string shape_text(const at::Tensor& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.sizes(), ", "));
}

}  // namespace

bool Case::has(const std::string& name) const {
  return file->tensors.contains(id + "/" + name);
}

at::Tensor Case::tensor(const std::string& name) const {
  const auto found = file->tensors.find(id + "/" + name);
  check<InputError>(found != file->tensors.end(), "{}: no tensor {}/{}", folder, id, name);
  return found->second;
}

std::vector<std::string> folders() {
  std::vector<std::string> found;
  add_folder(std::string(PERFORMER_SOURCE_DIR) + "/tests/golden/recorded", found);
  add_folder(std::string(PERFORMER_SOURCE_DIR) + "/../shared/golden", found);
  const char* given = std::getenv("PERFORMER_GOLDEN");
  if (given == nullptr) return found;
  std::stringstream paths(given);
  for (std::string path; std::getline(paths, path, ':');) {
    const size_t before = found.size();
    add_folder(path, found);
    check<InputError>(found.size() > before, "PERFORMER_GOLDEN: {} has no index.json, nor has a folder in it",
                      path);
  }
  return found;
}

std::vector<Case> load_folder(const std::string& folder, const std::string& group) {
  const json index = json::parse(read_file(folder + "/index.json"));
  check<InputError>(index.value("schema", "") == "golden-1", "{}/index.json: schema is not golden-1", folder);
  std::map<std::string, std::shared_ptr<const TensorFile>> files;
  std::vector<Case> cases;
  for (const json& entry : index.at("cases")) {
    if (!group.empty() && entry.at("group") != group) continue;
    Case item;
    item.id = entry.at("id");
    item.group = entry.at("group");
    item.function = entry.value("function", "");
    item.folder = folder;
    item.options = entry.value("options", json::object());
    item.entry = entry;
    auto& file = files[entry.at("file")];
    if (!file) {
      file = std::make_shared<const TensorFile>(
          read_safetensors(folder + "/" + entry.at("file").get<std::string>()));
    }
    item.file = file;
    for (const auto& [name, value] : entry.at("inputs").items()) item.inputs.push_back(name);
    for (const auto& [name, value] : entry.at("outputs").items())
      item.outputs[name] = read_output(name, value);
    cases.push_back(std::move(item));
  }
  return cases;
}

std::string difference(const Case& item, const std::string& name, const at::Tensor& actual) {
  const auto found = item.outputs.find(name);
  check<InputError>(found != item.outputs.end(), "{}: no recorded output {}", item.id, name);
  const Output& output = found->second;
  const bool in_double = actual.scalar_type() == at::kDouble;
  const bool has_double = !output.exact && !output.float64_name.empty();
  if (output.f32_unreliable && !in_double && !has_double)
    return "";  // the reference has no trustworthy value

  at::Tensor expected = item.tensor(has_double ? output.float64_name : name).to(at::kDouble);
  // A float32 result cannot hold what lies beyond its range: infinity of the same sign is right.
  if (!in_double) {
    const at::Tensor beyond = expected.abs().gt(std::numeric_limits<float>::max());
    expected = at::where(beyond, expected.sign() * HUGE_VAL, expected);
  }
  const at::Tensor result = actual.detach().to(at::kCPU, at::kDouble);
  if (!expected.sizes().equals(result.sizes())) {
    return fmt::format("{} {}: shape {}, expected {}", item.id, name, shape_text(result),
                       shape_text(expected));
  }
  if (expected.numel() == 0) return "";
  const bool strict =
      in_double && has_double;  // a float32 recording cannot be met more closely than float32 allows
  const double atol = output.exact ? 0 : strict ? output.atol64 : output.atol32;
  const double rtol = output.exact ? 0 : strict ? output.rtol64 : output.rtol32;
  const at::Tensor same = result.eq(expected).logical_or(result.isnan().logical_and(expected.isnan()));
  at::Tensor excess = (result - expected).abs() - (atol + rtol * expected.abs());
  excess = excess.nan_to_num(HUGE_VAL, HUGE_VAL, HUGE_VAL).masked_fill(same, -HUGE_VAL);
  if (!output.only_where.empty()) excess = excess.masked_fill(~where_mask(item, output, expected), -HUGE_VAL);
  const int64_t worst = excess.argmax().item<int64_t>();
  if (excess.flatten()[worst].item<double>() <= 0) return "";
  return fmt::format(
      "{} {}: {} of {} elements differ; the worst, at flat index {}, is {:.9g}, expected {:.9g} (atol "
      "{:.3g}, rtol {:.3g})",
      item.id, name, excess.gt(0).sum().item<int64_t>(), expected.numel(), worst,
      result.flatten()[worst].item<double>(), expected.flatten()[worst].item<double>(), atol, rtol);
}

Group::Group(const std::string& name, const std::string& system)
    : name_(system + (system.empty() ? "" : " ") + name) {
  for (const std::string& folder : folders()) {
    for (Case& item : load_folder(folder, name)) {
      if (item.entry.value("reference", "").find(system) != std::string::npos)
        cases_.push_back(std::move(item));
    }
  }
}

void Group::expect(const Case& item, const std::string& output, const at::Tensor& actual) {
  compared_[item.folder + "/" + item.id].insert(output);
  const std::string text = difference(item, output, actual);
  EXPECT_TRUE(text.empty()) << name_ << ": " << text;
}

void Group::known_other(const Case& item, const std::string& reason) {
  other_[item.folder + "/" + item.id] = reason;
}

void Group::finish() const {
  size_t outputs = 0;
  for (const auto& [id, names] : compared_) outputs += names.size();
  std::cout << "[  golden  ] " << name_ << ": " << outputs << " outputs of " << compared_.size()
            << " cases agree or are reported, " << other_.size() << " known to differ, of " << cases_.size()
            << "\n";
  for (const auto& [id, reason] : other_)
    std::cout << "[  golden  ]   differs: " << id << ": " << reason << "\n";
  for (const Case& item : cases_) {
    const std::string id = item.folder + "/" + item.id;
    if (other_.contains(id)) continue;
    const auto found = compared_.find(id);
    for (const auto& [name, output] : item.outputs) {
      EXPECT_TRUE(found != compared_.end() && found->second.contains(name))
          << id << ": output " << name << " was neither compared nor declared as differing";
    }
  }
}

void run_group(const std::string& name, const std::string& system,
               const std::function<void(Group&, const Case&)>& body) {
  Group group(name, system);
  if (group.empty()) GTEST_SKIP() << kMissing;
  for (const Case& item : group.cases()) {
    try {
      body(group, item);
    } catch (const std::exception& error) {
      ADD_FAILURE() << item.folder << "/" << item.id << ": " << error.what();
    }
  }
  group.finish();
}

}  // namespace performer::golden
