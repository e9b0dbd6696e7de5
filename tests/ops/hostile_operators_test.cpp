// SPDX-License-Identifier: Apache-2.0
// The operators themselves under tensors as nobody would choose them (tests/hostile_draws.h): both families
// and both backends, initial and final states, steps, merged states, and the features of all maps.
#include <fmt/format.h>

#include "performer/ops/feature_maps.h"
#include "performer/ops/trigonometric.h"
#include "tests/hostile_draws.h"
#include "tests/ops/inputs.h"

namespace performer::ops::test {
namespace {

using hostile::Draw;
using hostile::finite;
using hostile::Laid;
using hostile::Limits;

struct HostileMap {
  std::string family;
  bool positive = true;
};
const std::vector<HostileMap> kHostileMaps = {{"exponential"},
                                              {"exponential"},
                                              {"exponential"},
                                              {"relu"},
                                              {"elu+1"},
                                              {"square"},
                                              {"abs"},
                                              {"requ"},
                                              {"sigmoid"},
                                              {"gelu", false},
                                              {"tanh", false},
                                              {"cos", false},
                                              {"sin", false},
                                              {"identity", false},
                                              {"leaky-relu", false}};

// One call of favor_attention, and what belongs to it.
class HostileCall {
 public:
  explicit HostileCall(int64_t number) : draw_(number), number_(number) {
    chosen_ = draw_.pick(kHostileMaps);
    exponential_ = chosen_.family == "exponential";
    limits_ = exponential_ ? hostile::kSoftmaxLimits : hostile::kElementwiseLimits;
    if (chosen_.family == "elu+1" || chosen_.family == "sigmoid") limits_ = hostile::kVanishingLimits;
    type_ = draw_.type();
    if (type_ == at::kHalf && draw_.chance(0.5)) {
      limits_ = hostile::kHalfLimits;
    } else if (type_ == at::kHalf) {
      gradients_fit_ = false;
    }
    wild_ = draw_.chance(0.1);
    if (wild_) limits_ = hostile::kNoLimits;
    heads_ = draw_.pick<int64_t>({1, 2, 3});
    size_ = draw_.size();
    make_inputs();
    make_map();
    if (draw_.chance(0.4)) make_initial();
  }

  void run() {
    SCOPED_TRACE(text());
    const auto [out, state] = favor_attention(in_, map_);
    expect_result(out, "output");
    expect_state(state, "final state");
    expect_gradients(out, state);
    run_steps();
    if (state.defined() && in_.initial) expect_state(merge_states(state, *in_.initial), "merged state");
    KeyInputs keys{in_.key,     in_.value, in_.key_mask, in_.cu_key ? in_.cu_key : in_.cu_query,
                   in_.initial, in_.chunk, in_.backend};
    expect_state(key_state(keys, map_), "state of keys");
  }

 private:
  void make_inputs() {
    const bool packed = draw_.chance(0.4);
    in_.causal = draw_.chance(0.5);
    const int64_t batch = packed ? 1 : draw_.pick<int64_t>({0, 1, 2, 3}), queries = draw_.tokens();
    const int64_t keys = in_.causal ? queries : draw_.tokens();
    value_limit_ = std::min(hostile::largest_of(type_), draw_.pick<double>({limits_.values, 1.0}));
    const auto make = [&](Laid& laid, int64_t tokens, int64_t size, double largest) {
      laid = draw_.laid({batch, tokens, heads_, size}, type_, limits_.smallest, largest);
      return laid.view;
    };
    in_.query = make(query_, queries, size_, limits_.inputs);
    in_.key = make(key_, keys, size_, limits_.inputs);
    in_.value = make(value_, keys, draw_.chance(0.2) ? draw_.size() : size_, value_limit_);
    in_.key_mask = draw_.mask(batch, keys);
    in_.query_mask = draw_.mask(batch, queries);
    in_.return_state = draw_.chance(0.5);
    in_.chunk = draw_.pick<int64_t>({0, 0, 1, 7, 256});
    in_.backend = draw_.pick<std::string>({"", "", "composed"});
    if (in_.backend == "composed" && in_.chunk == 1 && queries > 17) in_.chunk = 0;  // it takes its time
    sequences_ = batch;
    if (!packed) return;
    sequences_ = draw_.pick<int64_t>({1, 2, 3, 5});
    in_.cu_query = draw_.bounds(queries, sequences_);
    in_.cu_key = in_.causal ? in_.cu_query : std::optional(draw_.bounds(keys, sequences_));
  }

