// SPDX-License-Identifier: Apache-2.0
// Losses, generation and sampling rules of performer-pytorch 1.1.4.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "performer/references/performer_pytorch/autoregressive.h"
#include "performer/references/performer_pytorch/encoder_decoder.h"
#include "performer/references/performer_pytorch/import.h"
#include "performer/references/performer_pytorch/sampling.h"
#include "tests/golden/performer_pytorch_models.h"

namespace performer::golden::performer_pytorch {
namespace {

// Weights of these cases are the inner model's, without the wrapper's prefix.
Autoregressive import_wrapper(const Case& item, at::ScalarType type) {
  const AutoregressiveOptions options = loss_options(item.options.value("loss", nlohmann::json::object()));
  Autoregressive model(PerformerLM(lm_options(item.options)), options);
  import_performer_pytorch(*model->net(), weights(item));
  model->to(type);
  model->train(model->net()->options().stack.reversible);
  return model;
}

void expect_loss(Group& group, const Case& item, at::ScalarType type) {
  Autoregressive model = import_wrapper(item, type);
  PerformerLMInputs inputs;
  std::map<std::string, at::Tensor> differentiated;
  inputs.tokens = integer(item, "tokens");
  inputs.mask = mask(item, "mask");
  if (item.has("context")) {
    inputs.context = differentiated["context"] = number(item, "context", type).requires_grad_();
  }
  inputs.context_mask = mask(item, "context_mask");
  expect_all(group, item, "loss", model(inputs).view({1}), *model->net(), differentiated,
             performer_pytorch_name);
}

DecodingOptions decoding_options(const Case& item) {
  DecodingOptions options;
  options.filter = item.options.value("filter", options.filter);
  options.filter_threshold = item.options.value("filter_thres", options.filter_threshold);
  options.temperature = item.options.value("temperature", options.temperature);
  options.repetition_penalty = item.options.value("repetition_penalty", options.repetition_penalty);
  options.repetition_window = item.options.value("repetition_penalty_ctx", options.repetition_window);
  const auto end = item.options.find("eos_token");
  if (end != item.options.end() && !end->is_null()) end->get_to(options.end_token);
  return options;
}

// Generates from input `name`, of which the reference also takes a single row [T]; it answers with one then.
template <class Generate>
void expect_generated(Group& group, const Case& item, const std::string& name, const Generate& generate) {
  const at::Tensor given = integer(item, name);
  const at::Tensor out = generate(given.dim() == 1 ? given.unsqueeze(0) : given);
  group.expect(item, "generated", (given.dim() == 1 ? out.squeeze(0) : out).to(at::kInt));
}

void expect_generation(Group& group, const Case& item, at::ScalarType type) {
  Autoregressive model = import_wrapper(item, type);
  expect_generated(group, item, "start", [&](const at::Tensor& tokens) {
    PerformerLMInputs start;
    start.tokens = tokens;
    start.mask = mask(item, "mask");
    if (item.has("context")) start.context = number(item, "context", type);
    start.context_mask = mask(item, "context_mask");
    return model->generate(start, item.option<int64_t>("steps"), decoding_options(item));
  });
}

void expect_rules(Group& group, const Case& item) {
  const at::Tensor logits = item.tensor("logits_in");
  const double threshold = item.option<double>("thres"), theta = item.option<double>("theta");
  ASSERT_EQ(item.option<int64_t>("vocabulary"), logits.size(1));
  const auto kept = [](const at::Tensor& filtered) { return filtered.isfinite().to(at::kInt); };
  group.expect(item, "top_k_kept", kept(keep_top_k(logits, threshold)));
  group.expect(item, "top_p_kept", kept(keep_top_p(logits, threshold)));
  group.expect(item, "out_penalised", penalize_repetition(logits, integer(item, "ctx"), theta));
}

// Gradients of these cases were recorded in float32 without a tolerance: they are held to a part in 10^4, and
// to what float32 leaves of gradients that are nothing beside the model's others.
void expect_untold_gradients(const Case& item, const torch::nn::Module& model) {
  const auto parameters = model.named_parameters();
  double noise = 0;
  for (const auto& parameter : parameters) {
    const at::Tensor gradient = parameter.value().grad();
    if (gradient.defined()) noise = std::max(noise, 2e-7 * gradient.abs().max().item<double>());
  }
  for (const std::string& input : item.inputs) {
    if (!input.starts_with("dw.")) continue;
    std::string theirs = input.substr(3), ours = performer_pytorch_name(theirs);
    if (!parameters.contains(ours) && theirs == "enc.token_emb.weight") {
      ours = "decoder.net.token_embedding.weight";  // tied
    }
    ASSERT_TRUE(parameters.contains(ours)) << item.id << " " << input;
    const at::Tensor expected = item.tensor(input).to(at::kDouble);
    const double largest = expected.abs().max().item<double>();
    const at::Tensor distance = (parameters[ours].grad().to(at::kDouble) - expected).abs();
    EXPECT_LE(distance.max().item<double>(), 1e-4 * largest + noise) << item.id << " " << input;
  }
}

void expect_encoder_decoder(Group& group, const Case& item, at::ScalarType type) {
  EncoderDecoder model(encoder_decoder_options(item.options));
  import_performer_pytorch(*model, weights(item));
  model->to(type);
  model->train(model->encoder()->options().stack.reversible ||
               model->decoder()->net()->options().stack.reversible);
  if (item.outputs.contains("generated")) {
    expect_generated(
        group, item, item.has("start") ? "start" : "seq_out_start", [&](const at::Tensor& start) {
          return model->generate(integer(item, "seq_in"), start, item.option<int64_t>("steps"),
                                 decoding_options(item), mask(item, "enc_mask"), mask(item, "mask"));
        });
    return;
  }
  const at::Tensor loss = model->forward(integer(item, "seq_in"), integer(item, "seq_out"),
                                         mask(item, "enc_mask"), mask(item, "dec_mask"));
  expect_all(group, item, "loss", loss.view({1}), *model, {}, performer_pytorch_name);
  if (item.outputs.size() == 1) loss.backward();
  expect_untold_gradients(item, *model);
}

void expect_wrapper_case(Group& group, const Case& item, at::ScalarType type) {
  if (item.function == "AutoregressiveWrapper(PerformerLM)") {
    expect_loss(group, item, type);
  } else if (item.function == "AutoregressiveWrapper.generate") {
    expect_generation(group, item, type);
  } else if (item.function == "top_k / top_p / repetition_penalty_fn") {
    expect_rules(group, item);
  } else if (item.function.starts_with("PerformerEncDec")) {
    expect_encoder_decoder(group, item, type);
  } else {
    FAIL() << item.id << ": function " << item.function << " is not known to this test";
  }
}

TEST(PerformerPytorchModels, Wrappers) {
  run_group("wrapper", "performer-pytorch", [&](Group& group, const Case& item) {
    expect_wrapper_case(group, item, at::kFloat);
    expect_wrapper_case(group, item, at::kDouble);
  });
}

}  // namespace
}  // namespace performer::golden::performer_pytorch
