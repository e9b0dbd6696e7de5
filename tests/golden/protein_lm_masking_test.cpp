// SPDX-License-Identifier: Apache-2.0
// protein_lm's objectives (models.py): masking with recorded draws, and the causal shift.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "performer/data/batches.h"
#include "performer/data/vocabulary.h"
#include "performer/references/protein_lm/data.h"
#include "tests/golden/golden.h"

namespace performer::golden {
namespace {

namespace protein_lm = references::protein_lm;

template <class T>
std::vector<T> values(const at::Tensor& tensor) {
  const at::Tensor typed = tensor.to(c10::CppTypeToScalarType<T>::value).contiguous();
  return {typed.data_ptr<T>(), typed.data_ptr<T>() + typed.numel()};
}

data::Corruption mix_of(const Case& item) {
  return {.mask = item.option<double>("mask_token_proportion"),
          .random = item.option<double>("random_token_proportion")};
}

void run_masking(Group& group, const Case& item) {
  const protein_lm::Vocabulary vocabulary;
  const at::Tensor tokens = item.tensor("tokens").to(at::kLong);
  std::optional<protein_lm::MaskDraws> draws;
  if (item.has("bernoulli_uniform")) {
    draws = {item.tensor("bernoulli_uniform"), item.tensor("rand_uniform"),
             item.tensor("random_ids").to(at::kLong)};
  }
  const auto rate = item.option<double>("mask_rate");
  const data::Corruption mix = mix_of(item);
  const protein_lm::Example example = protein_lm::masked_example(tokens, vocabulary, draws, rate, mix);
  group.expect(item, "masked_inputs", example.inputs);
  group.expect(item, "targets", example.targets);
  group.expect(item, "weights", example.weights);
  group.expect(item, "normal_tokens", at::tensor(vocabulary.normal_tokens()));
  if (item.outputs.contains("eval_seed")) {
    group.expect(item, "eval_seed", at::scalar_tensor(protein_lm::evaluation_seed(tokens), at::kLong));
  }
  if (!draws) return;
  // The rule that our own objective shares.
  const data::Vocabulary ours = data::Vocabulary::protein();
  std::vector<int64_t> inputs = values<int64_t>(tokens);
  const std::vector<float> weights =
      data::corrupt(inputs, values<float>(draws->choose), values<float>(draws->mix),
                    values<int64_t>(draws->replacement), rate, mix, {ours.pad(), ours.mask()});
  group.expect(item, "masked_inputs", at::tensor(inputs, at::kLong).view_as(tokens));
  group.expect(item, "weights", at::tensor(weights).view_as(tokens));
}

// Counts of one draw without its tokens: positions, chosen, masked, visibly changed, kept. Ours from other
// draws must be as probable.
void run_counts(Group& group, const Case& item) {
  const std::vector<int64_t> theirs = values<int64_t>(item.tensor("counts"));
  const int64_t positions = theirs[0];
  const data::Vocabulary vocabulary = data::Vocabulary::protein();
  std::vector<int64_t> tokens(positions);
  for (int64_t i = 0; i < positions; ++i) tokens[i] = i % vocabulary.symbols();
  std::vector<int64_t> inputs = tokens;
  std::vector<float> weights(positions);
  data::corrupt_symbols(inputs, weights, PhiloxStream(1), 0, item.option<double>("mask_rate"), mix_of(item),
                        vocabulary);
  std::vector<int64_t> ours = {positions, 0, 0, 0, 0};
  for (int64_t i = 0; i < positions; ++i) {
    if (weights[i] == 0) continue;
    ++ours[1];
    ++ours[inputs[i] == vocabulary.mask() ? 2 : inputs[i] != tokens[i] ? 3 : 4];
  }
  for (size_t i = 1; i < ours.size(); ++i) {
    const double n = static_cast<double>(positions), p = static_cast<double>(theirs[i]) / n;
    EXPECT_NEAR(ours[i], theirs[i], 5 * std::sqrt(2 * n * p * (1 - p))) << item.id << ", count " << i;
  }
  group.known_other(item, "counts of one seeded draw of another generator; ours are within five deviations");
}

void run_causal(Group& group, const Case& item) {
  std::optional<int64_t> pad;
  if (!item.options.at("pad").is_null()) pad = item.option<int64_t>("pad");
  const protein_lm::Example example =
      protein_lm::causal_example(item.tensor("tokens").to(at::kLong), item.option<int64_t>("bos"), pad,
                                 /*shift=*/item.option<std::string>("mode") != "sample");
  group.expect(item, "inputs", example.inputs);
  group.expect(item, "targets", example.targets);
  group.expect(item, "weights", example.weights);
}

TEST(GoldenMasking, AgreesWithTheReference) {
  run_group("plm_masking", [&](Group& group, const Case& item) {
    if (item.has("masked_inputs")) {
      run_masking(group, item);
    } else if (item.has("counts")) {
      run_counts(group, item);
    } else {
      run_causal(group, item);
    }
  });
}

}  // namespace
}  // namespace performer::golden
