// SPDX-License-Identifier: Apache-2.0
#include "performer/models/bounds.h"

#include <numeric>

#include "performer/base/error.h"
#include "performer/nn/attention/kind.h"
#include "performer/nn/position_embeddings.h"

namespace performer {
namespace {

// A layer's modules, names and small vectors take about 30 KB even where its matrices are tiny.
constexpr double kNumbersOfModules = 8192;

// Of all layers.
double attention_numbers(const ModelConfig& model, const AttentionConfig& attention) {
  const auto width = static_cast<double>(model.width), size = static_cast<double>(head_size(model));
  const double inner = static_cast<double>(model.heads) * size;
  const double keys = static_cast<double>(kv_heads(model)) * size;
  const int64_t heads = model.heads - attention.local_heads;
  const nn::AttentionKind& kind = nn::find_kind(attention.kind);
  const double layer = 2 * (width + 1) * (inner + 1) +
                       (kind.capabilities.own_keys ? 2 : 1) * (width + 1) * (keys + 1) + 2 * inner;
  const auto layers = static_cast<double>(model.layers);
  if (heads < 1 || !kind.numbers) return layers * layer;
  const auto own = [&](int64_t index) {
    return kind.numbers(attention, {heads, head_size(model), model.objective == "causal", index});
  };
  return layers * layer + own(0) + (layers - 1) * own(1);
}

double position_rows(const ModelConfig& model) {
  if (model.positions == "learned" || model.added_positions) return static_cast<double>(model.max_length);
  if (model.positions != "axial") return 0;
  const std::vector<int64_t> shape =
      nn::axial_shape(model.max_length, nn::parse_axial_axes(model.axial_axes));
  return static_cast<double>(std::accumulate(shape.begin(), shape.end(), int64_t{0}));
}

}  // namespace

double building_numbers(const ModelConfig& model, const AttentionConfig& attention, int64_t vocabulary) {
  const auto width = static_cast<double>(model.width), ffn = static_cast<double>(model.ffn);
  const double rows = static_cast<double>(vocabulary) * (model.tied_output ? 1 : 2) + position_rows(model);
  const double matrices = model.ffn_gate ? 3 : 2;
  const double layer = matrices * (width + 1) * (ffn + 1) + 6 * width + kNumbersOfModules;
  const double head = model.output_head == "transform" ? (width + 4) * width : 0;
  return head + 3 * width + static_cast<double>(head_size(model)) + (rows + 4) * (width + 1) +
         attention_numbers(model, attention) + static_cast<double>(model.layers) * layer;
}

void check_weights_suffice(const ModelConfig& model, const AttentionConfig& attention, int64_t vocabulary,
                           const std::map<std::string, at::Tensor>& weights, const std::string& source) {
  double found = 0;
  for (const auto& [name, tensor] : weights) found += static_cast<double>(tensor.numel());
  const double needed = building_numbers(model, attention, vocabulary);
  check<InputError>(needed <= 2 * found + kSpareNumbers,
                    "{} is of another architecture: it has {:.0f} numbers, but the configuration beside it "
                    "asks for about {:.3g}; nothing was built",
                    source, found, needed);
}

}  // namespace performer
