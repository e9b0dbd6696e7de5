// SPDX-License-Identifier: Apache-2.0
// Exact softmax attention within windows: time in proportion to the length times the window.
#include <ATen/ATen.h>

#include "performer/base/error.h"
#include "performer/nn/attention/own_kinds.h"
#include "performer/nn/attention/rows.h"
#include "performer/nn/attention/segments.h"
#include "performer/nn/local_attention.h"
#include "performer/nn/local_windows.h"

namespace performer::nn {
namespace {

struct LocalOptions {
  int64_t window = 128;
  int64_t look_backward = 1;
  int64_t look_forward = -1;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("window", self.window, "tokens of a window");
    visit("look_backward", self.look_backward, "windows before a query's own that it sees");
    visit("look_forward", self.look_forward, "windows after it; -1: 0 when causal, else 1");
  }
};

struct LocalCache final : Cache {
  LocalAttentionState state;

  std::unique_ptr<Cache> select(const at::Tensor& rows) const override {
    auto selected = std::make_unique<LocalCache>();
    selected->state.length = state.length;
    if (state.key.defined()) {
      selected->state.key = state.key.index_select(0, rows);
      selected->state.value = state.value.index_select(0, rows);
    }
    return selected;
  }
};

class WindowedAttention final : public Attention {
 public:
  WindowedAttention(const LocalOptions& options, const AttentionShape& shape) {
    options_.window = options.window;
    options_.look_backward = options.look_backward;
    options_.look_forward = options.look_forward;
    options_.causal = shape.causal;
  }

  at::Tensor forward(const ops::AttentionInputs& inputs) override {
    if (inputs.cu_query) {
      return attend_segments(inputs, [&](const ops::AttentionInputs& segment) { return forward(segment); });
    }
    const at::Tensor rows =
        local_attention(inputs.query, inputs.key, inputs.value, inputs.key_mask, {}, options_);
    return hide_rows(rows, inputs.query_mask);
  }

  at::Tensor rows(const ops::AttentionInputs& inputs, const RowRange& range) override {
    return rows_of_sequences(inputs, range, [&](const ops::AttentionInputs& one, const RowRange& some) {
      const int64_t keys = one.value.size(1);
      const LocalWindows windows(options_, keys);
      const auto window_of = [&](int64_t first, int64_t count) {
        return at::arange(first, first + count, at::kLong).floor_divide(windows.window);
      };
      const at::Tensor away =
          window_of(0, keys).unsqueeze(0) - window_of(some.first, some.count).unsqueeze(1);
      const at::Tensor near = away.ge(-windows.back).logical_and(away.le(windows.forward));
      return score_rows(one, some, visible_keys(one, some).logical_and(near));
    });
  }

  std::unique_ptr<Cache> begin(int64_t) const override { return std::make_unique<LocalCache>(); }

  at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  Cache& cache) const override {
    return advance(query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1), cache).squeeze(1);
  }
  at::Tensor advance(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     Cache& cache) const override {
    auto& own = dynamic_cast<LocalCache&>(cache);
    return continue_local_attention(query, key, value, {}, options_, own.state);
  }

 private:
  LocalAttentionOptions options_;
};

void validate_local(const AttentionConfig& config, const AttentionShape& shape) {
  const auto options = read_options<LocalOptions>(config);
  check<UsageError>(options.window >= 1 && options.window <= kLargestSize,
                    "attention.window must be between 1 and {}, not {}", kLargestSize, options.window);
  check<UsageError>(
      options.look_backward >= 0 && options.look_forward >= -1,
      "attention.look_backward must be at least 0 and attention.look_forward at least -1, not {} "
      "and {}",
      options.look_backward, options.look_forward);
  check<UsageError>(!shape.causal || options.look_forward <= 0,
                    "attention.look_forward must be 0 or -1 in a causal model, not {}", options.look_forward);
}

}  // namespace

AttentionKind local_kind() {
  AttentionKind kind;
  kind.name = "local";
  kind.summary = "exact softmax attention within windows of neighbouring tokens";
  kind.cost =
      "time and memory of a training step in proportion to T window (look_backward + 1 + look_forward); a "
      "stream keeps the keys and values of the windows it sees";
  kind.group = KindGroup::baseline;
  kind.capabilities.streams = true;
  kind.capabilities.rows = true;
  kind.options = kind_options<LocalOptions>();
  kind.validate = validate_local;
  kind.make = [](const AttentionConfig& config, const AttentionShape& shape) {
    return std::make_shared<WindowedAttention>(read_options<LocalOptions>(config), shape);
  };
  return kind;
}

}  // namespace performer::nn
