// SPDX-License-Identifier: Apache-2.0
// Losses and metrics with the normalizers that google-research's protein_lm divides them by (utils.py
// compute_metrics, evaluation.py combine_metrics). Ours (loss.h) are divided by the weight of the targets
// that count, and perplexities are not cut.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <optional>
#include <string>

namespace performer::references::protein_lm {

struct Sums {
  at::Tensor sum, normalizer;  // scalars; their quotient is the mean
};

// Weights of tokens [B, T] and of whole examples [B]; without the former every target counts 1.
struct Weights {
  std::optional<at::Tensor> tokens = {}, examples = {};
};

// logits [B, T, V], targets int64 [B, T]. Examples' weights multiply the sums but never the normalizers.
// Targets outside the vocabulary add nothing; without weights the cross entropy's normalizer leaves them out,
// accuracy's counts them.
Sums cross_entropy(const at::Tensor& logits, const at::Tensor& targets, const Weights& weights = {});
Sums accuracy(const at::Tensor& logits, const at::Tensor& targets, const Weights& weights = {});
// Partial credit by a substitution matrix [V, V], see weighted_soft_correct().
Sums soft_accuracy(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& substitution,
                   const Weights& weights = {});
// Of the regression head: weights (predictions - targets)^2, all [B, T].
Sums squared_error(const at::Tensor& predictions, const at::Tensor& targets, const at::Tensor& weights);

// exp of a mean loss, at most 10^4.
at::Tensor perplexity(const at::Tensor& mean_loss);

// Metrics of many steps as one: `steps` maps a name to its values [steps]. The sum of each is divided by the
// sum of "denominator", even of those that are no sums over tokens; "learning_rate" is averaged, and
// "perplexity" follows from "loss". Throws UsageError without a denominator.
std::map<std::string, at::Tensor> combine_metrics(const std::map<std::string, at::Tensor>& steps);

}  // namespace performer::references::protein_lm
