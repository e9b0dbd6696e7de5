// SPDX-License-Identifier: Apache-2.0
// performer::mapped_attention, performer::mapped_step and performer::mapped_key_state: attention with a
// feature map named by a string. They are composed of other operators, and so have their derivatives, devices
// and shapes.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "performer/ops/favor/call.h"
#include "performer/ops/maps/mapped.h"
#include "performer/ops/maps/row.h"

namespace performer::ops {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A map in the terms of a schema.
#define PERFORMER_MAP_SCHEMA                                                             \
  "str map='favor+', int features=256, str projection_kind='auto', str row_norm='chi', " \
  "float epsilon=-1, Tensor? projection=None, Tensor? matrix=None, Tensor? bias=None, "  \
  "Tensor? query_mean=None, Tensor? key_mean=None, Tensor? query_moment=None, "          \
  "Tensor? key_moment=None"
#define PERFORMER_MAP_PARAMETERS                                                                       \
  c10::string_view map, int64_t features, c10::string_view projection_kind, c10::string_view row_norm, \
      double epsilon, const OptionalTensor &projection, const OptionalTensor &matrix,                  \
      const OptionalTensor &bias, const OptionalTensor &query_mean, const OptionalTensor &key_mean,    \
      const OptionalTensor &query_moment, const OptionalTensor &key_moment
#define PERFORMER_MAP_NAMES                                                                          \
  map, features, projection_kind, row_norm, epsilon, projection, matrix, bias, query_mean, key_mean, \
      query_moment, key_moment

struct NamedMap {
  FeatureMapOptions options;
  MapWeights weights;
  MapStatistics statistics;

