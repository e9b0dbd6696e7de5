// SPDX-License-Identifier: Apache-2.0
// Linear attention to a window of the past, which may fade with the distance.
#include <ATen/ATen.h>

#include <cmath>
#include <vector>

#include "performer/base/error.h"
#include "performer/nn/attention/own_kinds.h"
#include "performer/nn/attention/rows.h"
#include "performer/nn/attention/segments.h"
#include "performer/nn/attention/window_sums.h"

namespace performer::nn {
namespace {

struct WindowedOptions {
  std::string map = "softmax";
  int64_t features = 256;
  std::string projection = "auto";
  int64_t chunk = 64;
  int64_t window = 8;
  double decay = 1;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("map", self.map,
          "features: softmax (positive random features of the softmax kernel), relu, or elu+1",
          Choices{"softmax", "relu", "elu+1"});
    visit("features", self.features, "random features M of a projected map");
    visit("projection", self.projection,
          "orthogonal, iid, none (features are the inputs themselves), or auto: orthogonal for softmax, none "
          "for the others",
          Choices{"auto", "orthogonal", "iid", "none"});
    visit("chunk", self.chunk, "tokens of a chunk");
    visit("window", self.window,
          "chunks that a token sees, its own one included (of that only the tokens before it); 0: all");
    visit("decay", self.decay, "factor of the weights of keys for each chunk of distance, from 0 to 1");
  }
};

ops::FeatureMapOptions windowed_map(const WindowedOptions& own) {
  ops::FeatureMapOptions map;
  map.map = own.map == "softmax" ? "favor+" : own.map;
  map.features = own.features;
  map.projection = own.projection;
  return map;
}

// The state, and the map that its features come from: a redraw meanwhile does not mix two projections.
struct WindowedCache final : Cache {
  std::shared_ptr<const ops::PreparedMap> map;
  WindowState state;

  std::unique_ptr<Cache> select(const at::Tensor& rows) const override {
    auto kept = std::make_unique<WindowedCache>();
    kept->map = map;
    kept->state = state.select(rows);
    return kept;
  }
};

class WindowedFavorAttention final : public Attention {
 public:
  WindowedFavorAttention(const AttentionConfig& config, const AttentionShape& shape)
      : shape_(shape), seed_(config.seed) {
    const auto own = read_options<WindowedOptions>(config);
    map_ = windowed_map(own);
    window_ = {own.chunk, own.window, own.decay};
    const at::Tensor projection = draw(0);
    if (projection.defined()) projection_ = register_buffer("projection", projection);
  }

  at::Tensor forward(const ops::AttentionInputs& inputs) override {
    const ops::PreparedMap map = prepared(projection_);
    if (!inputs.cu_query) return windowed_attention(inputs, map, window_);
    return attend_segments(inputs, [&](const ops::AttentionInputs& segment) {  // each begins with a chunk
      return windowed_attention(segment, map, window_);
    });
  }

  at::Tensor rows(const ops::AttentionInputs& inputs, const RowRange& range) override {
    return rows_of_sequences(inputs, range, [&](const ops::AttentionInputs& one, const RowRange& some) {
      const auto chunk_of = [&](int64_t first, int64_t count) {
        return at::arange(first, first + count, at::kLong).floor_divide(window_.chunk);
      };
      const at::Tensor back =
          chunk_of(some.first, some.count).unsqueeze(1) - chunk_of(0, one.key.size(1)).unsqueeze(0);
      at::Tensor visible = visible_keys(one, some), log_factor;
      if (window_.window > 0) visible = visible.logical_and(back.lt(window_.window));
      if (window_.decay == 0) visible = visible.logical_and(back.le(0));  // 0^0 = 1
      if (window_.decay > 0 && window_.decay < 1) log_factor = back.to(at::kDouble) * std::log(window_.decay);
      ops::MapWeights weights;
      if (projection_.defined()) weights.projection = projection_.to(at::kFloat);
      return mapped_rows(one, some, map_, weights, {}, visible, log_factor);
    });
  }

  std::unique_ptr<Cache> begin(int64_t) const override {
    const at::NoGradGuard no_grad;
    auto cache = std::make_unique<WindowedCache>();
    cache->map = std::make_shared<ops::PreparedMap>(
        prepared(projection_.defined() ? projection_.clone() : at::Tensor()));
    return cache;
  }

  at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  Cache& cache) const override {
    auto& own = dynamic_cast<WindowedCache&>(cache);
    return windowed_step(query, key, value, *own.map, window_, own.state);
  }

  void redraw(int64_t index) override {
    if (!projection_.defined()) return;
    const at::NoGradGuard no_grad;
    projection_.copy_(draw(index));
  }

 private:
  at::Tensor draw(int64_t index) const {
    return ops::draw_map_projection(map_, shape_.heads, shape_.head_size, seed_, shape_.layer, index);
  }

  ops::PreparedMap prepared(const at::Tensor& projection) const {
    ops::MapWeights weights;
    if (projection.defined()) weights.projection = projection.to(at::kFloat);
    return ops::prepare_feature_map(map_, weights, {}, shape_.heads, shape_.head_size);
  }

  ops::FeatureMapOptions map_;
  WindowOptions window_;
  AttentionShape shape_;
  int64_t seed_;
  at::Tensor projection_;  // buffer [H, M, D] float32, or undefined
};

void validate_windowed(const AttentionConfig& config, const AttentionShape& shape) {
  const auto own = read_options<WindowedOptions>(config);
  const auto check_range = [](const char* key, int64_t value, int64_t smallest) {
    check<UsageError>(value >= smallest && value <= kLargestSize,
                      "attention.{} must be between {} and {}, not {}", key, smallest, kLargestSize, value);
  };
  check_range("features", own.features, 1);
  check_range("chunk", own.chunk, 1);
  check_range("window", own.window, 0);
  check<UsageError>(std::isfinite(own.decay) && own.decay >= 0 && own.decay <= 1,
                    "attention.decay must be from 0 to 1, not {}", own.decay);
  validate_map(config, windowed_map(own), shape.head_size);
}

}  // namespace

AttentionKind windowed_kind() {
  AttentionKind kind;
  kind.name = "favor-windowed";
  kind.summary = "linear attention to the last chunks of tokens, whose weight may decay with the distance";
  kind.cost = "time and memory of a training step in proportion to T; a stream keeps window + 1 states";
  kind.capabilities = {.bidirectional = false, .streams = true, .redraws = true, .rows = true};
  kind.configured = [can = kind.capabilities](const AttentionConfig& config) {
    Capabilities with = can;
    with.redraws = draws_projection(windowed_map(read_options<WindowedOptions>(config)));
    return with;
  };
  kind.options = kind_options<WindowedOptions>();
  kind.reads = [](const AttentionConfig& config, const std::string& name) {
    return map_reads(windowed_map(read_options<WindowedOptions>(config)), name);
  };
  kind.validate = validate_windowed;
  kind.make = [](const AttentionConfig& config, const AttentionShape& shape) {
    return std::make_shared<WindowedFavorAttention>(config, shape);
  };
  kind.numbers = [](const AttentionConfig& config, const AttentionShape& shape) {
    return map_numbers(windowed_map(read_options<WindowedOptions>(config)), shape);
  };
  return kind;
}

}  // namespace performer::nn
