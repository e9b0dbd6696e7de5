// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/local_windows.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <cmath>
#include <limits>
#include <vector>

#include "performer/base/error.h"

namespace performer::nn {

using at::Tensor;

LocalWindows::LocalWindows(const LocalAttentionOptions& options, int64_t length)
    : window(options.window),
      back(options.look_backward),
      forward(options.look_forward >= 0 ? options.look_forward
              : options.causal          ? 0
                                        : 1),
      tokens(length),
      count((length + window - 1) / window),
      group((back + 1 + forward) * window) {}

Tensor LocalWindows::split(const Tensor& x, double value) const {
  std::vector<int64_t> missing = x.sizes().vec();
  missing[1] = count * window - tokens;
  const Tensor whole = missing[1] == 0 ? x : at::cat({x, at::full(missing, value, x.options())}, 1);
  return whole.unflatten(1, {count, window});
}

Tensor LocalWindows::gather(const Tensor& windows, double value) const {
  const auto beyond = [&](int64_t number) {
    std::vector<int64_t> shape = windows.sizes().vec();
    shape[1] = number;
    return at::full(shape, value, windows.options());
  };
  const Tensor extended = at::cat({beyond(back), windows, beyond(forward)}, 1);
  std::vector<Tensor> neighbours;
  for (int64_t shift = 0; shift <= back + forward; ++shift) {
    neighbours.push_back(extended.narrow(1, shift, count));
  }
  return at::cat(neighbours, 2);
}

Tensor LocalWindows::join(const Tensor& windows) const {
  return windows.transpose(2, 3).flatten(1, 2).narrow(1, 0, tokens);
}

Tensor LocalWindows::hidden_keys(bool causal, const std::optional<Tensor>& mask, bool padding_is_hidden,
                                 at::Device device) const {
  const Tensor places =
      at::arange(count * window, at::TensorOptions(at::kLong).device(device)).view({1, count, window});
  const Tensor keys = gather(places, -1).view({1, count, 1, 1, group});  // -1 beyond the ends
  Tensor hidden = keys.lt(0);
  if (padding_is_hidden) hidden = hidden.logical_or(keys.ge(tokens));
  if (causal) hidden = hidden.logical_or(keys.gt(places.view({1, count, 1, window, 1})));
  if (mask) {
    const Tensor kept = gather(split(*mask, 0), 0);  // [B, count, group]
    hidden = hidden.logical_or(kept.logical_not().unsqueeze(2).unsqueeze(2));
  }
  return hidden;
}

Tensor rotate_halves(const Tensor& x, const Tensor& positions, const Tensor& rates) {
  const Tensor angles = (positions.to(rates.scalar_type()).unsqueeze(-1) * rates).unsqueeze(-2);
  const Tensor cosine = angles.cos().to(x.scalar_type()), sine = angles.sin().to(x.scalar_type());
  const int64_t half = x.size(-1) / 2;
  const Tensor first = x.narrow(-1, 0, half), second = x.narrow(-1, half, half);
  return at::cat({first * cosine - second * sine, second * cosine + first * sine}, -1);
}

Tensor window_scores(const Tensor& query, const Tensor& key) {
  const double scale = 1 / std::sqrt(static_cast<double>(query.size(-1)));
  const auto type = query.scalar_type() == at::kHalf ? at::kFloat : query.scalar_type();
  return at::matmul(query.to(type).transpose(2, 3) * scale, key.to(type).permute({0, 1, 3, 4, 2}));
}

double most_negative(const Tensor& scores) {
  switch (scores.scalar_type()) {
    case at::kDouble:
      return std::numeric_limits<double>::lowest();
    case at::kFloat:
      return std::numeric_limits<float>::lowest();
    case at::kBFloat16:
      return static_cast<double>(std::numeric_limits<c10::BFloat16>::lowest());
    default:
      return static_cast<double>(std::numeric_limits<c10::Half>::lowest());
  }
}

void check_local_arguments(const Tensor& query, const Tensor& key, const Tensor& value,
                           const std::optional<Tensor>& mask, const std::optional<Tensor>& rates,
                           const LocalAttentionOptions& options) {
  check<UsageError>(options.window >= 1, "the window of local attention must be at least 1, found {}",
                    options.window);
  check<UsageError>(options.look_backward >= 0 && options.look_forward >= -1 &&
                        !(options.causal && options.look_forward > 0),
                    "local attention cannot look {} windows back and {} forward{}", options.look_backward,
                    options.look_forward, options.causal ? " when causal" : "");
  check<UsageError>(
      query.dim() == 4 && key.sizes().equals(query.sizes()) && value.dim() == 4 &&
          value.sizes().slice(0, 3).equals(key.sizes().slice(0, 3)),
      "local attention needs as many keys and values as queries, found query [{}], key [{}] and "
      "value [{}]",
      fmt::join(query.sizes(), ", "), fmt::join(key.sizes(), ", "), fmt::join(value.sizes(), ", "));
  check<UsageError>(!mask || (mask->scalar_type() == at::kBool && mask->dim() == 2 &&
                              mask->size(0) == query.size(0) && mask->size(1) == query.size(1)),
                    "the mask of local attention must be bool [{}, {}]", query.size(0), query.size(1));
  check<UsageError>(!rates || (rates->dim() == 1 && 2 * rates->size(0) == query.size(3)),
                    "rotary rates must be a vector of half the head size {}", query.size(3));
}

}  // namespace performer::nn
