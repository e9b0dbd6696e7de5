// SPDX-License-Identifier: Apache-2.0
// Attention of sequences whose slices lie on several ranks, states gathered and scanned, against one call
// over everything.
#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "performer/distributed/states.h"
#include "performer/nn/attention.h"
#include "tests/distributed/ranks.h"

namespace performer::distributed {
namespace {

constexpr int64_t kTokens = 41, kWidth = 12;

nn::MultiHeadAttention make_layer(const std::string& objective) {
  ModelConfig model;
  model.objective = objective;
  model.width = kWidth;
  model.heads = 2;
  model.ffn = 20;
  AttentionConfig attention;
  attention.kind = "favor-softmax";
  attention.set("features", 10);
  at::manual_seed(4);
  nn::MultiHeadAttention layer(model, attention, 0);
  layer->to(at::kDouble);
  return layer;
}

struct Whole {
  SequenceBatch batch;  // but for its tokens, which a layer does not read
  at::Tensor x, weights;
  std::vector<int64_t> bounds;  // of segments; empty: rows
};

Whole make_whole(int64_t rows, const std::vector<int64_t>& bounds) {
  at::manual_seed(9);
  Whole whole{{},
              at::randn({rows, kTokens, kWidth}, at::kDouble),
              at::randn({rows, kTokens, kWidth}, at::kDouble),
              bounds};
  whole.batch.positions = at::arange(kTokens).expand({rows, kTokens}).contiguous();
  if (bounds.empty()) {
    whole.batch.key_mask = at::rand({rows, kTokens}).gt(0.2);
  } else {
    whole.batch.cu_seqlens = at::tensor(bounds, at::kLong);
  }
  return whole;
}

SequenceBatch slice_of(const Whole& whole, const std::vector<int64_t>& cuts, int64_t rank,
                       const std::shared_ptr<nn::StateExchange>& exchange) {
  const int64_t begin = cuts[static_cast<size_t>(rank)], end = cuts[static_cast<size_t>(rank) + 1];
  SequenceBatch batch;
  batch.positions = whole.batch.positions.narrow(1, begin, end - begin);
  if (whole.batch.key_mask) batch.key_mask = whole.batch.key_mask->narrow(1, begin, end - begin);
  if (!whole.bounds.empty()) {
    std::vector<int64_t> own = {0};
    for (const int64_t bound : whole.bounds) {
      if (bound > begin && bound < end) own.push_back(bound - begin);
    }
    own.push_back(end - begin);
    batch.cu_seqlens = at::tensor(own, at::kLong);
  }
  auto slices = std::make_shared<nn::Slices>();
  slices->exchange = exchange;
  slices->cuts = cuts;
  slices->bounds = whole.bounds;
  batch.slices = slices;
  return batch;
}

struct LayerResult {
  at::Tensor output, x;                          // the gradient of x
  std::map<std::string, at::Tensor> parameters;  // their gradients
};

void add_layer_gradients(LayerResult& result, nn::MultiHeadAttention& layer) {
  for (const auto& item : layer->named_parameters()) {
    at::Tensor& sum = result.parameters[item.key()];
    sum = sum.defined() ? sum + item.value().grad() : item.value().grad().clone();
  }
}

LayerResult layer_in_one_call(const std::string& objective, const Whole& whole) {
  nn::MultiHeadAttention layer = make_layer(objective);
  const at::Tensor x = whole.x.detach().clone().requires_grad_();
  const at::Tensor output = layer->forward(x, whole.batch);
  (output * whole.weights).sum().backward();
  LayerResult result{output.detach(), x.grad(), {}};
  add_layer_gradients(result, layer);
  return result;
}

LayerResult layer_over_ranks(const std::string& objective, const Whole& whole, int size,
                             int64_t most_gathered) {
  std::vector<nn::MultiHeadAttention> layers;  // made one after the other: they draw from the same generator
  std::vector<int64_t> cuts = {0};
  for (int rank = 0; rank < size; ++rank) {
    layers.push_back(make_layer(objective));
    cuts.push_back(kTokens * (rank + 1) / size);
  }
  std::vector<at::Tensor> outputs(static_cast<size_t>(size)), gradients(static_cast<size_t>(size));
  LayerResult result;
  std::mutex mutex;
  testing::expect_no_errors(testing::run_ranks(size, [&](Communicator& ranks) {
    const auto rank = static_cast<size_t>(ranks.rank());
    const int64_t begin = cuts[rank], count = cuts[rank + 1] - begin;
    const auto exchange = state_exchange(ranks.group("sequence", 0, 1, size), most_gathered);
    const at::Tensor x = whole.x.narrow(1, begin, count).clone().requires_grad_();
    const at::Tensor output = layers[rank]->forward(x, slice_of(whole, cuts, ranks.rank(), exchange));
    (output * whole.weights.narrow(1, begin, count)).sum().backward();
    outputs[rank] = output.detach();
    gradients[rank] = x.grad();
    const std::lock_guard lock(mutex);
    add_layer_gradients(result, layers[rank]);
  }));
  result.output = at::cat(outputs, 1);
  result.x = at::cat(gradients, 1);
  return result;
}

void expect_close(const at::Tensor& found, const at::Tensor& expected, const std::string& what) {
  EXPECT_LE((found - expected).norm().item<double>(), 1e-11 * expected.norm().item<double>()) << what;
}

class SlicesOfAttention : public ::testing::TestWithParam<std::tuple<std::string, int64_t>> {};

TEST_P(SlicesOfAttention, AreThoseOfOneCall) {
  const auto& [objective, most_gathered] = GetParam();
  // Rows; a segment over all slices; segments that begin and end within slices and at their cuts.
  const std::map<std::string, Whole> all = {{"rows", make_whole(2, {})},
                                            {"one segment", make_whole(1, {0, kTokens})},
                                            {"a long one", make_whole(1, {0, 3, 36, kTokens})},
                                            {"many", make_whole(1, {0, 8, 9, 13, 24, 30, kTokens})}};
  for (const auto& [name, whole] : all) {
    const LayerResult expected = layer_in_one_call(objective, whole);
    for (const int size : {3, 5}) {
      const LayerResult found = layer_over_ranks(objective, whole, size, most_gathered);
      expect_close(found.output, expected.output, name);
      expect_close(found.x, expected.x, name + ", gradient of x");
      for (const auto& [parameter, gradient] : expected.parameters)
        expect_close(found.parameters.at(parameter), gradient, name + ", gradient of " + parameter);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, SlicesOfAttention,
                         ::testing::Combine(::testing::Values("causal", "masked"), ::testing::Values(100, 1)),
                         [](const auto& info) {
                           return std::get<0>(info.param) +
                                  (std::get<1>(info.param) == 1 ? "Scanned" : "Gathered");
                         });

}  // namespace
}  // namespace performer::distributed
