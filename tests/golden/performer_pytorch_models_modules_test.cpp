// SPDX-License-Identifier: Apache-2.0
// Building blocks of performer-pytorch 1.1.4: norms, feed-forward parts, token shift, position tables.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/linear.h>

#include "performer/base/error.h"
#include "performer/models/import_weights.h"
#include "performer/nn/position_embeddings.h"
#include "performer/nn/token_shift.h"
#include "performer/references/performer_pytorch/fast_attention.h"
#include "performer/references/performer_pytorch/feed_forward.h"
#include "performer/references/performer_pytorch/norms.h"
#include "tests/golden/performer_pytorch_attention.h"
#include "tests/golden/performer_pytorch_models.h"

namespace performer::golden::performer_pytorch {
namespace {

void check_options(const Case& item, const std::set<std::string>& known) {
  for (const auto& [key, value] : item.options.items()) {
    check<InputError>(known.contains(key), "{}: recorded option '{}' is not known to this test", item.id,
                      key);
  }
  EXPECT_EQ(item.options.value("inner", "linear fn.l"), "linear fn.l") << item.id;
}

// A norm or a token shift around the linear layer "fn.l" that the cases have inside.
struct Around : torch::nn::Module {
  explicit Around(const Case& item) {
    const auto dim = item.option<int64_t>("dim");
    if (item.function == "PreShiftTokens") {
      shifts = item.option<std::vector<int64_t>>("shifts");
    } else {
      const std::string kind = item.function == "PreScaleNorm"   ? "scale-norm"
                               : item.function == "PreLayerNorm" ? "layer-norm"
                                                                 : "rezero";
      norm = register_module("norm", BranchNorm(kind, dim, item.options.value("eps", kScaleNormEpsilon)));
    }
    inner = register_module("inner", torch::nn::Linear(dim, dim));
  }
  at::Tensor forward(const at::Tensor& x, const std::optional<at::Tensor>& mask) {
    if (!norm) return inner(nn::shift_tokens(x, shifts, mask));
    return norm->after(inner(norm->before(x)));
  }
  static std::string name(const std::string& theirs) {
    if (theirs == "g") return "norm.gain";
    return theirs.starts_with("fn.l.") ? "inner." + theirs.substr(5) : theirs;
  }
  std::vector<int64_t> shifts;
  BranchNorm norm{nullptr};
  torch::nn::Linear inner{nullptr};
};

void expect_around(Group& group, const Case& item, at::ScalarType type) {
  check_options(item, {"dim", "eps", "inner", "inputs", "shifts", "mask", "B", "L"});
  Around model(item);
  import_weights(model, weights(item), Around::name);
  model.to(type);
  const at::Tensor x = number(item, "x", type).requires_grad_();
  expect_all(group, item, "out", model.forward(x, mask(item, "mask")), model, {{"x", x}}, Around::name);
}

void expect_feed_forward(Group& group, const Case& item, at::ScalarType type) {
  check_options(item, {"dim", "mult", "glu", "activation", "chunks", "along_dim", "B", "L", "inputs"});
  FeedForwardOptions options;
  options.dim = item.option<int64_t>("dim");
  options.mult = item.options.value("mult", options.mult);
  options.glu = item.options.value("glu", false);
  options.activation = kernel_name(item.options.value("activation", nlohmann::json()), "gelu");
  options.chunks = item.options.value("chunks", options.chunks);
  const int64_t along = item.options.value("along_dim", 1);  // of [B, T, dim]
  const bool along_batch = along == 0 || along == -3;
  ASSERT_TRUE(along == 1 || along == -2 || along_batch) << item.id;
  FeedForward model(options);
  const auto name = [](const std::string& theirs) {
    return theirs.starts_with("fn.") ? theirs.substr(3) : theirs;
  };
  import_weights(*model, weights(item), name);
  model->to(type);
  const at::Tensor x = number(item, "x", type).requires_grad_();
  const at::Tensor out = along_batch ? model(x.transpose(0, 1)).transpose(0, 1) : model(x);
  expect_all(group, item, "out", out, *model, {{"x", x}}, name);
}

void expect_rotary(Group& group, const Case& item, at::ScalarType type) {
  check_options(item, {"B", "H", "L", "d", "inputs", "max_seq_len"});
  const auto rotated = [&](const at::Tensor& x) {  // recorded as [B, H, L, d]
    return references::performer_pytorch::rotate_pairs(x.transpose(1, 2), item.tensor("pos_table"))
        .transpose(1, 2);
  };
  const at::Tensor q = number(item, "q", type).requires_grad_();
  const at::Tensor out = rotated(q);
  group.expect(item, "out", out);
  group.expect(item, "out_k", rotated(number(item, "k", type)));
  (out * number(item, "cot", type)).sum().backward();
  group.expect(item, "dq", q.grad());
}

void expect_module_case(Group& group, const Case& item, at::ScalarType type) {
  const std::string& function = item.function;
  if (function == "PreScaleNorm" || function == "PreLayerNorm" || function == "ReZero" ||
      function == "PreShiftTokens") {
    expect_around(group, item, type);
  } else if (function == "FeedForward" || function == "Chunk(FeedForward)") {
    expect_feed_forward(group, item, type);
  } else if (function == "FixedPositionalEmbedding") {
    check_options(item, {"dim", "max_seq_len"});
    group.expect(
        item, "out",
        nn::sinusoid_table(item.option<int64_t>("max_seq_len"), item.option<int64_t>("dim")).to(type));
  } else if (function == "apply_rotary_pos_emb") {
    expect_rotary(group, item, type);
  } else {
    FAIL() << item.id << ": function " << function << " is not known to this test";
  }
}

TEST(PerformerPytorchModels, Modules) {
  run_group("modules", "performer-pytorch", [&](Group& group, const Case& item) {
    expect_module_case(group, item, at::kFloat);
    expect_module_case(group, item, at::kDouble);
  });
}

}  // namespace
}  // namespace performer::golden::performer_pytorch