  explicit NamedMap(PERFORMER_MAP_PARAMETERS)
      : weights{or_undefined(projection), or_undefined(matrix), or_undefined(bias)},
        statistics{or_undefined(query_mean), or_undefined(key_mean), or_undefined(query_moment),
                   or_undefined(key_moment)} {
    options.map = std::string(map);
    options.features = features;
    options.projection = std::string(projection_kind);
    options.row_norm = std::string(row_norm);
    options.epsilon = epsilon;
  }
};

// Statistics as given, or measured where that leaks nothing.
MapStatistics statistics_for(const AttentionInputs& inputs, const NamedMap& map) {
  if (map.statistics.defined() || !feature_map_traits(map.options.map).statistics) return map.statistics;
  TORCH_CHECK_VALUE(!inputs.causal && !inputs.initial.has_value() && !inputs.return_state, "feature map ",
                    map.options.map,
                    " takes second moments over whole sequences, which would let causal attention see the "
                    "future and a state change its meaning; measure them before, and give them frozen");
  return measure_statistics(inputs, map.options);
}

std::optional<State> state_of(const OptionalTensor& kv, const OptionalTensor& key_sum,
                              const OptionalTensor& log_scale) {
  if (!kv.has_value() || !kv->defined()) return {};
  TORCH_CHECK_VALUE(key_sum.has_value() && log_scale.has_value(),
                    "attention: an initial state needs initial_kv, initial_key_sum and initial_log_scale");
  return State{*kv, *key_sum, *log_scale};
}

PreparedMap prepared_for(const Tensor& x, int64_t head_dim, const NamedMap& map,
                         const MapStatistics& statistics) {
  return prepare_feature_map(map.options, map.weights, statistics, fixed_size(x, head_dim),
                             fixed_size(x, head_dim + 1));
}

using AttentionResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// [B, T, H, D] of it, or of [B, H, T, D] (heads_first); its own inverse.
Tensor tokens_first(const Tensor& x, bool heads_first) {
  return heads_first ? x.transpose(1, 2) : x;
}

AttentionResult attention_op(const Tensor& query, const Tensor& key, const Tensor& value,
                             PERFORMER_MAP_PARAMETERS, const OptionalTensor& key_mask,
                             const OptionalTensor& query_mask, const OptionalTensor& cu_query,
                             const OptionalTensor& cu_key, const OptionalTensor& initial_kv,
                             const OptionalTensor& initial_key_sum, const OptionalTensor& initial_log_scale,
                             bool causal, int64_t chunk, bool return_state, c10::string_view backend,
                             bool heads_first) {
  check_four_dimensions_of(query, "query");
  check_four_dimensions_of(key, "key");
  check_four_dimensions_of(value, "value");
  const AttentionInputs inputs{.query = tokens_first(query, heads_first),
                               .key = tokens_first(key, heads_first),
                               .value = tokens_first(value, heads_first),
                               .causal = causal,
                               .chunk = chunk,
                               .key_mask = key_mask,
                               .query_mask = query_mask,
                               .cu_query = cu_query,
                               .cu_key = cu_key,
                               .initial = state_of(initial_kv, initial_key_sum, initial_log_scale),
                               .return_state = return_state,
                               .backend = std::string(backend)};
  const NamedMap named(PERFORMER_MAP_NAMES);
  auto results = mapped_results(inputs, prepared_for(inputs.query, 2, named, statistics_for(inputs, named)));
  if (heads_first) std::get<0>(results) = tokens_first(std::get<0>(results), true);
  return results;
}

Tensor step_op(const Tensor& query, const Tensor& key, const Tensor& value, Tensor& kv, Tensor& key_sum,
               Tensor& log_scale, PERFORMER_MAP_PARAMETERS, c10::string_view backend) {
  check_token(query, key, value);
  const NamedMap named(PERFORMER_MAP_NAMES);
  State state{kv, key_sum, log_scale};
  return mapped_step(query, key, value, state, prepared_for(query, 1, named, named.statistics),
                     std::string(backend));
}

using StateResult = std::tuple<Tensor, Tensor, Tensor>;

StateResult key_state_op(const Tensor& key, const Tensor& value, PERFORMER_MAP_PARAMETERS,
                         const OptionalTensor& key_mask, const OptionalTensor& cu_key,
                         const OptionalTensor& initial_kv, const OptionalTensor& initial_key_sum,
                         const OptionalTensor& initial_log_scale, int64_t chunk, c10::string_view backend) {
  check_four_dimensions_of(key, "key");
  const NamedMap named(PERFORMER_MAP_NAMES);
  const KeyInputs inputs{.key = key,
                         .value = value,
                         .key_mask = key_mask,
                         .cu_key = cu_key,
                         .initial = state_of(initial_kv, initial_key_sum, initial_log_scale),
                         .chunk = chunk,
                         .backend = std::string(backend)};
  const State state = key_state(inputs, prepared_for(key, 2, named, named.statistics));
  return {state.kv, state.key_sum, state.log_scale};
}

// Shapes on the meta device, where not every operation of a map's preparation has an implementation in C++.
StateResult state_shapes(const Tensor& key, const Tensor& value, const OptionalTensor& cu,
                         const FeatureMapOptions& options) {
  validate(options, fixed_size(key, 3));
  // A trigonometric state has one feature more (ops/trigonometric.h).
  const int64_t features = feature_count(options, fixed_size(key, 3)) + (map_row(options.map).fused ? 0 : 1);
  const c10::SymInt batch = cu.has_value() ? cu->sym_size(0) - 1 : key.sym_size(0);
  const auto sums = key.options().dtype(precise_type(key));
  const auto one = [&] { return at::empty_symint({batch, key.sym_size(2), features}, sums); };
  return {at::empty_symint({batch, key.sym_size(2), features, value.sym_size(3)}, sums), one(), one()};
}

AttentionResult attention_meta(const Tensor& query, const Tensor& key, const Tensor& value,
                               PERFORMER_MAP_PARAMETERS, const OptionalTensor&, const OptionalTensor&,
                               const OptionalTensor& cu_query, const OptionalTensor&, const OptionalTensor&,
                               const OptionalTensor&, const OptionalTensor&, bool, int64_t, bool return_state,
                               c10::string_view backend, bool heads_first) {
  check_four_dimensions_of(query, "query");
  check_four_dimensions_of(key, "key");
  check_four_dimensions_of(value, "value");
  check_backend_name(backend);
  const Tensor q = tokens_first(query, heads_first), v = tokens_first(value, heads_first);
  const Tensor rows =
      at::empty_symint({v.sym_size(0), q.sym_size(1), q.sym_size(2), v.sym_size(3)}, v.options());
  const Tensor out = tokens_first(rows, heads_first);
  auto [kv, key_sum, log_scale] = state_shapes(q, v, cu_query, NamedMap(PERFORMER_MAP_NAMES).options);
  if (return_state) return {out, kv, key_sum, log_scale};
  const auto none = [options = kv.options()] { return at::empty({0}, options); };
  return {out, none(), none(), none()};
}

Tensor mapped_step_meta(const Tensor& query, const Tensor& key, const Tensor& value, Tensor&, Tensor&,
                        Tensor&, PERFORMER_MAP_PARAMETERS, c10::string_view backend) {
  check_token(query, key, value);
  check_backend_name(backend);
  validate(NamedMap(PERFORMER_MAP_NAMES).options, fixed_size(query, 2));
  return at::empty_like(value, at::MemoryFormat::Contiguous);
}

StateResult key_state_meta(const Tensor& key, const Tensor& value, PERFORMER_MAP_PARAMETERS,
                           const OptionalTensor&, const OptionalTensor& cu_key, const OptionalTensor&,
                           const OptionalTensor&, const OptionalTensor&, int64_t, c10::string_view backend) {
  check_four_dimensions_of(key, "key");
  check_backend_name(backend);
  return state_shapes(key, value, cu_key, NamedMap(PERFORMER_MAP_NAMES).options);
}

// op.call with a map's arguments in the middle.
#define PERFORMER_MAP_ARGUMENTS(options, weights, statistics)                               \
  options.map, options.features, options.projection, options.row_norm, options.epsilon,     \
      or_nothing(weights.projection), or_nothing(weights.matrix), or_nothing(weights.bias), \
      or_nothing(statistics.query_mean), or_nothing(statistics.key_mean),                   \
      or_nothing(statistics.query_moment), or_nothing(statistics.key_moment)

}  // namespace

