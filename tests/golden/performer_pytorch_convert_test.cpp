// SPDX-License-Identifier: Apache-2.0
// Recorded state dictionaries of performer-pytorch's PerformerLM, converted to models of ours, give the
// recorded logits.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "performer/models/convert/convert.h"
#include "performer/references/register.h"
#include "tests/golden/performer_pytorch_models.h"

namespace performer::golden::performer_pytorch {
namespace {

// What a model of ours has too.
bool is_convertible(const PerformerLMOptions& lm) {
  const PerformerStackOptions& stack = lm.stack;
  bool local = false;
  for (const int64_t heads : stack.local_heads) local = local || heads > 0;
  return !local && !stack.cross_attend && !stack.shift_tokens && !stack.ff_glu &&
         stack.norm == "layer-norm" && (lm.positions == "rotary" || lm.positions == "learned") && lm.output;
}

convert::Conversion converted(const Case& item, const PerformerLMOptions& lm) {
  const std::string path =
      (std::filesystem::path(::testing::TempDir()) / "performer_pytorch.safetensors").string();
  write_safetensors(path, {weights(item), {}});
  convert::Request request{path};
  request.tokenizer = convert::Tokenizer::ids;
  request.settings = {std::string("model.objective=") + (lm.stack.causal ? "causal" : "masked"),
                      "model.heads=" + std::to_string(lm.stack.heads)};
  if (lm.stack.generalized) request.attention = "performer-pytorch-generalised";
  if (lm.stack.no_projection) request.attention = "performer-pytorch-no-projection";
  return convert::convert(request);
}

TEST(PerformerPytorchModels, AreConverted) {
  references::register_all();
  const Group group("lm", "performer-pytorch");
  if (group.empty()) GTEST_SKIP() << kMissing;
  int compared = 0;
  for (const Case& item : group.cases()) {
    const PerformerLMOptions lm = lm_options(item.options);
    if (!is_convertible(lm) || item.options.value("return_encodings", false)) continue;
    if (lm.stack.generalized && lm.stack.kernel != "relu") continue;
    convert::Conversion made = converted(item, lm);
    SequenceBatch batch;
    batch.tokens = integer(item, "tokens");
    batch.positions = at::arange(batch.tokens.size(1)).expand_as(batch.tokens);
    batch.key_mask = mask(item, "mask");
    const at::NoGradGuard no_grad;
    const at::Tensor logits = made.folder.model->forward(batch).narrow(2, 0, lm.vocabulary);
    at::Tensor wrong = (logits - item.tensor("out")).abs();
    if (batch.key_mask) wrong = wrong * batch.key_mask->unsqueeze(-1);
    EXPECT_LT(wrong.max().item<double>(), 1e-3) << item.id;
    ++compared;
  }
  EXPECT_GT(compared, 0);
}

}  // namespace
}  // namespace performer::golden::performer_pytorch
