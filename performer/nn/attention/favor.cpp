// SPDX-License-Identifier: Apache-2.0
// The favor-* kinds: linear attention with any of the feature maps of performer/ops/feature_maps.h.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <array>
#include <cmath>
#include <utility>

#include "performer/base/error.h"
#include "performer/nn/attention/own_kinds.h"
#include "performer/nn/attention/rows.h"
#include "performer/ops/projection.h"

namespace performer::nn {
namespace {

struct FavorOptions {
  int64_t features = 256;
  std::string projection = "auto";
  std::string row_norm = "chi";
  bool shared_projection = false;
  double epsilon = -1;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("features", self.features, "random features M of a projected map");
    visit("projection", self.projection,
          "orthogonal, iid, hadamard, givens, simplex, none (features are the inputs themselves), or auto: "
          "orthogonal, and none for element-wise maps as in the released protein models",
          Choices{"auto", "orthogonal", "iid", "hadamard", "givens", "simplex", "none"});
    visit(
        "row_norm", self.row_norm,
        "lengths of the projection's rows: chi (of a Gaussian vector) or sqrt-d (regularised kernel, SMREG)",
        Choices{"chi", "sqrt-d"});
    visit("shared_projection", self.shared_projection,
          "one projection for all heads of a layer, not one for each");
    visit("epsilon", self.epsilon,
          "added to element-wise features; -1: 1e-3 for favor-relu, else 0. Maps of softmax need none");
  }
};

const std::string kPrefix = "favor-";

std::string map_of(const std::string& kind) {
  const std::string map = kind.substr(kPrefix.size());
  return map == "softmax" ? "favor+" : map;
}

ops::FeatureMapOptions map_options(const AttentionConfig& config) {
  const auto own = read_options<FavorOptions>(config);
  return {map_of(config.kind), own.features, own.projection,
          own.row_norm,        own.epsilon,  own.shared_projection};
}

constexpr double kMomentDecay = 0.99;  // of the running moments, a training step

std::array<std::pair<const char*, at::Tensor ops::MapStatistics::*>, 4> moments() {
  return {{{"query_mean", &ops::MapStatistics::query_mean},
           {"key_mean", &ops::MapStatistics::key_mean},
           {"query_moment", &ops::MapStatistics::query_moment},
           {"key_moment", &ops::MapStatistics::key_moment}}};
}

ops::State select_state(const ops::State& state, const at::Tensor& rows) {
  if (!state.defined()) return {};
  return {state.kv.index_select(0, rows), state.key_sum.index_select(0, rows),
          state.log_scale.index_select(0, rows)};
}

// A state, and the map that its features come from: a redraw meanwhile does not mix two projections.
struct FavorCache final : Cache {
  std::shared_ptr<const ops::PreparedMap> map;
  ops::State state;  // undefined before the first token

  std::unique_ptr<Cache> select(const at::Tensor& rows) const override {
    auto selected = std::make_unique<FavorCache>();
    selected->map = map;
    selected->state = select_state(state, rows);
    return selected;
  }
};

// The data of the map (random projections, learned matrices, statistics) and attention with it.
//
// Maps with statistics (oprf, sderf, aderf, saderf) measure them from each sequence when they may see all of
// it. Causal models must not look ahead, so they use running moments (buffers, of decay 0.99 a training step,
// zero at first, which is FAVOR+): after_step() moves them at a step boundary, never within one.
class FavorAttention final : public Attention {
 public:
  FavorAttention(const AttentionConfig& config, const AttentionShape& shape)
      : options_(map_options(config)), shape_(shape), seed_(config.seed) {
    const ops::MapWeights learned = ops::initial_map_weights(options_, shape.heads, shape.head_size);
    if (learned.matrix.defined()) matrix_ = register_parameter("matrix", learned.matrix);
    if (learned.bias.defined()) bias_ = register_parameter("bias", learned.bias);
    const at::Tensor projection = draw(0);
    if (projection.defined()) projection_ = register_buffer("projection", projection);
    if (shape.causal && ops::feature_map_traits(options_.map).statistics) register_moments();
  }

  at::Tensor forward(const ops::AttentionInputs& inputs) override {
    return std::get<0>(continue_from(inputs));
  }

  std::tuple<at::Tensor, ops::State> continue_from(const ops::AttentionInputs& inputs) override {
    note_statistics(inputs);
    return ops::mapped_attention(inputs, options_, weights(), running_);
  }

  ops::State key_state(const ops::KeyInputs& inputs) override {
    return ops::key_state(inputs, options_, weights(), running_);
  }

  at::Tensor rows(const ops::AttentionInputs& inputs, const RowRange& range) override {
    return rows_of_sequences(inputs, range, [&](const ops::AttentionInputs& one, const RowRange& some) {
      return mapped_rows(one, some, options_, weights(), running_, visible_keys(one, some));
    });
  }