TORCH_LIBRARY_FRAGMENT(performer, library) {
  library.def("mapped_attention(Tensor query, Tensor key, Tensor value, " PERFORMER_MAP_SCHEMA
              ", Tensor? key_mask=None, Tensor? query_mask=None, Tensor? cu_query=None, Tensor? cu_key=None, "
              "Tensor? initial_kv=None, Tensor? initial_key_sum=None, Tensor? initial_log_scale=None, "
              "bool causal=False, int chunk=0, bool return_state=False, str backend='', "
              "bool heads_first=False) "
              "-> (Tensor out, Tensor kv, Tensor key_sum, Tensor log_scale)",
              attention_op);
  library.def(
      "mapped_step(Tensor query, Tensor key, Tensor value, Tensor(a!) kv, Tensor(b!) key_sum, "
      "Tensor(c!) log_scale, " PERFORMER_MAP_SCHEMA ", str backend='') -> Tensor",
      step_op);
  library.def("mapped_key_state(Tensor key, Tensor value, " PERFORMER_MAP_SCHEMA
              ", Tensor? key_mask=None, Tensor? cu_key=None, Tensor? initial_kv=None, "
              "Tensor? initial_key_sum=None, Tensor? initial_log_scale=None, int chunk=0, str backend='') "
              "-> (Tensor kv, Tensor key_sum, Tensor log_scale)",
              key_state_op);
}

TORCH_LIBRARY_IMPL(performer, Meta, library) {
  library.impl("mapped_attention", attention_meta);
  library.impl("mapped_step", mapped_step_meta);
  library.impl("mapped_key_state", key_state_meta);
}

std::tuple<Tensor, State> mapped_attention(const AttentionInputs& in, const FeatureMapOptions& options,
                                           const MapWeights& weights, const MapStatistics& statistics) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("performer::mapped_attention", "")
                             .typed<decltype(attention_op)>();
  const State initial = in.initial.value_or(State{});
  auto [out, kv, key_sum, log_scale] =
      op.call(in.query, in.key, in.value, PERFORMER_MAP_ARGUMENTS(options, weights, statistics), in.key_mask,
              in.query_mask, in.cu_query, in.cu_key, or_nothing(initial.kv), or_nothing(initial.key_sum),
              or_nothing(initial.log_scale), in.causal, in.chunk, in.return_state, in.backend,
              /*heads_first=*/false);
  return {out, in.return_state ? State{kv, key_sum, log_scale} : State{}};
}

Tensor mapped_step(const Tensor& query, const Tensor& key, const Tensor& value, State& state,
                   const FeatureMapOptions& options, const MapWeights& weights,
                   const MapStatistics& statistics, const std::string& backend) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("performer::mapped_step", "").typed<decltype(step_op)>();
  check_token(query, key, value);
  if (!state.defined()) {
    const PreparedMap prepared =
        prepare_feature_map(options, weights, statistics, query.size(1), query.size(2));
    state = new_state(prepared, query, value);
  }
  return op.call(query, key, value, state.kv, state.key_sum, state.log_scale,
                 PERFORMER_MAP_ARGUMENTS(options, weights, statistics), backend);
}

State key_state(const KeyInputs& in, const FeatureMapOptions& options, const MapWeights& weights,
                const MapStatistics& statistics) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("performer::mapped_key_state", "")
                             .typed<decltype(key_state_op)>();
  const State initial = in.initial.value_or(State{});
  auto [kv, key_sum, log_scale] =
      op.call(in.key, in.value, PERFORMER_MAP_ARGUMENTS(options, weights, statistics), in.key_mask, in.cu_key,
              or_nothing(initial.kv), or_nothing(initial.key_sum), or_nothing(initial.log_scale), in.chunk,
              in.backend);
  return {kv, key_sum, log_scale};
}

}  // namespace performer::ops