  void make_map() {
    map_.family = chosen_.family;
    features_ = size_;
    if (exponential_) map_.scale = std::pow(static_cast<double>(size_), -0.25);
    map_.norm_weight = draw_.pick<double>({0.5, 0.5, 0.0});
    map_.epsilon = exponential_ ? 0 : draw_.pick<double>({0, 1e-3});
    if (!draw_.chance(0.6)) return;
    features_ = draw_.pick<int64_t>({1, 2, 12, 16, 33});
    map_.projection = draw_projection("orthogonal", "chi", heads_, features_, size_, 1, 2, 3);
    if (draw_.chance(0.3)) map_.offset = at::linspace(-1, 1, features_);
  }

  // A state as some earlier tokens left it.
  void make_initial() {
    const int64_t tokens = draw_.pick<int64_t>({0, 1, 5});
    const auto rows = [&](int64_t size, double largest) {
      return draw_.values({sequences_, tokens, heads_, size}, type_, limits_.smallest, largest);
    };
    KeyInputs earlier;
    earlier.key = rows(size_, limits_.inputs);
    earlier.value = rows(in_.value.size(3), value_limit_);
    in_.initial = key_state(earlier, map_);
    in_.initial->kv.requires_grad_(true);
    in_.initial->key_sum.requires_grad_(true);
  }

  std::string text() const {
    return fmt::format("draw {}: {} {} {} backend '{}' B{} T{} S{} H{} D{} E{} M{} chunk {}{}{}{}{}{}",
                       number_, chosen_.family, at::toString(type_), in_.causal ? "causal" : "bidirectional",
                       in_.backend, in_.query.size(0), in_.query.size(1), in_.key.size(1), heads_, size_,
                       in_.value.size(3), features_, in_.chunk, map_.projection ? " projected" : "",
                       map_.offset ? " offset" : "", in_.cu_query ? " packed" : "",
                       in_.initial ? " initial" : "", in_.return_state ? " final" : "");
  }

  // Denominators of signed features may cancel; what comes out then may be more than float16 has numbers for.
  bool may_be_large() const { return !chosen_.positive && type_ == at::kHalf; }

  void expect_result(const Tensor& out, const char* what) const {
    if (wild_ || may_be_large()) return;
    ASSERT_TRUE(finite(out)) << what;
    if (!chosen_.positive || out.numel() == 0) return;
    EXPECT_LE(out.detach().abs().max().item<double>(), 1.02 * value_limit_ + hostile::tiniest_of(type_))
        << what << " is a mean of values";
  }
  void expect_state(const State& state, const char* what) const {
    for (const Tensor& part : {state.kv, state.key_sum, state.log_scale})
      EXPECT_TRUE(wild_ || finite(part)) << what;
  }

  void expect_gradients(const Tensor& out, const State& state) {
    if (!wild_ && (!gradients_fit_ || (may_be_large() && !finite(out)))) return;
    const double largest = limits_.gradients / std::max(1.0, value_limit_);
    const auto seed_of = [&](const Tensor& x) {
      return draw_.values(x.sizes(), x.scalar_type(), 0, largest);
    };
    std::vector<Tensor> roots = {out}, seeds = {seed_of(out)}, leaves = {in_.query, in_.key, in_.value};
    if (state.defined() && draw_.chance(0.5)) {
      roots.insert(roots.end(), {state.kv, state.key_sum});
      // The state is a sum over tokens, so that its gradient has no weights below 1 that would make up for
      // it.
      seeds.insert(seeds.end(), {seed_of(state.kv) / 1e6, seed_of(state.key_sum) / 1e6});
    }
    if (in_.initial) leaves.insert(leaves.end(), {in_.initial->kv, in_.initial->key_sum});
    const auto gradients = torch::autograd::grad(roots, leaves, seeds, false, false, /*allow_unused=*/true);
    for (size_t i = 0; i < gradients.size(); ++i) {
      EXPECT_TRUE(wild_ || !chosen_.positive || finite(gradients[i])) << "gradient of leaf " << i;
    }
  }