  std::unique_ptr<Cache> begin(int64_t) const override {
    const at::NoGradGuard no_grad;
    auto cache = std::make_unique<FavorCache>();
    ops::MapWeights frozen = weights();
    for (at::Tensor* part : {&frozen.projection, &frozen.matrix, &frozen.bias}) {
      if (part->defined()) *part = part->clone();
    }
    ops::PreparedMap map =
        ops::prepare_feature_map(options_, frozen, running_, shape_.heads, shape_.head_size);
    if (map.map.projection.has_value()) {
      const at::Tensor factors = ops::hadamard_factors(*map.map.projection);
      if (factors.defined()) map.map.factors = factors;
    }
    cache->map = std::make_shared<const ops::PreparedMap>(std::move(map));
    return cache;
  }

  at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  Cache& cache) const override {
    auto& own = dynamic_cast<FavorCache&>(cache);
    return ops::mapped_step(query, key, value, own.state, *own.map);
  }

  at::Tensor advance(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     Cache& cache) const override {
    auto& own = dynamic_cast<FavorCache&>(cache);
    ops::AttentionInputs inputs{query, key, value, /*causal=*/true};
    if (own.state.defined()) inputs.initial = own.state;
    inputs.return_state = true;
    auto [rows, state] = ops::mapped_attention(inputs, *own.map);
    own.state = state;
    return rows;
  }

  // The whole context is one state; a query reads it as a sequence without keys of its own that goes on from
  // there.
  std::unique_ptr<Cache> begin_cross(const at::Tensor& key, const at::Tensor& value,
                                     const std::optional<at::Tensor>& key_mask) const override {
    std::unique_ptr<Cache> cache = begin(key.size(0));
    auto& own = dynamic_cast<FavorCache&>(*cache);
    ops::KeyInputs inputs;
    inputs.key = key;
    inputs.value = value;
    inputs.key_mask = key_mask;
    own.state = ops::key_state(inputs, *own.map);
    return cache;
  }

  at::Tensor read(const at::Tensor& query, const Cache& cache) const override {
    const auto& own = dynamic_cast<const FavorCache&>(cache);
    ops::AttentionInputs inputs;
    inputs.query = query;
    inputs.key = query.narrow(1, 0, 0);
    inputs.value = at::empty({query.size(0), 0, query.size(2), own.state.kv.size(3)}, query.options());
    inputs.initial = own.state;
    return std::get<0>(ops::mapped_attention(inputs, *own.map));
  }

  void extend(const at::Tensor& key, const at::Tensor& value, Cache& cache) const override {
    auto& own = dynamic_cast<FavorCache&>(cache);
    ops::KeyInputs inputs;
    inputs.key = key;
    inputs.value = value;
    // Not added token by token to the sums of all before, which in a long sequence would lose digits.
    own.state = ops::merge_states(own.state, ops::key_state(inputs, *own.map));
  }

  void redraw(int64_t index) override {
    if (!projection_.defined()) return;
    const at::NoGradGuard no_grad;
    projection_.copy_(draw(index));
  }

  // Takes in the moments of the last training batch.
  void after_step() override {
    if (!last_measured_.defined()) return;
    const at::NoGradGuard no_grad;
    const bool first = running_.key_moment.count_nonzero().item<int64_t>() == 0;
    for (const auto& [name, member] : moments()) {
      at::Tensor& running = running_.*member;
      if (first) {
        running.copy_(last_measured_.*member);
      } else {
        running.mul_(kMomentDecay).add_(last_measured_.*member, 1 - kMomentDecay);
      }
    }
    last_measured_ = {};
  }

  std::vector<at::Tensor> statistics() const override {
    std::vector<at::Tensor> found;
    if (!running_.defined()) return found;
    for (const auto& [name, member] : moments()) found.push_back(running_.*member);
    return found;
  }

 private:
  // Causal models use what earlier steps measured; others measure each sequence on the way.
  void register_moments() {
    const int64_t heads = shape_.heads, size = shape_.head_size;
    for (const auto& [name, member] : moments()) {
      const bool mean = std::string(name).ends_with("mean");
      running_.*member =
          register_buffer(name, mean ? at::zeros({heads, size}) : at::zeros({heads, size, size}));
    }
  }

  at::Tensor draw(int64_t index) const {
    return ops::draw_map_projection(options_, shape_.heads, shape_.head_size, seed_, shape_.layer, index);
  }

  ops::MapWeights weights() const {
    ops::MapWeights weights;
    if (projection_.defined()) weights.projection = projection_.to(at::kFloat);
    weights.matrix = matrix_;
    weights.bias = bias_;
    return weights;
  }

