// SPDX-License-Identifier: Apache-2.0
// Softmax attention by its definition under any mask of pairs, as an independent statement of sparse kinds.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <optional>
#include <vector>

#include "performer/nn/attention/kind.h"
#include "tests/nn/kind_properties.h"

namespace performer::nn::dense {

// Whether the query at position i of a sequence of `tokens` sees the key at position j.
using Sees = std::function<bool(int64_t i, int64_t j)>;

// Bool [T, T].
inline at::Tensor matrix(int64_t tokens, const Sees& sees) {
  at::Tensor seen = at::zeros({tokens, tokens}, at::kBool);
  auto entries = seen.accessor<bool, 2>();
  for (int64_t i = 0; i < tokens; ++i) {
    for (int64_t j = 0; j < tokens; ++j) entries[i][j] = sees(i, j);
  }
  return seen;
}

// softmax(scale q k) v of one head, query and key [T, D], value [T, E], over what `seen` [T, T] keeps; rows
// that see nothing are 0. Differentiable.
inline at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const at::Tensor& seen, double scale) {
  if (query.size(0) == 0) return at::mm(query, key.t()).mm(value);
  const at::Tensor scores = (at::mm(query, key.t()) * scale).masked_fill(seen.logical_not(), -1e300);
  const at::Tensor largest = std::get<0>(scores.detach().max(1, /*keepdim=*/true));
  const at::Tensor weights = (scores - largest).exp() * seen.to(scores.scalar_type());
  const at::Tensor total = weights.sum(1, /*keepdim=*/true);
  return at::mm(weights, value) / total.masked_fill(total == 0, 1);
}

// A segment of one head of one sequence; part() takes it out of [B, T, H, D].
struct Segment {
  int64_t row = 0, head = 0, begin = 0, end = 0;

  at::Tensor part(const at::Tensor& x) const { return x.select(0, row).select(1, head).slice(0, begin, end); }
  // Bool [end - begin]: the tokens that a mask [B, T] keeps.
  at::Tensor kept(const std::optional<at::Tensor>& mask) const {
    return mask ? mask->select(0, row).slice(0, begin, end) : at::ones({end - begin}, at::kBool);
  }
};

// Rows [B, T, H, E] of what `rows_of` gives for each segment, [end - begin, E], all sequences cut at
// `bounds`.
inline at::Tensor rows_of_segments(const properties::Tokens& in, const std::vector<int64_t>& bounds,
                                   const std::function<at::Tensor(const Segment&)>& rows_of) {
  std::vector<at::Tensor> rows;
  for (int64_t b = 0; b < in.query.size(0); ++b) {
    std::vector<at::Tensor> heads;
    for (int64_t h = 0; h < in.query.size(2); ++h) {
      std::vector<at::Tensor> segments;
      for (size_t n = 0; n + 1 < bounds.size(); ++n)
        segments.push_back(rows_of({b, h, bounds[n], bounds[n + 1]}));
      heads.push_back(at::cat(segments));
    }
    rows.push_back(at::stack(heads, 1));
  }
  return at::stack(rows);
}

inline std::vector<bool> flags(const at::Tensor& kept) {
  std::vector<bool> all;
  for (int64_t t = 0; t < kept.size(0); ++t) all.push_back(kept[t].item<bool>());
  return all;
}

// Rows and gradients of a function of queries, keys and values that all have gradients.
inline std::vector<at::Tensor> with_gradients(
    const properties::Tokens& given, const std::function<at::Tensor(const properties::Tokens&)>& function) {
  properties::Tokens in{given.query.clone(), given.key.clone(), given.value.clone()};
  for (at::Tensor* x : {&in.query, &in.key, &in.value}) x->set_requires_grad(true);
  const at::Tensor rows = function(in);
  const at::Tensor weight = at::sin(at::arange(rows.numel(), at::kDouble)).view(rows.sizes());
  std::vector<at::Tensor> all = torch::autograd::grad({(rows * weight).sum()}, {in.query, in.key, in.value},
                                                      {}, false, false, /*allow_unused=*/true);
  for (at::Tensor& gradient : all) {
    if (!gradient.defined()) gradient = at::zeros({1});
  }
  all.push_back(rows.detach());
  return all;
}

inline void expect_same(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& expected,
                        const std::string& what, double tolerance = 1e-10) {
  const char* names[] = {"gradient of queries", "gradient of keys", "gradient of values", "rows"};
  for (size_t n = 0; n < expected.size(); ++n) {
    ASSERT_EQ(found[n].sizes(), expected[n].sizes()) << what << " " << names[n];
    if (found[n].numel() == 0) continue;
    EXPECT_LT((found[n] - expected[n]).abs().max().item<double>(), tolerance) << what << ": " << names[n];
  }
}

inline properties::Tokens random_tokens(int64_t batch, int64_t tokens, int64_t heads, int64_t size) {
  const auto draw = [&] { return at::randn({batch, tokens, heads, size}, at::kDouble); };
  at::Tensor query = draw(), key = draw(), value = draw();
  return {query, key, value};
}

}  // namespace performer::nn::dense
