// SPDX-License-Identifier: Apache-2.0
// Attention kinds to compare linear attention with: attention-free Transformers (arXiv 2105.14103), local
// windows, and the best k keys of each query.
#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "performer/base/error.h"
#include "performer/ops/dropout.h"
#include "performer/references/fast_transformers/layers_attention.h"

namespace performer::references::fast_transformers {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
constexpr int64_t kAftBlock = 16;  // tokens whose pairwise weights aft-simple holds at a time

void check_aft_sizes(const AttentionRequest& request, const char* kind) {
  check<UsageError>(
      request.sizes.query_dimensions == request.sizes.value_dimensions,
      "attention '{}' gates values by queries and needs query_dimensions ({}) equal to value_dimensions ({})",
      kind, request.sizes.query_dimensions, request.sizes.value_dimensions);
}

// Softmax over the last dimension of scores where `keep` is true, NaN where nothing is kept.
at::Tensor softmax_or_nan(const at::Tensor& scores, const at::Tensor& keep) {
  return (scores + at::zeros(keep.sizes(), scores.options()).masked_fill(keep.logical_not(), kMinusInfinity))
      .softmax(-1);
}

// Softmax over dimension `dim` of `scores` where `keep` is true (undefined: everywhere), 0 where nothing is
// kept.
at::Tensor masked_softmax(const at::Tensor& scores, const at::Tensor& keep, int64_t dim) {
  if (!keep.defined()) return scores.softmax(dim);
  const at::Tensor empty = keep.any(dim, /*keepdim=*/true).logical_not();
  const at::Tensor weights =
      scores.masked_fill(keep.logical_or(empty).logical_not(), kMinusInfinity).softmax(dim);
  return weights.masked_fill(empty, 0);
}

// out_i = sigmoid(q_i) * sum_j exp(k_j) v_j / sum_j exp(k_j), element by element, over all j or j <= i.
class AftSimpleInner : public InnerAttention {
 public:
  AftSimpleInner() : InnerAttention("aft-simple") {}

  at::Tensor forward(const InnerInputs& in) override {
    check<UsageError>(in.mask.all_ones() || in.mask.lower_triangular(),
                      "attention 'aft-simple' follows a mask of all ones or a lower triangular one; use "
                      "aft-full for others");
    const at::Tensor keep = key_mask(in.key_lengths, in.key);
    const at::Tensor gate = in.query.sigmoid();
    if (in.mask.all_ones()) return gate * average(in.key, in.value, keep);
    check<UsageError>(
        in.query.size(1) == in.key.size(1),
        "causal attention 'aft-simple' needs as many keys as queries, found {} queries and {} keys",
        in.query.size(1), in.key.size(1));
    // A finite value keeps differences of masked keys from being inf - inf.
    const at::Tensor key = keep.defined() ? in.key.masked_fill(keep.logical_not(), -1e30) : in.key;
    const at::Tensor value = keep.defined() ? in.value.masked_fill(keep.logical_not(), 0) : in.value;
    return gate * running_average(key, value);
  }

  at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  AttentionState& state) override {
    at::Tensor &mean = state.linear.s, &log_sum = state.linear.z;
    if (!state.linear.defined()) {
      mean = value;
      log_sum = key;
    } else {
      check<UsageError>(mean.size(0) == query.size(0),
                        "the batch size changed during iteration, from {} to {}; start with an empty state",
                        mean.size(0), query.size(0));
      const at::Tensor total = at::logaddexp(log_sum, key);
      mean = (log_sum - total).exp() * mean + (key - total).exp() * value;
      log_sum = total;
    }
    return query.sigmoid() * mean;
  }

  AttentionState summarize(const at::Tensor& key, const at::Tensor& value,
                           const AttentionMask& key_lengths) override {
    AttentionState state;
    const at::Tensor keep = key_mask(key_lengths, key);
    state.linear.s = average(key, value, keep).squeeze(1);
    return state;
  }

  at::Tensor cross_step(const at::Tensor& query, const AttentionState& memory) override {
    return query.sigmoid() * memory.linear.s;
  }

 private:
  // Bool [B, S, 1, 1], undefined when all keys are there.
  static at::Tensor key_mask(const AttentionMask& lengths, const at::Tensor& key) {
    check<UsageError>(lengths.rows() == key.size(0) && lengths.columns() == key.size(1),
                      "key lengths must be [{}, {}] (batch, tokens), found [{}, {}]", key.size(0),
                      key.size(1), lengths.rows(), lengths.columns());
    return lengths.all_ones() ? at::Tensor() : lengths.bool_matrix().unsqueeze(-1).unsqueeze(-1);
  }

  static at::Tensor average(const at::Tensor& key, const at::Tensor& value, const at::Tensor& keep) {
    return (masked_softmax(key, keep, 1) * value).sum(1, /*keepdim=*/true);
  }

