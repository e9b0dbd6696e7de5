// SPDX-License-Identifier: Apache-2.0
#include "performer/references/protein_lm/metrics.h"

#include <ATen/ATen.h>

#include "performer/base/error.h"
#include "performer/train/loss.h"

namespace performer::references::protein_lm {
namespace {

at::Tensor of_tokens(const at::Tensor& logits, const at::Tensor& targets, const Weights& weights) {
  return weights.tokens ? weights.tokens->to(logits.scalar_type())
                        : at::ones_like(targets, logits.scalar_type());
}

at::Tensor of_both(const at::Tensor& logits, const at::Tensor& targets, const Weights& weights) {
  const at::Tensor tokens = of_tokens(logits, targets, weights);
  return weights.examples ? tokens * weights.examples->to(logits.scalar_type()).unsqueeze(1) : tokens;
}

}  // namespace

Sums cross_entropy(const at::Tensor& logits, const at::Tensor& targets, const Weights& weights) {
  at::Tensor counted = of_tokens(logits, targets, weights);
  if (!weights.tokens) counted = counted * targets.ge(0).logical_and(targets.lt(logits.size(-1)));
  return {train::weighted_cross_entropy(logits, targets, of_both(logits, targets, weights)), counted.sum()};
}

Sums accuracy(const at::Tensor& logits, const at::Tensor& targets, const Weights& weights) {
  return {train::weighted_correct(logits, targets, of_both(logits, targets, weights)),
          of_tokens(logits, targets, weights).sum()};
}

Sums soft_accuracy(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& substitution,
                   const Weights& weights) {
  return {train::weighted_soft_correct(logits, targets, of_both(logits, targets, weights), substitution),
          of_tokens(logits, targets, weights).sum()};
}

Sums squared_error(const at::Tensor& predictions, const at::Tensor& targets, const at::Tensor& weights) {
  return {(weights * (predictions - targets).square()).sum(), weights.sum()};
}

at::Tensor perplexity(const at::Tensor& mean_loss) {
  return mean_loss.exp().clamp_max(1e4);
}

std::map<std::string, at::Tensor> combine_metrics(const std::map<std::string, at::Tensor>& steps) {
  const auto denominator = steps.find("denominator");
  check<UsageError>(denominator != steps.end(),
                    "metrics of steps are combined by their denominator, and there is none");
  const at::Tensor total = denominator->second.sum();
  std::map<std::string, at::Tensor> combined;
  for (const auto& [name, values] : steps) {
    if (name == "denominator") continue;
    combined[name] = name == "learning_rate" ? values.mean() : values.sum() / total;
  }
  if (const auto loss = combined.find("loss"); loss != combined.end()) {
    combined["perplexity"] = perplexity(loss->second);
  }
  return combined;
}

}  // namespace performer::references::protein_lm
