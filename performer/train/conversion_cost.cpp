// SPDX-License-Identifier: Apache-2.0
#include "performer/train/conversion_cost.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "performer/nn/attention/kind.h"
#include "performer/ops/feature_maps.h"

namespace performer::train {
namespace {

using nlohmann::ordered_json;

constexpr int kRepetitions = 3;
constexpr double kClearly = 0.9;  // smaller differences may be chance
constexpr double kMebibyte = 1 << 20;

double milliseconds(nn::Attention& attention, const ops::AttentionInputs& inputs) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kRepetitions + 1; ++i) {  // the first one warms up
    const auto started = std::chrono::steady_clock::now();
    attention.forward(inputs);
    const std::chrono::duration<double, std::milli> passed = std::chrono::steady_clock::now() - started;
    if (i > 0) best = std::min(best, passed.count());
  }
  return best;
}

// Numbers that the linear part keeps of one head: the state, its sums and its scales.
double numbers_of_state(const AttentionConfig& attention, int64_t size) {
  const nn::AttentionKind& kind = nn::find_kind(attention.kind);
  if (!kind.feature_map) return std::numeric_limits<double>::quiet_NaN();
  const auto features = static_cast<double>(ops::feature_count(kind.feature_map(attention), size));
  return features * static_cast<double>(size + 2);
}

// Heads that keep keys and values, and what the others keep, over all layers.
struct Kept {
  double exact_heads = 0, state_numbers = 0;
};
Kept kept_by(const LanguageModel& model) {
  const ModelConfig& config = model->model_config();
  const AttentionConfig& attention = model->attention_config();
  const auto all = static_cast<double>(config.heads * config.layers);
  if (attention.kind == "exact") return {all, 0};
  if (attention.kind != "hybrid") return {0, all * numbers_of_state(attention, head_size(config))};
  AttentionConfig linear = attention;
  linear.kind = std::get<std::string>(attention.options.at("linear"));
  for (const char* own : {"linear", "exact_heads"}) linear.options.erase(own);
  double exact = 0;
  const std::string& text = std::get<std::string>(attention.options.at("exact_heads"));
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    const std::string layer = text.substr(at, end - at);
    exact += layer.ends_with("*") ? static_cast<double>(config.heads)
                                  : 1 + static_cast<double>(std::count(layer.begin(), layer.end(), ','));
    at = end + 1;
  }
  return {exact, (all - exact) * numbers_of_state(linear, head_size(config))};
}

}  // namespace

ordered_json measure_speed(const LanguageModel& model, int64_t longest) {
  const ModelConfig& config = model->model_config();
  const nn::AttentionShape shape{config.heads, head_size(config), config.objective == "causal", 0};
  AttentionConfig exact_config;
  exact_config.kind = "exact";
  const auto exact = nn::make_attention(exact_config, shape);
  const auto converted = nn::make_attention(model->attention_config(), shape);
  exact->eval();
  converted->eval();
  const at::NoGradGuard no_grad;
  ordered_json report = {{"lengths", ordered_json::array()},
                         {"exact_ms", ordered_json::array()},
                         {"converted_ms", ordered_json::array()},
                         {"faster_from", nullptr}};
  for (int64_t length = 128; length <= longest; length *= 2) {
    ops::AttentionInputs inputs;
    for (at::Tensor* each : {&inputs.query, &inputs.key, &inputs.value})
      *each = at::randn({1, length, shape.heads, shape.head_size});
    inputs.causal = shape.causal;
    const double of_exact = milliseconds(*exact, inputs), of_converted = milliseconds(*converted, inputs);
    report["lengths"].push_back(length);
    report["exact_ms"].push_back(of_exact);
    report["converted_ms"].push_back(of_converted);
    if (of_converted > kClearly * of_exact) {
      report["faster_from"] = nullptr;
    } else if (report["faster_from"].is_null()) {
      report["faster_from"] = length;
    }
  }
  return report;
}

ordered_json kept_memory(const LanguageModel& model) {
  const Kept kept = kept_by(model);
  const auto size = static_cast<double>(head_size(model->model_config()));
  ordered_json report;
  for (const int64_t length : {1024, 8192, 65536}) {
    const double numbers = kept.exact_heads * 2 * size * static_cast<double>(length) + kept.state_numbers;
    const ordered_json value = numbers * sizeof(float) / kMebibyte;
    report[std::to_string(length)] = std::isfinite(numbers) ? value : ordered_json(nullptr);
  }
  return report;
}

}  // namespace performer::train
