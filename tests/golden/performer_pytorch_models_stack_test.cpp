// SPDX-License-Identifier: Apache-2.0
// Whole stacks and language models of performer-pytorch 1.1.4, run on their own weights.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <regex>

#include "performer/base/files.h"
#include "performer/references/performer_pytorch/import.h"
#include "tests/golden/performer_pytorch_models.h"

namespace performer::golden::performer_pytorch {
namespace {

void expect_stack(Group& group, const Case& item, at::ScalarType type) {
  PerformerStack model(stack_options(item.options));
  import_performer_pytorch(*model, weights(item));
  model->to(type);
  model->train(model->options().reversible);  // as recorded: its reversible backward pass needs it
  PerformerStackInputs inputs;
  std::map<std::string, at::Tensor> differentiated;
  inputs.x = differentiated["x"] = number(item, "x", type).requires_grad_();
  if (item.has("context")) {
    inputs.context = differentiated["context"] = number(item, "context", type).requires_grad_();
  }
  if (item.has("pos_table")) inputs.positions = item.tensor("pos_table");
  inputs.mask = mask(item, "mask");
  inputs.context_mask = mask(item, "context_mask");
  expect_all(group, item, "out", model(inputs), *model, differentiated, performer_pytorch_name);
}

void expect_lm(Group& group, const Case& item, at::ScalarType type) {
  PerformerLM model(lm_options(item.options));
  import_performer_pytorch(*model, weights(item));
  model->to(type);
  model->train(model->options().stack.reversible);
  PerformerLMInputs inputs;
  std::map<std::string, at::Tensor> differentiated;
  inputs.tokens = integer(item, "tokens");
  inputs.mask = mask(item, "mask");
  if (item.has("context")) {
    inputs.context = differentiated["context"] = number(item, "context", type).requires_grad_();
  }
  inputs.context_mask = mask(item, "context_mask");
  const at::Tensor out =
      item.options.value("return_encodings", false) ? model->encode(inputs) : model(inputs);
  expect_all(group, item, "out", out, *model, differentiated, performer_pytorch_name);
}

TEST(PerformerPytorchModels, Performer) {
  run_group("performer", "performer-pytorch", [&](Group& group, const Case& item) {
    ASSERT_EQ(item.function, "Performer");
    expect_stack(group, item, at::kFloat);
    expect_stack(group, item, at::kDouble);
  });
}

TEST(PerformerPytorchModels, PerformerLM) {
  run_group("lm", "performer-pytorch", [&](Group& group, const Case& item) {
    ASSERT_EQ(item.function, "PerformerLM");
    expect_lm(group, item, at::kFloat);
    expect_lm(group, item, at::kDouble);
  });
}

// In which of `count` forward calls the projection changed, counted from 1.
std::vector<int64_t> redraws(int64_t interval, bool alternating, int64_t count) {
  PerformerStackOptions options;
  options.dim = 8;
  options.depth = options.heads = 2;
  options.dim_head = 4;
  options.redraw_interval = interval;
  PerformerStack stack(options);
  std::vector<int64_t> changed;
  const at::NoGradGuard no_grad;
  for (int64_t call = 1; call <= count; ++call) {
    stack->train(!alternating || call % 2 == 1);
    const at::Tensor before =
        stack->named_buffers()["blocks_1.attention.fast_attention.projection_matrix"].clone();
    PerformerStackInputs inputs;
    inputs.x = at::ones({1, 3, 8});
    stack(inputs);
    if (!at::equal(before, stack->named_buffers()["blocks_1.attention.fast_attention.projection_matrix"])) {
      changed.push_back(call);
    }
  }
  return changed;
}

TEST(PerformerPytorchModels, RedrawSchedule) {
  const std::regex kName(R"(interval(\d+|None)_(all_training|train_eval_alternating)|intervalNone)");
  int compared = 0;
  for (const std::string& folder : folders()) {
    const auto index = nlohmann::json::parse(read_file(folder + "/index.json"));
    const nlohmann::json meta = index.value("meta", nlohmann::json::object());
    if (!meta.is_object() || !meta.value("reference", "").starts_with("performer-pytorch")) continue;
    const nlohmann::json schedules = meta.value("redraw_schedule", nlohmann::json::object());
    for (const auto& [name, calls] : schedules.items()) {
      if (name == "meaning") continue;
      std::smatch match;
      ASSERT_TRUE(std::regex_match(name, match, kName)) << name;
      const bool never = !match[1].matched || match[1] == "None";
      const auto expected = calls.get<std::vector<int64_t>>();
      const int64_t count = expected.empty() ? 12 : expected.back();
      EXPECT_EQ(redraws(never ? -1 : std::stol(match[1]), match[2] == "train_eval_alternating", count),
                expected)
          << name;
      ++compared;
    }
  }
  if (compared == 0) GTEST_SKIP() << kMissing;
  std::cout << "[  golden  ] redraw schedules: " << compared << " compared\n";
}

}  // namespace
}  // namespace performer::golden::performer_pytorch
