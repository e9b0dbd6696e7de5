// SPDX-License-Identifier: Apache-2.0
// protein_lm's objectives (models.py): BERT masking with recorded draws, and the causal shift.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "performer/data/batches.h"
#include "performer/data/vocabulary.h"
#include "tests/golden/golden.h"

namespace performer {
namespace {

template <class T>
std::vector<T> values(const at::Tensor& tensor) {
  const at::Tensor typed = tensor.to(c10::CppTypeToScalarType<T>::value).contiguous();
  return {typed.data_ptr<T>(), typed.data_ptr<T>() + typed.numel()};
}

void expect_masking(golden::Group& group, const golden::Case& item) {
  const at::Tensor tokens = item.tensor("tokens");
  std::vector<int64_t> inputs = values<int64_t>(tokens),
                       replacement = values<int64_t>(item.tensor("random_ids"));
  const std::vector<int64_t> residues = values<int64_t>(item.tensor("normal_tokens"));
  for (int64_t& id : replacement) id = residues[id];
  const data::Corruption mix{.mask = item.option<double>("mask_token_proportion"),
                             .random = item.option<double>("random_token_proportion")};
  const std::vector<float> weights = data::corrupt(inputs, values<float>(item.tensor("bernoulli_uniform")),
                                                   values<float>(item.tensor("rand_uniform")), replacement,
                                                   item.option<double>("mask_rate"), mix);
  group.expect(item, "masked_inputs", at::tensor(inputs, at::kLong).to(at::kInt).view_as(tokens));
  group.expect(item, "weights", at::tensor(weights).to(at::kInt).view_as(tokens));
}

TEST(GoldenMasking, AgreesWithTheReference) {
  golden::Group group("plm_masking");
  if (group.empty()) GTEST_SKIP() << golden::kMissing;
  for (const golden::Case& item : group.cases()) {
    if (item.has("bernoulli_uniform")) {
      expect_masking(group, item);
    } else if (item.has("masked_inputs")) {
      group.known_other(item,
                        "prediction without masking has no counterpart: scoring hides residues one by one");
    } else if (item.has("counts")) {
      group.known_other(
          item, "counts of one seeded draw of another generator; the fractions are tested in tests/data");
    } else {
      group.known_other(
          item,
          "protein_lm shifts padded rows without an end marker; here every sequence is BOS x1 .. xn "
          "asked for x1 .. xn EOS, tested in tests/data");
    }
  }
  group.finish();
}

}  // namespace
}  // namespace performer
