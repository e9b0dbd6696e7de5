// SPDX-License-Identifier: Apache-2.0
#include "performer/bench/cases.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "performer/base/error.h"
#include "performer/kernels/function.h"
#include "performer/nn/attention/kind.h"
#include "performer/ops/projection.h"
#include "performer/studies/estimator.h"

namespace performer::bench {
namespace {

// Bounds of the relative error, by the precision of the inputs. In bfloat16 and float16 a result may be off
// by a few units of the last place of what it is made of; a wrong kernel is off by its own size.
double bound(const std::string& dtype) {
  if (dtype == "bfloat16") return 2e-2;
  return dtype == "float16" ? 3e-3 : 2e-5;
}

// Trigonometric denominators of inputs as large as those of the other kinds come near 0, where no precision
// is enough to compare results: inputs of such rows count as half as large.
constexpr double kTrigonometricInputs = 0.5;

std::vector<std::string> measurable_kinds() {
  std::vector<std::string> names;
  for (const std::string& name : nn::kind_names()) {
    const auto& map = nn::find_kind(name).feature_map;
    if (!map) continue;
    AttentionConfig config;
    config.kind = name;
    const ops::FeatureMapTraits traits = ops::feature_map_traits(map(config).map);
    if (!traits.learned && !traits.statistics) names.push_back(name);
  }
  return names;
}

// The factors that the operators find in a projection [H, M, D] or [M, D].
void set_factors(KernelMap& made, const at::Tensor& projection) {
  made.factors = ops::hadamard_factors(projection);
  if (!made.factors.defined()) return;
  made.map.factors = made.factors.const_data_ptr<float>();
  if (projection.dim() == 3 && projection.size(0) > 1)
    made.map.factors_head_stride = made.factors.numel() / projection.size(0);
}

}  // namespace

double Machine::limit(const std::string& dtype) const {
  for (const auto& [name, limit] : limits) {
    if (name == dtype) return limit.flops;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

at::ScalarType scalar_type(const std::string& dtype) {
  if (dtype == "bfloat16") return at::kBFloat16;
  return dtype == "float16" ? at::kHalf : at::kFloat;
}

kernels::DataType data_type(const std::string& dtype) {
  if (dtype == "bfloat16") return kernels::DataType::bfloat16;
  return dtype == "float16" ? kernels::DataType::float16 : kernels::DataType::float32;
}

std::string kind_name(const std::string& kind) {
  return kind == "identity+qk" ? "identity" : kind.substr(0, kind.find(':'));
}

AttentionConfig attention_of(const std::string& kind, int64_t features, int64_t length) {
  AttentionConfig config;
  config.kind = kind_name(kind);
  if (kind == "identity+qk") config.set("projections", true);
  if (config.kind != kind && kind != "identity+qk") config = studies::parse_estimator(kind).attention;
  if (nn::has_option(nn::find_kind(config.kind), "features")) config.set("features", features);
  // Kinds for sequences up to a length are made for this one.
  const std::optional<int64_t> longest = nn::longest_of(config);
  if (longest && *longest < length) config.set("length", length);
  return config;
}

KernelMap kernel_map(const std::string& kind, int64_t heads, int64_t head_size, int64_t features) {
  const std::vector<std::string> known = measurable_kinds();
  check<UsageError>(
      std::find(known.begin(), known.end(), kind_name(kind)) != known.end(),
      "--kinds: {} is not computed by the attention kernels alone, which is what is measured here; "
      "choose from {}",
      kind, fmt::join(known, ", "));
  const ops::FeatureMapOptions options =
      nn::find_kind(kind_name(kind)).feature_map(attention_of(kind, features));
  ops::validate(options, head_size);
  ops::MapWeights weights;
  weights.projection = ops::draw_map_projection(options, heads, head_size, 0, 0, 0);
  KernelMap made;
  made.prepared = ops::prepare_feature_map(options, weights, {}, heads, head_size);
  ops::FeatureMap& from = made.prepared.map;
  kernels::FeatureMap& to = made.map;
  if (made.prepared.trigonometric)
    to.family = kernels::Family::trigonometric;
  else if (from.family == "exponential")
    to.family = kernels::Family::exponential;
  else
    to.family = kernels::Family::elementwise, to.function = kernels::function_from_name(from.family);
  to.scale = made.prepared.trigonometric ? kTrigonometricInputs * from.scale : from.scale;
  to.norm_weight = made.prepared.trigonometric ? -0.5 : from.norm_weight;
  to.epsilon = from.epsilon;
  made.projected = from.projection.has_value() && from.projection->defined();
  made.features = made.rows = ops::feature_count(options, head_size);
  if (made.projected) {
    at::Tensor& rows = from.projection.emplace(from.projection->to(at::kFloat).contiguous());
    to.projection = rows.const_data_ptr<float>();
    if (rows.dim() == 3 && rows.size(0) > 1) to.projection_head_stride = rows.size(1) * rows.size(2);
    made.rows = rows.size(-2);
    set_factors(made, rows);
  }
  if (from.offset.has_value() && from.offset->defined()) {
    at::Tensor& offset = from.offset.emplace(from.offset->to(at::kFloat).contiguous());
    to.offset = offset.const_data_ptr<float>();
    if (offset.dim() == 2 && offset.size(0) > 1) to.offset_head_stride = offset.size(1);
  }
  return made;
}

void compare(Row& row, const at::Tensor& found, const at::Tensor& expected, const std::string& what) {
  check(found.sizes() == expected.sizes(), "{}: shapes to compare differ", what);
  const at::Tensor precise = found.to(at::kDouble);
  const double size = std::max(expected.norm().item<double>(), 1e-30);
  const double error = (precise - expected).norm().item<double>() / size;
  if (!(error <= row.error)) row.error = error;  // also when it is no number
  const double most = bound(row.dtype);
  if (error <= most || !row.failure.empty()) return;
  row.failure =
      fmt::format("{} differ from the definition by {:.2g} of their size, more than {:g}", what, error, most);
}

}  // namespace performer::bench
