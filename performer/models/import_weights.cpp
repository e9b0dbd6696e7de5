// SPDX-License-Identifier: Apache-2.0
#include "performer/models/import_weights.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <set>
#include <vector>

#include "performer/base/error.h"

namespace performer {

void import_weights(torch::nn::Module& module, const std::map<std::string, at::Tensor>& weights,
                    const std::function<std::string(const std::string&)>& rename) {
  std::map<std::string, at::Tensor> ours;
  std::set<std::string> missing;
  for (const auto& item : module.named_parameters()) {
    ours.emplace(item.key(), item.value());
    missing.insert(item.key());
  }
  for (const auto& item : module.named_buffers()) ours.emplace(item.key(), item.value());

  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  for (const auto& [stored, tensor] : weights) {
    const std::string name = rename ? rename(stored) : stored;
    if (name.empty()) continue;
    const auto found = ours.find(name);
    check<InputError>(found != ours.end(),
                      "weights to import: tensor '{}' ({}) has no place in this model; it has {}", stored,
                      name, [&] {
                        std::vector<std::string> names;
                        for (const auto& entry : ours) names.push_back(entry.first);
                        return fmt::format("{}", fmt::join(names, ", "));
                      }());
    check<InputError>(found->second.sizes() == tensor.sizes(),
                      "weights to import: tensor '{}' has shape [{}], but '{}' of this model is [{}]", stored,
                      fmt::join(tensor.sizes(), ", "), name, fmt::join(found->second.sizes(), ", "));
    copies.emplace_back(found->second, tensor);
    missing.erase(name);
  }
  check<InputError>(missing.empty(), "weights to import: nothing for {}", fmt::join(missing, ", "));
  const at::NoGradGuard no_grad;
  for (auto& [to, from] : copies) to.copy_(from);
}

}  // namespace performer