  void note_statistics(const ops::AttentionInputs& inputs) {
    if (!running_.defined() || !is_training()) return;
    const ops::MapStatistics measured = ops::pool_statistics(ops::measure_statistics(inputs, options_));
    for (const auto& [name, member] : moments()) last_measured_.*member = (measured.*member).to(at::kFloat);
  }

  ops::FeatureMapOptions options_;
  AttentionShape shape_;
  int64_t seed_;
  at::Tensor projection_;             // buffer [H or 1, P, D] float32, or undefined
  at::Tensor matrix_, bias_;          // parameters, or undefined
  ops::MapStatistics running_;        // buffers [H, D] and [H, D, D], or undefined
  ops::MapStatistics last_measured_;  // of the last training batch
};

void validate_favor(const AttentionConfig& config, const AttentionShape& shape) {
  const ops::FeatureMapOptions options = map_options(config);
  check<UsageError>(options.features >= 1 && options.features <= kLargestSize,
                    "attention.features must be between 1 and {}, not {}", kLargestSize, options.features);
  check<UsageError>(options.epsilon == -1 || (options.epsilon >= 0 && std::isfinite(options.epsilon)),
                    "attention.epsilon must be at least 0, or -1 for the default, not {}", options.epsilon);
  validate_map(config, options, shape.head_size);
}

std::string summary_of(const std::string& map) {
  const ops::FeatureMapTraits traits = ops::feature_map_traits(map);
  const char* what = traits.learned && !traits.projected ? "learned features"
                     : traits.learned                    ? "random features of learned geometry"
                     : traits.exponential                ? "random features of the softmax kernel"
                                                         : "element-wise features";
  return fmt::format("linear attention, map {}: {}{}", map, what,
                     traits.statistics ? ", adapted to second moments of queries and keys" : "");
}

AttentionKind favor_kind(const std::string& name) {
  AttentionKind kind;
  kind.name = name;
  kind.summary = summary_of(map_of(name));
  kind.cost =
      "time in proportion to T features; memory of a training step in proportion to T; a stream keeps a "
      "state "
      "of constant size";
  const bool statistics = ops::feature_map_traits(map_of(name)).statistics;
  // Maps with statistics measure them over whole batches, which a chunk is not.
  kind.capabilities = {.streams = true,
                       .chunks = !statistics,
                       .cross = !statistics,
                       .grows = !statistics,
                       .redraws = true,
                       .linear = true,
                       .rows = true};
  kind.configured = [can = kind.capabilities](const AttentionConfig& config) {
    Capabilities with = can;
    with.redraws = draws_projection(map_options(config));
    return with;
  };
  kind.feature_map = map_options;
  kind.reads = [](const AttentionConfig& config, const std::string& name) {
    return map_reads(map_options(config), name);
  };
  kind.options = kind_options<FavorOptions>();
  kind.validate = validate_favor;
  kind.make = [](const AttentionConfig& config, const AttentionShape& shape) {
    return std::make_shared<FavorAttention>(config, shape);
  };
  kind.numbers = [](const AttentionConfig& config, const AttentionShape& shape) {
    return map_numbers(map_options(config), shape);
  };
  return kind;
}

}  // namespace

bool draws_projection(const ops::FeatureMapOptions& map) {
  return ops::resolved_projection(map) != "none";
}

bool map_reads(const ops::FeatureMapOptions& map, const std::string& name) {
  if (name == "features") {  // of some maps without a projection, too
    ops::FeatureMapOptions more = map;
    more.features = map.features + 2;
    return ops::feature_count(more, 1) != ops::feature_count(map, 1);
  }
  return draws_projection(map) || (name != "seed" && name != "row_norm" && name != "shared_projection");
}

void validate_map(const AttentionConfig& config, const ops::FeatureMapOptions& map, int64_t head_size) {
  try {
    ops::validate(map, head_size);
  } catch (const c10::Error& error) {  // the request is wrong, not a tensor
    throw UsageError(fmt::format("attention.kind = {}: {}", config.kind, error.what_without_backtrace()));
  }
}

// A projection or learned features, and squares of the head size: moments, learned matrices, and what drawing
// orthogonal rows takes.
double map_numbers(const ops::FeatureMapOptions& map, const AttentionShape& shape) {
  const auto heads = static_cast<double>(shape.heads), size = static_cast<double>(shape.head_size);
  const auto features = static_cast<double>(ops::feature_count(map, shape.head_size));
  return heads * (size + 1) * (2 * features + 4 * (size + 1));
}

std::vector<AttentionKind> favor_kinds() {
  std::vector<AttentionKind> kinds = {favor_kind("favor-softmax"), favor_kind("favor-relu")};
  for (const std::string& map : ops::feature_map_names()) {
    if (map != "favor+" && map != "relu") kinds.push_back(favor_kind(kPrefix + map));
  }
  return kinds;
}

}  // namespace performer::nn
