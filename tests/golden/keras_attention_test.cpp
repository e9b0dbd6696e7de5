// SPDX-License-Identifier: Apache-2.0
// Attention of KernelAttention on projected heads: long and short path, windows, streaming.
#include "performer/references/keras/attention.h"

#include "performer/references/keras/projection.h"
#include "tests/golden/keras_case.h"

namespace performer::golden::keras {
namespace {

const std::set<std::string> kAttention = {"num_heads",
                                          "key_dim",
                                          "value_dim",
                                          "feature_transform",
                                          "num_random_features",
                                          "seed",
                                          "is_short_seq",
                                          "scale",
                                          "scale_by_length",
                                          "causal_padding",
                                          "use_causal_windowed",
                                          "causal_chunk_length",
                                          "causal_window_length",
                                          "causal_window_decay"};

std::set<std::string> with_attention(std::set<std::string> names) {
  names.insert(kAttention.begin(), kAttention.end());
  return names;
}

// The recorded projection is the one that its seed gives.
void expect_seeded_projection(const Case& item) {
  const int64_t rows = random_features_of(item);
  ASSERT_EQ(item.has("W"), rows > 0) << item.id;
  if (rows <= 0) return;
  const auto seed = option_or<int64_t>(item, "seed", 0);
  expect_seeded(item, reference::projection_from_seed(rows, item.tensor("query").size(-1), {seed, seed + 1}));
}

void compare_attention(Group& group, const Case& item) {
  expect_known(item, kAttention);
  expect_seeded_projection(item);
  const reference::AttentionOptions with = attention_options(item);
  compare(group, item, [&](const Inputs& inputs) {
    return reference::compute_attention(inputs.at("query"), inputs.at("key"), inputs.at("value"), with,
                                        maybe(inputs, "W"), maybe(inputs, "mask"));
  });
}

TEST(KerasGolden, Attention) {
  run_group("attention", "keras", compare_attention);
}

void compare_windowed_features(Group& group, const Case& item) {
  expect_known(item, {"chunk_length", "window_length", "window_decay", "padding"});
  const reference::Window window{item.option<int64_t>("chunk_length"), item.option<int64_t>("window_length"),
                                 optional<double>(item, "window_decay"),
                                 option_or<std::string>(item, "padding", "none")};
  compare(group, item, [&](const Inputs& inputs) {
    return reference::causal_windowed_attention(inputs.at("query_prime"), inputs.at("key_prime"),
                                                inputs.at("value"), window);
  });
}

void compare_window_sum(Group& group, const Case& item) {
  expect_known(item, {"window_length", "window_weights"});
  const int64_t window = item.option<int64_t>("window_length");
  const bool weighted = item.function == "weighted_window_sum";
  compare(group, item, [&](const Inputs& inputs) {
    const at::Tensor& x = inputs.at("x");
    if (!weighted) return reference::rectangular_window_sum(x, window);
    const auto weights = item.option<std::vector<double>>("window_weights");
    return reference::weighted_window_sum(x, window, at::tensor(weights, x.options().requires_grad(false)));
  });
}

TEST(KerasGolden, Windowed) {
  run_group("windowed", "keras", [&](Group& group, const Case& item) {
    if (item.function == "causal_windowed_performer_attention") {
      compare_windowed_features(group, item);
    } else if (item.function == "rectangular_window_sum" || item.function == "weighted_window_sum") {
      compare_window_sum(group, item);
    } else {
      ASSERT_EQ(item.function, "KernelAttention._compute_attention") << item.id;
      compare_attention(group, item);
    }
  });
}

// The state before the first chunk: zeros, or the recorded one.
reference::Cache initial_cache(const Inputs& inputs) {
  reference::Cache cache;
  cache.kv = maybe(inputs, "kv_init").value_or(at::Tensor());
  cache.k_sum = maybe(inputs, "k_sum_init").value_or(at::Tensor());
  return cache;
}

// Chunk by chunk with the state after each, where it is recorded.
void compare_stream(Group& group, const Case& item, at::ScalarType type) {
  const reference::AttentionOptions with = attention_options(item);
  const Inputs inputs = inputs_of(item, type);
  const at::Tensor query = inputs.at("query"), key = inputs.at("key"), value = inputs.at("value");
  const std::optional<at::Tensor> all = maybe(inputs, "mask");
  std::optional<at::Tensor> mask;
  reference::Cache cache = initial_cache(inputs);
  ASSERT_EQ(cache.kv.defined(), option_or<std::string>(item, "cache_init", "zeros") != "zeros") << item.id;
  std::vector<at::Tensor> outputs;
  int64_t begin = 0, index = 0;
  for (const int64_t length : item.option<std::vector<int64_t>>("chunks")) {
    if (all) mask = all->narrow(1, begin, length);
    const auto part = [&](const at::Tensor& x) { return x.narrow(1, begin, length); };
    outputs.push_back(reference::compute_attention(part(query), part(key), part(value), with,
                                                   maybe(inputs, "W"), mask, &cache));
    const std::string kv = fmt::format("kv_{}", index), k_sum = fmt::format("k_sum_{}", index);
    if (item.outputs.contains(kv)) keras::expect(group, item, kv, cache.kv);
    if (item.outputs.contains(k_sum)) keras::expect(group, item, k_sum, cache.k_sum);
    begin += length;
    ++index;
  }
  ASSERT_EQ(begin, query.size(1)) << item.id;
  expect_out(group, item, inputs, at::cat(outputs, 1));
}

TEST(KerasGolden, Streaming) {
  run_group("streaming", "keras", [&](Group& group, const Case& item) {
    if (item.function == "KernelAttention._compute_attention") {  // a batch form that equals a stream
      compare_attention(group, item);
      return;
    }
    ASSERT_EQ(item.function, "KernelAttention._compute_attention with cache") << item.id;
    expect_known(item, with_attention({"chunks", "cache_init"}));
    expect_seeded_projection(item);
    compare_stream(group, item, at::kFloat);
    compare_stream(group, item, at::kDouble);
  });
}

}  // namespace
}  // namespace performer::golden::keras
