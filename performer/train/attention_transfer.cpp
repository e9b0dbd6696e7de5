// SPDX-License-Identifier: Apache-2.0
#include "performer/train/attention_transfer.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/autograd.h>

#include <memory>

#include "performer/base/error.h"
#include "performer/data/batches.h"
#include "performer/models/folder.h"
#include "performer/nn/attention/kind.h"
#include "performer/train/adam.h"
#include "performer/train/evaluation.h"

namespace performer::train {
namespace {

std::vector<std::shared_ptr<nn::Attention>> kinds_of(const LanguageModel& model) {
  const auto modules = model->named_modules();
  std::vector<std::shared_ptr<nn::Attention>> kinds;
  for (int64_t layer = 0; layer < model->model_config().layers; ++layer) {
    const std::string name = fmt::format("blocks_{}.attention.kind", layer);
    check(modules.contains(name), "layer {} of the model has no attention of its kind to train", layer);
    kinds.push_back(std::dynamic_pointer_cast<nn::Attention>(modules[name]));
  }
  return kinds;
}

// What each layer of the original attends with, and what comes out.
struct LayerSample {
  ops::AttentionInputs inputs;
  at::Tensor output;  // [B, T, H, D]
};

std::vector<LayerSample> sample_layers(LanguageModel& exact, const SequenceBatch& batch) {
  std::vector<LayerSample> samples(static_cast<size_t>(exact->model_config().layers));
  const at::NoGradGuard no_grad;
  exact->observe_attention(
      [&](int64_t layer, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
        ops::AttentionInputs inputs{query.clone(), key.clone(), value.clone()};
        inputs.causal = exact->model_config().objective == "causal";
        inputs.key_mask = inputs.query_mask = batch.key_mask;
        inputs.cu_query = batch.cu_seqlens;
        samples[static_cast<size_t>(layer)].inputs = std::move(inputs);
      });
  exact->hidden(batch);
  exact->observe_attention({});
  const std::vector<std::shared_ptr<nn::Attention>> kinds = kinds_of(exact);
  for (size_t layer = 0; layer < samples.size(); ++layer)
    samples[layer].output = kinds[layer]->forward(samples[layer].inputs);
  return samples;
}

// Squared relative error of each head, [H].
at::Tensor squared_errors(const at::Tensor& output, const at::Tensor& wanted) {
  const auto over_tokens = [](const at::Tensor& x) { return x.square().sum({0, 1, 3}); };
  return over_tokens(output.to(at::kFloat) - wanted) / over_tokens(wanted).clamp_min(1e-20);
}

bool is_chosen(const HeadErrors& errors, size_t layer, size_t head, double threshold) {
  return !(errors[layer][head] <= threshold);  // NaN stays exact too
}

// As attention.exact_heads of kind hybrid has it.
std::string exact_heads_text(const HeadErrors& errors, double threshold) {
  std::vector<std::string> layers;
  for (size_t layer = 0; layer < errors.size(); ++layer) {
    std::vector<std::string> heads;
    for (size_t head = 0; head < errors[layer].size(); ++head) {
      if (is_chosen(errors, layer, head, threshold)) heads.push_back(std::to_string(head));
    }
    if (heads.empty()) continue;
    layers.push_back(heads.size() == errors[layer].size()
                         ? fmt::format("{}:*", layer)
                         : fmt::format("{}:{}", layer, fmt::join(heads, ",")));
  }
  return fmt::format("{}", fmt::join(layers, " "));
}

}  // namespace

HeadErrors head_errors(LanguageModel& exact, LanguageModel& student, const data::Corpus& corpus,
                       const DataConfig& data) {
  exact->eval();
  student->eval();
  data::EvaluationStream stream(corpus, data, exact->model_config().objective);
  const auto batch = stream.next();
  check<InputError>(batch.has_value(), "there is no sequence to measure the errors of attention on");
  const std::vector<LayerSample> samples = sample_layers(exact, to_tensors(*batch));
  const std::vector<std::shared_ptr<nn::Attention>> kinds = kinds_of(student);
  const at::NoGradGuard no_grad;
  HeadErrors errors;
  for (size_t layer = 0; layer < samples.size(); ++layer) {
    const at::Tensor output = kinds[layer]->forward(samples[layer].inputs);
    const at::Tensor found =
        squared_errors(output, samples[layer].output).sqrt().to(at::kDouble).contiguous();
    errors.emplace_back(found.data_ptr<double>(), found.data_ptr<double>() + found.numel());
  }
  return errors;
}

void transfer_attention(LanguageModel& exact, LanguageModel& student, const data::Corpus& corpus,
                        const DataConfig& data, const TransferOptions& options) {
  exact->eval();
  student->eval();
  const std::vector<std::shared_ptr<nn::Attention>> kinds = kinds_of(student);
  std::vector<NamedParameter> parameters;
  for (size_t layer = 0; layer < kinds.size(); ++layer) {
    kinds[layer]->train();  // moments are measured in training alone
    for (const auto& item : kinds[layer]->named_parameters())
      parameters.push_back({fmt::format("{}.{}", layer, item.key()), item.value(), false});
  }
  Adam adam(parameters, {.beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0});
  data::BatchStream batches(corpus, data, exact->model_config().objective);
  for (int64_t step = 1; step <= options.steps; ++step) {
    const std::vector<LayerSample> samples = sample_layers(exact, to_tensors(batches.next()));
    double error = 0;
    adam.zero_gradients();
    for (size_t layer = 0; layer < kinds.size(); ++layer) {  // one layer's graph at a time
      const at::Tensor loss =
          squared_errors(kinds[layer]->forward(samples[layer].inputs), samples[layer].output).mean();
      if (loss.requires_grad()) torch::autograd::backward({loss}, {});
      error += std::sqrt(loss.item<double>()) / static_cast<double>(kinds.size());
    }
    if (!parameters.empty()) adam.step(options.learning_rate);
    for (const auto& kind : kinds) kind->after_step();
    if (options.progress) options.progress(step, error);
  }
  adam.zero_gradients();
  student->eval();
}

LanguageModel with_exact_heads(const LanguageModel& student, const HeadErrors& errors, double threshold) {
  const std::string text = exact_heads_text(errors, threshold);
  if (text.empty()) return student;
  const AttentionConfig& linear = student->attention_config();
  check<UsageError>(nn::find_kind(linear.kind).feature_map != nullptr,
                    "heads of the kind {} cannot be exact beside others: only favor-* kinds can",
                    linear.kind);
  AttentionConfig hybrid = linear;
  hybrid.kind = "hybrid";
  hybrid.set("linear", linear.kind);
  hybrid.set("exact_heads", text);
  LanguageModel made(student->model_config(), hybrid, student->vocabulary());
  std::map<std::string, at::Tensor> state;
  const auto old = model_state(student);
  for (const auto& [name, target] : model_state(made)) {
    const size_t place = name.find(".attention.kind.linear.");
    if (place == std::string::npos) {
      state[name] = old.at(name);
      continue;
    }
    std::string before = name;
    before.erase(place + std::string(".attention.kind.").size(), std::string("linear.").size());
    const at::Tensor& learned = old.at(before);
    const auto layer = static_cast<size_t>(std::stoll(name.substr(std::string("blocks_").size())));
    std::vector<int64_t> kept;
    for (size_t head = 0; head < errors[layer].size(); ++head) {
      if (!is_chosen(errors, layer, head, threshold)) kept.push_back(static_cast<int64_t>(head));
    }
    const bool per_head = learned.dim() > 0 && learned.size(0) == std::ssize(errors[layer]);
    state[name] = per_head ? learned.index_select(0, at::tensor(kept, at::kLong)) : learned;
  }
  set_model_state(made, state, "the hybrid model");
  made->eval();
  return made;
}

}  // namespace performer::train
