// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/attention/block_softmax.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>
#include <utility>

#include "performer/base/error.h"

namespace performer::nn {
namespace {

using at::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Threads of the pool have settings of their own.
struct PlainComputation {
  at::NoGradGuard no_grad;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// Each head of each row, in parallel where there is more than one.
template <class Work>
void for_each_head(const Tensor& query, const Work& work) {
  const int64_t heads = query.size(2), units = query.size(0) * heads;
  const auto some = [&](int64_t first, int64_t last) {
    const PlainComputation plain;
    for (int64_t unit = first; unit < last; ++unit) work(unit / heads, unit % heads);
  };
  if (query.is_cpu()) {
    at::parallel_for(0, units, 1, some);
  } else {
    some(0, units);
  }
}

// x[row, :, head] with a row of zeros behind the last, which stands for "no token".
Tensor rows_of(const Tensor& x, int64_t row, int64_t head, at::ScalarType type) {
  const int64_t tokens = x.size(1);
  Tensor rows = at::zeros({tokens + 1, x.size(3)}, x.options().dtype(type));
  rows.narrow(0, 0, tokens).copy_(x.select(0, row).select(1, head));
  return rows;
}

Tensor blocks_of(const Tensor& rows, const Tensor& numbers) {
  const Tensor picked = rows.index_select(0, numbers.flatten());
  return rows.dim() == 1 ? picked.view(numbers.sizes()) : picked.unflatten(0, numbers.sizes());
}

template <class Number>
void add_rows_on_cpu(Tensor& sums, const int64_t* numbers, const Tensor& rows) {
  const int64_t width = sums.size(1), count = rows.numel() / width;
  const auto* from = rows.const_data_ptr<Number>();
  auto* to = sums.mutable_data_ptr<Number>();
  for (int64_t n = 0; n < count; ++n) {
    for (int64_t i = 0; i < width; ++i) to[numbers[n] * width + i] += from[n * width + i];
  }
}

// sums[numbers] += rows, where numbers may repeat. LibTorch's index_add_ starts an operation for each row.
void add_rows(Tensor& sums, const Tensor& numbers, const Tensor& rows) {
  if (!sums.is_cpu()) {
    sums.index_add_(0, numbers.flatten(), rows.flatten(0, 1));
    return;
  }
  const Tensor places = numbers.contiguous(), dense = rows.contiguous();
  if (sums.scalar_type() == at::kDouble) {
    add_rows_on_cpu<double>(sums, places.const_data_ptr<int64_t>(), dense);
  } else {
    add_rows_on_cpu<float>(sums, places.const_data_ptr<int64_t>(), dense);
  }
}

// exp(x - top), where nothing has been seen yet (top = -infinity) exp(x).
Tensor& shift_and_exp(Tensor& x, const Tensor& top) {
  return x.sub_(top.masked_fill(top == -kInfinity, 0)).exp_();
}

// Sums over the keys that each query has seen so far, as factors of exp(top).
struct Sums {
  Tensor top;       // [T + 1] the largest score
  Tensor total;     // [T + 1] of the weights
  Tensor weighted;  // [T + 1, E] of the weighted values

  Sums(int64_t tokens, int64_t value_size, const at::TensorOptions& options)
      : top(at::full({tokens + 1}, -kInfinity, options)),
        total(at::zeros({tokens + 1}, options)),
        weighted(at::zeros({tokens + 1, value_size}, options)) {}

