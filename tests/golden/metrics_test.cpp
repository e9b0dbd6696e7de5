// SPDX-License-Identifier: Apache-2.0
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "performer/train/loss.h"
#include "tests/golden/golden.h"

namespace performer {
namespace {

struct Inputs {
  at::Tensor logits, targets, weights;  // weights include those of whole examples
  at::Tensor token_weights;
};

Inputs inputs(const golden::Case& item, at::ScalarType type) {
  Inputs in;
  in.logits = item.tensor("logits").to(type).clone().requires_grad_(true);
  in.targets = item.tensor("targets").to(at::kLong);
  in.token_weights = item.has("weights") ? item.tensor("weights").to(type) : at::ones_like(in.targets, type);
  in.weights = in.token_weights;
  if (item.has("example_weights"))
    in.weights = in.weights * item.tensor("example_weights").to(type).unsqueeze(1);
  return in;
}

// protein_lm divides by the token weights alone, even where examples are weighted too.
void run_metrics(golden::Group& group, const golden::Case& item, at::ScalarType type) {
  const Inputs in = inputs(item, type);
  const at::Tensor loss = weighted_cross_entropy(in.logits, in.targets, in.weights);
  const at::Tensor correct = weighted_correct(in.logits, in.targets, in.weights);
  group.expect(item, "loss_sum", loss.detach());
  group.expect(item, "correct_sum", correct);
  if (item.outputs.contains("mean_loss")) {
    const at::Tensor total = in.token_weights.sum();
    const at::Tensor mean = loss / total;
    group.expect(item, "mean_loss", mean.detach());
    group.expect(item, "mean_accuracy", correct / total);
    // The reference cuts perplexities at 10^4; reports of this program do not.
    group.expect(item, "perplexity", mean.detach().exp().clamp_max(1e4));
    const at::Tensor guarded = loss / total.clamp_min(1e-9);
    group.expect(item, "train_mean_loss", guarded.detach());
    guarded.backward();
    group.expect(item, "dlogits", in.logits.grad());
  }
  if (item.has("matrix")) {
    const at::Tensor soft = weighted_soft_correct(in.logits, in.targets, in.weights, item.tensor("matrix"));
    group.expect(item, "soft_correct_sum", soft);
  }
}

TEST(Golden, LossesAndMetrics) {
  golden::Group group("plm_metrics");
  if (group.empty()) GTEST_SKIP() << golden::kMissing;
  for (const golden::Case& item : group.cases()) {
    if (!item.has("logits")) {
      group.known_other(item, item.id == "mse"
                                  ? "squared errors: nothing here trains the regression head"
                                  : "sums of steps: every value is divided once, by its own weight");
      continue;
    }
    run_metrics(group, item, at::kFloat);
    run_metrics(group, item, at::kDouble);
  }
  group.finish();
}

}  // namespace
}  // namespace performer
