// SPDX-License-Identifier: Apache-2.0
#include "performer/train/representations.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "performer/base/error.h"
#include "performer/data/batches.h"
#include "performer/train/evaluation.h"

namespace performer::train {
namespace {

// Rows of length 1; a row of zeros stays.
at::Tensor directions(const at::Tensor& rows) {
  return rows / rows.norm(2, {1}, /*keepdim=*/true).clamp_min(std::numeric_limits<double>::min());
}

}  // namespace

at::Tensor sequence_representations(LanguageModel& model, const data::Corpus& corpus, const DataConfig& data,
                                    int64_t most) {
  model->eval();
  const at::NoGradGuard no_grad;
  // "plain" reads BOS x1 .. xn EOS, which masked models know, and hides nothing.
  const bool causal = model->model_config().objective == "causal";
  data::EvaluationStream stream(corpus, data, causal ? "causal" : "plain");
  std::vector<at::Tensor> rows;
  while (std::ssize(rows) < most) {
    const auto batch = stream.next();
    if (!batch) break;
    const at::Tensor hidden = model->hidden(to_tensors(*batch))[0].to(at::kDouble);
    for (int64_t i = 0; i < stream.count() && std::ssize(rows) < most; ++i) {
      const int64_t first_symbol = batch->cu_seqlens[static_cast<size_t>(i)] + 1;
      rows.push_back(hidden.narrow(0, first_symbol, std::ssize(corpus.tokens(stream.first() + i))).mean(0));
    }
  }
  return at::stack(rows);
}

Similarity similarity(const at::Tensor& found, const at::Tensor& wanted) {
  check(found.sizes() == wanted.sizes(), "representations of {} and {} sequences cannot be compared",
        found.size(0), wanted.size(0));
  const at::Tensor cosines = (directions(found) * directions(wanted)).sum(1);
  const at::Tensor errors = (found - wanted).norm(2, {1}) / wanted.norm(2, {1});
  return {cosines.mean().item<double>(), errors.mean().item<double>()};
}

double cosine_between_sequences(const at::Tensor& representations) {
  // The square of a sum of N directions is N ones and the cosines of all ordered pairs.
  const auto count = static_cast<double>(representations.size(0));
  if (count < 2) return std::numeric_limits<double>::quiet_NaN();
  const auto square = directions(representations).sum(0).square().sum().item<double>();
  return (square - count) / (count * (count - 1));
}

}  // namespace performer::train
