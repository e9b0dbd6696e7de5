// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "performer/references/protein_lm/metrics.h"
#include "tests/golden/golden.h"

namespace performer::golden {
namespace {

namespace protein_lm = references::protein_lm;

std::optional<at::Tensor> optional_input(const Case& item, const char* name, at::ScalarType type) {
  std::optional<at::Tensor> input;
  if (item.has(name)) input = item.tensor(name).to(type);
  return input;
}

void run_token_metrics(Group& group, const Case& item, at::ScalarType type) {
  const at::Tensor logits = item.tensor("logits").to(type).clone().requires_grad_(true);
  const at::Tensor targets = item.tensor("targets").to(at::kLong);
  const protein_lm::Weights weights{.tokens = optional_input(item, "weights", type),
                                    .examples = optional_input(item, "example_weights", type)};
  std::map<std::string, at::Tensor> found;
  const protein_lm::Sums loss = protein_lm::cross_entropy(logits, targets, weights);
  const protein_lm::Sums correct = protein_lm::accuracy(logits, targets, weights);
  found["loss_sum"] = loss.sum;
  found["loss_normalizer"] = loss.normalizer;
  found["correct_sum"] = correct.sum;
  found["accuracy_normalizer"] = correct.normalizer;
  found["mean_loss"] = loss.sum / loss.normalizer;
  found["mean_accuracy"] = correct.sum / correct.normalizer;
  found["perplexity"] = protein_lm::perplexity(found["mean_loss"]);
  found["train_mean_loss"] = loss.sum / loss.normalizer.clamp_min(1e-9);
  found["train_mean_loss"].backward();
  found["dlogits"] = logits.grad();
  if (item.has("matrix")) {
    const protein_lm::Sums soft =
        protein_lm::soft_accuracy(logits, targets, item.tensor("matrix").to(type), weights);
    found["soft_correct_sum"] = soft.sum;
    found["soft_normalizer"] = soft.normalizer;
  }
  for (const auto& [name, output] : item.outputs) {
    ASSERT_TRUE(found.contains(name)) << item.id << ": no metric " << name;
    group.expect(item, name, found.at(name));
  }
}

void run_squared_error(Group& group, const Case& item, at::ScalarType type) {
  const protein_lm::Sums error = protein_lm::squared_error(
      item.tensor("predictions").to(type), item.tensor("targets").to(type), item.tensor("weights").to(type));
  group.expect(item, "loss_sum", error.sum);
  group.expect(item, "normalizer", error.normalizer);
}

void run_combination(Group& group, const Case& item, at::ScalarType type) {
  std::map<std::string, at::Tensor> steps;
  for (const std::string& name : item.inputs) steps[name] = item.tensor(name).to(type);
  for (const auto& [name, value] : protein_lm::combine_metrics(steps))
    group.expect(item, "combined_" + name, value);
}

TEST(Golden, LossesAndMetrics) {
  run_group("plm_metrics", [&](Group& group, const Case& item) {
    for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
      if (item.has("logits")) {
        run_token_metrics(group, item, type);
      } else if (item.has("predictions")) {
        run_squared_error(group, item, type);
      } else {
        run_combination(group, item, type);
      }
    }
  });
}

}  // namespace
}  // namespace performer::golden
