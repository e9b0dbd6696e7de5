// SPDX-License-Identifier: Apache-2.0
// Sinusoidal positions against protein_lm's get_positional_encodings.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "performer/nn/positions.h"
#include "tests/golden/golden.h"

namespace performer::golden {
namespace {

TEST(PlmPositions, Sinusoids) {
  run_group("plm_positions", [&](Group& group, const Case& item) {
    const auto length = item.option<int64_t>("max_len"), width = item.option<int64_t>("emb");
    const at::Tensor table = nn::sinusoids(at::arange(length), width, item.option<bool>("concatenate"));
    group.expect(item, "pe", table);
    group.expect(item, "pe", table.to(at::kFloat));
  });
}

}  // namespace
}  // namespace performer::golden