  // [B, T, H, D]. Row i's terms are shifted by the log-sum of the keys up to i, so the largest is at most 1
  // and nothing of the future is looked at; blocks hand on their last row.
  static at::Tensor running_average(const at::Tensor& key, const at::Tensor& value) {
    const at::Tensor shift = key.detach().logcumsumexp(1);
    const at::Tensor terms = at::stack({value, at::ones_like(value)}, -1);  // numerator and denominator
    std::vector<at::Tensor> blocks;
    at::Tensor carried;  // [B, 1, H, D, 2], in the scale of the last row so far
    for (int64_t begin = 0; begin < key.size(1); begin += kAftBlock) {
      const int64_t length = std::min(kAftBlock, key.size(1) - begin);
      const at::Tensor s = shift.narrow(1, begin, length);
      const at::Tensor seen = at::ones({length, length}, s.options().dtype(at::kBool)).tril();
      const at::Tensor exponents =
          (key.narrow(1, begin, length).unsqueeze(1) - s.unsqueeze(2))
              .masked_fill(seen.logical_not().unsqueeze(-1).unsqueeze(-1), kMinusInfinity);
      at::Tensor sums = (exponents.exp().unsqueeze(-1) * terms.narrow(1, begin, length).unsqueeze(1)).sum(2);
      if (carried.defined()) {
        sums = sums + (shift.narrow(1, begin - 1, 1) - s).exp().unsqueeze(-1) * carried;
      }
      carried = sums.narrow(1, length - 1, 1);
      blocks.push_back(sums);
    }
    if (blocks.empty()) return value;
    const at::Tensor sums = at::cat(blocks, 1);
    return sums.select(-1, 0) / sums.select(-1, 1);
  }
};

// out_i = sigmoid(q_i) * sum_j softmax_j(k_j + u_i . v_j) value_j with learned vectors u_i, v_j for
// positions. (The reference multiplies keys by the position weight where the paper adds it.)
class AftFullInner : public InnerAttention {
 public:
  explicit AftFullInner(const InnerAttentionOptions& options)
      : InnerAttention("aft-full"), longest_(options.max_sequence_length) {
    check<UsageError>(longest_ >= 1 && options.aft_parameterization >= 1,
                      "max_sequence_length ({}) and aft_parameterization ({}) must be at least 1", longest_,
                      options.aft_parameterization);
    u_ = register_parameter("u", at::randn({longest_, options.aft_parameterization}) * 0.01);
    v_ = register_parameter("v", at::randn({longest_, options.aft_parameterization}) * 0.01);
  }

  at::Tensor forward(const InnerInputs& in) override {
    const int64_t queries = in.query.size(1), keys = in.key.size(1);
    check<UsageError>(
        std::max(queries, keys) <= longest_,
        "attention 'aft-full' has position weights for {} tokens, found {}; raise max_sequence_length",
        longest_, std::max(queries, keys));
    const at::Tensor bias =
        at::matmul(u_.narrow(0, 0, queries), v_.narrow(0, 0, keys).t()).to(in.key.scalar_type());
    at::Tensor keep = visible_keys(in);  // [B, 1, L, S] -> [B, L, S, 1, 1]
    if (keep.defined()) keep = keep.squeeze(1).unsqueeze(-1).unsqueeze(-1);
    const at::Tensor weights =
        masked_softmax(in.key.unsqueeze(1) + bias.unsqueeze(-1).unsqueeze(-1), keep, 2);
    return in.query.sigmoid() * (weights * in.value.unsqueeze(1)).sum(2);
  }

 private:
  int64_t longest_;
  at::Tensor u_, v_;  // [longest, rank]
};

// Softmax attention to `context` keys around a query's own place: keys i - floor(c / 2) to i + ceil(c / 2)
// - 1.
class LocalInner : public InnerAttention {
 public:
  explicit LocalInner(const AttentionRequest& request)
      : InnerAttention("local"),
        context_(request.options.local_context),
        temperature_(softmax_temperature(request.options, request.sizes)),
        dropout_(request.options.attention_dropout) {
    check<UsageError>(context_ >= 1, "attention 'local' needs local_context of at least 1, found {}",
                      context_);
  }