  void run_steps() {
    if (in_.cu_query || sequences_ == 0) return;
    const at::NoGradGuard no_grad;
    State state = empty_state(sequences_, heads_, features_, in_.value.size(3), map_.family,
                              at::TensorOptions(type_ == at::kDouble ? at::kDouble : at::kFloat));
    for (int64_t t = 0; t < std::min<int64_t>({in_.query.size(1), in_.key.size(1), 4}); ++t) {
      expect_result(favor_step(in_.query.select(1, t), in_.key.select(1, t), in_.value.select(1, t), state,
                               map_, in_.backend),
                    "step");
      expect_state(state, "state after a step");
    }
  }

  Draw draw_;
  int64_t number_, heads_ = 1, size_ = 1, features_ = 1, sequences_ = 1;
  HostileMap chosen_;
  bool exponential_ = true;
  Limits limits_;
  at::ScalarType type_ = at::kFloat;
  bool gradients_fit_ = true, wild_ = false;
  double value_limit_ = 1;
  AttentionInputs in_;
  FeatureMap map_;
  Laid query_, key_, value_;
};

template <class Run>
void run_hostile_draws(int64_t otherwise, const Run& run) {
  const hostile::OneThread one_thread;
  const int64_t first = hostile::first_draw(), count = hostile::draws(otherwise);
  for (int64_t number = first; number < first + count; ++number) {
    try {
      run(number);
    } catch (const std::exception& error) {
      ADD_FAILURE() << "draw " << number << ": " << error.what();
    }
  }
}

TEST(HostileOperators, AttentionStepsAndStatesAreFinite) {
  run_hostile_draws(1000, [](int64_t number) { HostileCall(number).run(); });
}

TEST(HostileOperators, FeaturesOfAllMapsAreNoNaN) {
  const std::vector<std::string> maps = feature_map_names();
  run_hostile_draws(500, [&](int64_t number) {
    Draw draw(number);
    const std::string map = maps[static_cast<size_t>(number) % maps.size()];
    const FeatureMapTraits traits = feature_map_traits(map);
    const Limits limits = traits.exponential ? hostile::kSoftmaxLimits : hostile::kElementwiseLimits;
    FeatureMapOptions options;
    options.map = map;
    options.features = draw.pick<int64_t>({2, 12, 34});
    const int64_t heads = draw.pick<int64_t>({1, 2}), size = draw.size(), tokens = draw.tokens();
    const Laid x = draw.laid({2, tokens, heads, size}, draw.type(), limits.smallest, limits.inputs);
    MapWeights weights = initial_map_weights(options, heads, size);
    weights.projection = draw_map_projection(options, heads, size, 1, 0, 0);
    MapStatistics statistics;
    if (traits.statistics)
      statistics = pool_statistics(measure_statistics({x.view, x.view, x.view}, options));
    SCOPED_TRACE(fmt::format("draw {}: {} {} T{} H{} D{}", number, map, at::toString(x.view.scalar_type()),
                             tokens, heads, size));
    for (const bool query : {true, false}) {
      const LogFeatures found = log_features(x.view, query, options, weights, statistics);
      // The log of a feature that is 0 is minus infinity.
      EXPECT_FALSE(found.log_magnitude.isnan().any().item<bool>());
      EXPECT_FALSE(at::isposinf(found.log_magnitude).any().item<bool>());
      EXPECT_TRUE(finite(found.sign));
    }
  });
}

}  // namespace
}  // namespace performer::ops::test
