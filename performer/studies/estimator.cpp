// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/estimator.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "performer/base/error.h"
#include "performer/nn/attention/kind.h"

namespace performer::studies {

Estimator parse_estimator(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ':');) parts.push_back(part);
  check<UsageError>(!parts.empty() && parts.size() <= 3,
                    "'{}' is not KIND, KIND:PROJECTION or KIND:PROJECTION:ROW_NORM", text);
  Estimator estimator{text, {}};
  set_field("attention", estimator.attention, "kind", parts[0]);
  if (parts.size() > 1) set_field("attention", estimator.attention, "projection", parts[1]);
  if (parts.size() > 2) set_field("attention", estimator.attention, "row_norm", parts[2]);
  nn::require(parts[0], nn::find_kind(parts[0]).capabilities.linear,
              "features that estimate softmax attention",
              "choose a favor-* kind or one of a reference system");
  return estimator;
}

void set_features(AttentionConfig& attention, int64_t features) {
  if (nn::has_option(nn::find_kind(attention.kind), "features")) attention.set("features", features);
}

bool estimates_softmax(const AttentionConfig& attention) {
  const nn::AttentionKind& kind = nn::find_kind(attention.kind);
  if (!kind.feature_map) return false;
  const std::string map = kind.feature_map(attention).map;
  const ops::FeatureMapTraits traits = ops::feature_map_traits(map);
  return traits.exponential && !traits.learned && map != "expmod";  // expmod: of inputs of one norm only
}

std::vector<std::string> default_estimators() {
  std::vector<std::string> names;
  for (const std::string& kind : nn::kind_names()) {
    AttentionConfig attention;
    attention.kind = kind;
    if (estimates_softmax(attention)) names.push_back(kind);
  }
  for (const char* projection : {"iid", "hadamard", "givens", "simplex", "orthogonal:sqrt-d"}) {
    names.push_back(fmt::format("favor-softmax:{}", projection));
  }
  names.push_back("favor-relu:orthogonal");
  return names;
}

at::Tensor exact_matrix(const Sample& sample) {
  const double scale = 1 / std::sqrt(static_cast<double>(sample.query.size(-1)));
  at::Tensor scores = at::einsum("bihd,bjhd->bhij", {sample.query, sample.key}) * scale;
  if (sample.causal) {
    const at::Tensor future = at::ones({scores.size(2), scores.size(3)}, at::kBool).triu(1);
    scores = scores.masked_fill(future, -std::numeric_limits<double>::infinity());
  }
  return scores.softmax(-1);
}

at::Tensor estimated_matrix(const Sample& sample, const Estimator& estimator, int64_t features,
                            int64_t draw) {
  AttentionConfig attention = estimator.attention;
  set_features(attention, features);
  const int64_t keys = sample.key.size(1), heads = sample.key.size(2);
  const auto layer = nn::make_attention(attention, {heads, sample.key.size(-1), sample.causal, /*layer=*/0});
  if (draw > 0) layer->redraw(draw);
  const at::Tensor indicators = at::eye(keys, sample.value.options())
                                    .unsqueeze(0)
                                    .unsqueeze(2)
                                    .expand({sample.key.size(0), keys, heads, keys});
  ops::AttentionInputs inputs;
  inputs.query = sample.query;
  inputs.key = sample.key;
  inputs.causal = sample.causal;
  if (sample.causal) {  // a trained layer has moments; here they are those of the sample
    layer->train();
    inputs.value = indicators.narrow(-1, 0, 1);
    layer->forward(inputs);
    layer->after_step();
  }
  layer->eval();
  inputs.value = indicators.contiguous();
  return layer->forward(inputs).transpose(1, 2);
}

at::Tensor uniform_matrix(const Sample& sample) {
  const int64_t queries = sample.query.size(1), keys = sample.key.size(1);
  at::Tensor weights = at::ones({queries, keys}, sample.value.options());
  if (sample.causal) weights = weights.tril();
  weights = weights / weights.sum(-1, /*keepdim=*/true);
  return weights.expand({sample.query.size(0), sample.query.size(2), queries, keys});
}

MatrixError matrix_error(const at::Tensor& estimated, const at::Tensor& exact, const at::Tensor& value) {
  const auto norm = [](const at::Tensor& x) { return x.flatten(2).norm(2, -1); };  // of each head
  const at::Tensor values = value.transpose(1, 2);                                 // [B, H, S, E]
  const at::Tensor difference = estimated - exact;
  return {norm(at::matmul(difference, values)) / norm(at::matmul(exact, values)),
          norm(difference) / norm(exact), difference.abs().sum(-1).mean(-1) / 2};
}

}  // namespace performer::studies