  at::Tensor forward(const InnerInputs& in) override {
    check<UsageError>(
        in.key_lengths.rows() == in.key.size(0) && in.key_lengths.columns() == in.key.size(1) &&
            in.mask.rows() == in.query.size(1) && in.mask.columns() == in.key.size(1),
        "attention 'local': key lengths must be [{}, {}] and the mask [{}, {}], found [{}, {}] and [{}, {}]",
        in.key.size(0), in.key.size(1), in.query.size(1), in.key.size(1), in.key_lengths.rows(),
        in.key_lengths.columns(), in.mask.rows(), in.mask.columns());
    const int64_t queries = in.query.size(1), keys = in.key.size(1);
    const at::Tensor valid = in.key_lengths.all_ones() ? at::Tensor() : in.key_lengths.bool_matrix();
    const at::Tensor matrix =
        in.mask.all_ones() || in.mask.lower_triangular() ? at::Tensor() : in.mask.bool_matrix();
    std::vector<at::Tensor> blocks;
    for (int64_t begin = 0; begin < queries;
         begin += context_) {  // `context` queries see less than two contexts of keys
      const int64_t rows = std::min(context_, queries - begin);
      const int64_t first = std::clamp<int64_t>(begin - context_ / 2, 0, keys);
      const int64_t end = std::clamp<int64_t>(begin + rows - 1 + (context_ + 1) / 2, first, keys);
      const at::Tensor i = at::arange(begin, begin + rows).unsqueeze(1), j = at::arange(first, end);
      const at::Tensor near = (j >= i - context_ / 2).logical_and(j < i + (context_ + 1) / 2);
      at::Tensor keep = near;
      if (matrix.defined())
        keep = keep.logical_and(matrix.narrow(0, begin, rows).narrow(1, first, end - first));
      if (!in.mask.all_ones() && !matrix.defined()) keep = keep.logical_and(j <= i);
      keep = keep.unsqueeze(0).unsqueeze(0);
      if (valid.defined())
        keep = keep.logical_and(valid.narrow(1, first, end - first).unsqueeze(1).unsqueeze(1));
      const at::Tensor q = in.query.narrow(1, begin, rows), k = in.key.narrow(1, first, end - first);
      at::Tensor weights = masked_softmax(at::einsum("nlhe,nshe->nhls", {q, k}) * temperature_, keep, -1);
      // The window is always `context` wide, and without a key in it all scores are equal.
      const at::Tensor window = near.to(weights.scalar_type()) / static_cast<double>(context_);
      weights = at::where(keep.any(-1, /*keepdim=*/true), weights, window);
      if (is_training() && dropout_ > 0) weights = ops::dropout(weights, dropout_);
      blocks.push_back(at::einsum("nhls,nshd->nlhd", {weights, in.value.narrow(1, first, end - first)}));
    }
    return blocks.empty() ? in.value.narrow(1, 0, 0) : at::cat(blocks, 1);
  }

 private:
  int64_t context_;
  double temperature_, dropout_;
};

// Softmax over the k visible keys of largest score.
class ExactTopKInner : public InnerAttention {
 public:
  explicit ExactTopKInner(const AttentionRequest& request)
      : InnerAttention("exact-topk"),
        topk_(request.options.topk),
        temperature_(softmax_temperature(request.options, request.sizes)),
        dropout_(request.options.attention_dropout) {
    check<UsageError>(topk_ >= 1, "attention 'exact-topk' needs topk of at least 1, found {}", topk_);
  }

  at::Tensor forward(const InnerInputs& in) override {
    at::Tensor scores = at::einsum("nlhe,nshe->nhls", {in.query, in.key}) * temperature_;
    const at::Tensor keep = visible_keys(in);
    const at::Tensor ranked =
        keep.defined() ? scores.masked_fill(keep.logical_not(), kMinusInfinity) : scores;
    const at::Tensor best =
        std::get<1>(ranked.detach().topk(std::min(topk_, in.key.size(1)), -1, true, /*sorted=*/false));
    at::Tensor chosen = at::zeros(scores.sizes(), scores.options().dtype(at::kBool)).scatter(-1, best, true);
    if (keep.defined()) chosen = chosen.logical_and(keep);
    at::Tensor weights = softmax_or_nan(scores, chosen);
    if (is_training() && dropout_ > 0) weights = ops::dropout(weights, dropout_);
    if (in.weights != nullptr) *in.weights = weights;
    return at::einsum("nhls,nshd->nlhd", {weights, in.value});
  }

 private:
  int64_t topk_;
  double temperature_, dropout_;
};

}  // namespace

InnerAttentionPtr make_aft_simple(const AttentionRequest& request) {
  check_aft_sizes(request, "aft-simple");
  return std::make_shared<AftSimpleInner>();
}
InnerAttentionPtr make_aft_full(const AttentionRequest& request) {
  check_aft_sizes(request, "aft-full");
  return std::make_shared<AftFullInner>(request.options);
}
InnerAttentionPtr make_local(const AttentionRequest& request) {
  return std::make_shared<LocalInner>(request);
}
InnerAttentionPtr make_exact_topk(const AttentionRequest& request) {
  return std::make_shared<ExactTopKInner>(request);
}

}  // namespace performer::references::fast_transformers
