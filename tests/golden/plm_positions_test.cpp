// SPDX-License-Identifier: Apache-2.0
// Sinusoidal positions against protein_lm's get_positional_encodings.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "performer/nn/positions.h"
#include "tests/golden/golden.h"

namespace performer {
namespace {

TEST(PlmPositions, Sinusoids) {
  golden::Group group("plm_positions");
  if (group.empty()) GTEST_SKIP() << golden::kMissing;
  for (const golden::Case& item : group.cases()) {
    if (item.option<bool>("concatenate")) {
      group.known_other(item, "all sines before all cosines is an option no model of protein_lm uses");
      continue;
    }
    const at::Tensor table =
        nn::sinusoids(at::arange(item.option<int64_t>("max_len")), item.option<int64_t>("emb"));
    group.expect(item, "pe", table);
    group.expect(item, "pe", table.to(at::kFloat));
  }
  group.finish();
}

}  // namespace
}  // namespace performer