  void add(const BlockTile& tile, const Tensor& query, const Tensor& key, const Tensor& value) {
    Tensor weights =
        at::bmm(blocks_of(query, tile.query_rows), blocks_of(key, tile.key_rows).transpose(1, 2));
    weights.masked_fill_(tile.hidden, -kInfinity);
    const Tensor tile_top = weights.amax(-1);
    shift_and_exp(weights, tile_top.unsqueeze(-1));
    const Tensor tile_total = weights.sum(-1).flatten();
    const Tensor tile_weighted = at::bmm(weights, blocks_of(value, tile.key_rows)).flatten(0, 1);

    const Tensor rows = tile.query_rows.flatten();
    Tensor before = top.index_select(0, rows), now = tile_top.flatten();
    const Tensor joint = at::maximum(before, now);
    shift_and_exp(before, joint);
    shift_and_exp(now, joint);
    top.index_copy_(0, rows, joint);
    total.index_copy_(0, rows, (total.index_select(0, rows) * before).addcmul_(tile_total, now));
    weighted.index_copy_(
        0, rows,
        (weighted.index_select(0, rows) * before.unsqueeze(-1)).addcmul_(tile_weighted, now.unsqueeze(-1)));
  }
};

at::ScalarType computing_type(const Tensor& value) {
  return value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// What the backward pass of one head works with.
struct HeadGradients {
  Tensor query, key, value;  // scaled queries; [T + 1, D or E]
  Tensor gradient;           // of the output
  Tensor mean_gradient;      // [T + 1]: the output times its gradient
  Tensor top, share;         // [T + 1]; share: 1 / total, 0 for queries that see nothing
  Tensor query_sum, key_sum, value_sum;

  void add(const BlockTile& tile) {
    const Tensor q = blocks_of(query, tile.query_rows), k = blocks_of(key, tile.key_rows),
                 v = blocks_of(value, tile.key_rows), g = blocks_of(gradient, tile.query_rows);
    const auto of_row = [&](const Tensor& x) { return blocks_of(x, tile.query_rows).unsqueeze(-1); };
    const Tensor tile_top = of_row(top);
    Tensor weights = at::bmm(q, k.transpose(1, 2));
    weights.masked_fill_(tile.hidden, -kInfinity);
    // At most 1 by construction; a score that rounds otherwise than in the forward pass must not exceed it.
    weights.sub_(tile_top.masked_fill(tile_top == -kInfinity, 0)).clamp_max_(0).exp_().mul_(of_row(share));
    add_rows(value_sum, tile.key_rows, at::bmm(weights.transpose(1, 2), g));
    const Tensor scores = at::bmm(g, v.transpose(1, 2)).sub_(of_row(mean_gradient)).mul_(weights);
    add_rows(query_sum, tile.query_rows, at::bmm(scores, k));
    add_rows(key_sum, tile.key_rows, at::bmm(scores.transpose(1, 2), q));
  }
};

struct PatternHolder : torch::CustomClassHolder {
  explicit PatternHolder(std::shared_ptr<const BlockPattern> held) : pattern(std::move(held)) {}
  std::shared_ptr<const BlockPattern> pattern;
};

class BlockSoftmaxFunction : public torch::autograd::Function<BlockSoftmaxFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const Tensor& query, const Tensor& key, const Tensor& value,
                                                double scale,
                                                const c10::intrusive_ptr<PatternHolder>& holder) {
    const int64_t tokens = query.size(1);
    const at::ScalarType type = computing_type(value);
    const auto options = value.options().dtype(type);
    Tensor out = at::empty({query.size(0), tokens, query.size(2), value.size(3)}, value.options());
    Tensor top = at::empty({query.size(0), query.size(2), tokens}, options), total = at::empty_like(top);
    for_each_head(query, [&](int64_t row, int64_t head) {
      const Tensor q = rows_of(query, row, head, type).mul_(scale), k = rows_of(key, row, head, type),
                   v = rows_of(value, row, head, type);
      Sums sums(tokens, value.size(3), options);
      holder->pattern->visit(row, head, [&](const BlockTile& tile) { sums.add(tile, q, k, v); });
      const Tensor divisor = sums.total.masked_fill(sums.total == 0, 1).unsqueeze(-1);
      out.select(0, row).select(1, head).copy_(sums.weighted.div_(divisor).narrow(0, 0, tokens));
      top.select(0, row).select(0, head).copy_(sums.top.narrow(0, 0, tokens));
      total.select(0, row).select(0, head).copy_(sums.total.narrow(0, 0, tokens));
    });
    context->save_for_backward({query, key, value, out, top, total});
    context->saved_data["scale"] = scale;
    context->saved_data["pattern"] = c10::IValue::make_capsule(holder);
    const Tensor seen = total.transpose(1, 2) != 0;
    context->mark_non_differentiable({seen});
    return {out, seen};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    check<UsageError>(!at::GradMode::is_enabled(),
                      "gradients of gradients do not exist through block-sparse attention: choose another "
                      "attention.kind, such as exact");
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const Tensor &query = saved[0], &key = saved[1], &value = saved[2], &out = saved[3], &top = saved[4],
                 &total = saved[5];
    const double scale = context->saved_data["scale"].toDouble();
    const auto capsule = context->saved_data["pattern"].toCapsule();
    const BlockPattern& pattern = *static_cast<PatternHolder&>(*capsule).pattern;
    const int64_t tokens = query.size(1);
    const at::ScalarType type = computing_type(value);
    Tensor of_query = at::empty_like(query, at::MemoryFormat::Contiguous),
           of_key = at::empty_like(key, at::MemoryFormat::Contiguous),
           of_value = at::empty_like(value, at::MemoryFormat::Contiguous);
    const auto vector = [&](const Tensor& x, int64_t row, int64_t head) {
      Tensor padded = at::zeros({tokens + 1}, x.options());
      padded.narrow(0, 0, tokens).copy_(x.select(0, row).select(0, head));
      return padded;
    };
    for_each_head(query, [&](int64_t row, int64_t head) {
      HeadGradients one;
      one.query = rows_of(query, row, head, type).mul_(scale);
      one.key = rows_of(key, row, head, type);
      one.value = rows_of(value, row, head, type);
      one.gradient = rows_of(gradients[0], row, head, type);
      one.mean_gradient = (one.gradient * rows_of(out, row, head, type)).sum(-1);
      one.top = vector(top, row, head);
      one.share = vector(total, row, head);
      one.share.reciprocal_().masked_fill_(one.share == kInfinity, 0);
      one.query_sum = at::zeros_like(one.query);
      one.key_sum = at::zeros_like(one.key);
      one.value_sum = at::zeros_like(one.value);
      pattern.visit(row, head, [&](const BlockTile& tile) { one.add(tile); });
      const auto put = [&](const Tensor& to, const Tensor& from) {
        to.select(0, row).select(1, head).copy_(from.narrow(0, 0, tokens));
      };
      put(of_query, one.query_sum.mul_(scale));
      put(of_key, one.key_sum);
      put(of_value, one.value_sum);
    });
    return {of_query, of_key, of_value, {}, {}};
  }
};

}  // namespace

BlockSoftmax block_softmax(const Tensor& query, const Tensor& key, const Tensor& value, double scale,
                           const std::shared_ptr<const BlockPattern>& pattern) {
  const auto results =
      BlockSoftmaxFunction::apply(query, key, value, scale, c10::make_intrusive<PatternHolder>(pattern));
  return {results[0], results[1]};
}

}  // namespace performer::nn
