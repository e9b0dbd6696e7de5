// SPDX-License-Identifier: Apache-2.0
#include "tests/golden/performer_pytorch_models.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <set>

#include "performer/base/error.h"
#include "tests/golden/performer_pytorch_attention.h"

namespace performer::golden::performer_pytorch {
namespace {

using nlohmann::json;

// How a case was recorded; not an argument of a constructor.
const std::set<std::string> kDescription = {"B",
                                            "L",
                                            "mask",
                                            "rotary_argument",
                                            "context_len",
                                            "context_mask",
                                            "inputs",
                                            "return_encodings",
                                            "loss",
                                            "filter",
                                            "filter_thres",
                                            "resolved_k",
                                            "steps",
                                            "enc_mask",
                                            "temperature",
                                            "eos_token",
                                            "repetition_penalty",
                                            "repetition_penalty_ctx"};

using Setter = void (*)(PerformerStackOptions&, const json&);

template <auto Member>
void set(PerformerStackOptions& stack, const json& value) {
  value.get_to(stack.*Member);
}

using Stack = PerformerStackOptions;
const std::map<std::string, Setter> kStackArguments = {
    {"dim", set<&Stack::dim>},
    {"depth", set<&Stack::depth>},
    {"heads", set<&Stack::heads>},
    {"dim_head",
     [](Stack& stack, const json& value) { stack.dim_head = value.is_null() ? 0 : value.get<int64_t>(); }},
    {"local_window_size", set<&Stack::local_window_size>},
    {"causal", set<&Stack::causal>},
    {"ff_mult", set<&Stack::ff_mult>},
    {"ff_chunks", set<&Stack::ff_chunks>},
    {"ff_glu", set<&Stack::ff_glu>},
    {"ff_dropout", set<&Stack::ff_dropout>},
    {"attn_dropout", set<&Stack::attn_dropout>},
    {"reversible", set<&Stack::reversible>},
    {"generalized_attention", set<&Stack::generalized>},
    {"kernel_fn", [](Stack& stack, const json& value) { stack.kernel = kernel_name(value); }},
    {"cross_attend", set<&Stack::cross_attend>},
    {"no_projection", set<&Stack::no_projection>},
    {"auto_check_redraw", set<&Stack::auto_redraw>},
    {"qkv_bias", set<&Stack::qkv_bias>},
    {"attn_out_bias", set<&Stack::out_bias>},
    {"shift_tokens", set<&Stack::shift_tokens>},
    {"nb_features",
     [](Stack& stack, const json& value) { stack.features = value.is_null() ? 0 : value.get<int64_t>(); }},
    {"feature_redraw_interval",
     [](Stack& stack, const json& value) {
       stack.redraw_interval = value.is_null() ? -1 : value.get<int64_t>();
     }},
    {"local_attn_heads",
     [](Stack& stack, const json& value) {
       stack.local_heads =
           value.is_array() ? value.get<std::vector<int64_t>>() : std::vector{value.get<int64_t>()};
     }},
    // Read in alphabetical order: scale norm has precedence, as there.
    {"use_rezero",
     [](Stack& stack, const json& value) {
       if (value.get<bool>()) stack.norm = "rezero";
     }},
    {"use_scalenorm", [](Stack& stack, const json& value) {
       if (value.get<bool>()) stack.norm = "scale-norm";
     }}};

// True when `key` was an argument of the stack.
bool read_stack_option(PerformerStackOptions& stack, const std::string& key, const json& value) {
  const auto found = kStackArguments.find(key);
  if (found == kStackArguments.end()) return false;
  found->second(stack, value);
  return true;
}

void refuse(const std::string& key) {
  throw InputError("recorded option '" + key + "' is not known to this test");
}

}  // namespace

PerformerStackOptions stack_options(const json& options) {
  PerformerStackOptions stack;
  for (const auto& [key, value] : options.items()) {
    if (!read_stack_option(stack, key, value) && !kDescription.contains(key)) refuse(key);
  }
  return stack;
}

PerformerLMOptions lm_options(const json& options) {
  static const std::set<std::string> lm_arguments = {
      "num_tokens",          "max_seq_len",        "emb_dropout",         "tie_embed",
      "rotary_position_emb", "axial_position_emb", "axial_position_shape"};
  PerformerLMOptions lm;
  for (const auto& [key, value] : options.items()) {
    if (lm_arguments.contains(key) || read_stack_option(lm.stack, key, value)) continue;
    if (!kDescription.contains(key)) refuse(key);
  }
  options.at("num_tokens").get_to(lm.vocabulary);
  options.at("max_seq_len").get_to(lm.max_length);
  lm.embedding_dropout = options.value("emb_dropout", 0.0);
  lm.tied_output = options.value("tie_embed", false);
  const bool rotary = options.value("rotary_position_emb", true);
  const bool axial = options.value("axial_position_emb", false);
  lm.positions = rotary ? "rotary" : axial ? "axial" : "learned";  // in this order of precedence
  const auto shape = options.find("axial_position_shape");
  if (lm.positions == "axial" && shape != options.end() && !shape->is_null()) shape->get_to(lm.axial_shape);
  return lm;
}

// What is said of padding has no effect: the recorded prompts are whole.
bool is_padding(const std::string& key) {
  return key == "pad" || key == "pad_value";
}

AutoregressiveOptions loss_options(const json& loss) {
  AutoregressiveOptions options;
  for (const auto& [key, value] : loss.items()) {
    if (key == "ignore_index")
      options.ignore_index = value;
    else if (!is_padding(key))
      refuse("loss." + key);
  }
  return options;
}

EncoderDecoderOptions encoder_decoder_options(const json& options) {
  json encoder = json::object(), decoder = json::object();
  EncoderDecoderOptions result;
  for (const auto& [key, value] : options.items()) {
    if (key == "tie_token_embeds")
      result.tie_token_embeddings = value;
    else if (key == "ignore_index")
      result.autoregressive.ignore_index = value;
    else if (is_padding(key))
      continue;
    else if (key == "loss")
      result.autoregressive = loss_options(value);
    else if (key == "dim" || key == "no_projection")
      encoder[key] = decoder[key] = value;
    else if (kDescription.contains(key))
      continue;
    else if (key.starts_with("enc_"))
      encoder[key.substr(4)] = value;
    else if (key.starts_with("dec_"))
      decoder[key.substr(4)] = value;
    else
      refuse(key);
  }
  result.encoder = lm_options(encoder);
  result.decoder = lm_options(decoder);
  return result;
}

at::Tensor number(const Case& item, const std::string& name, at::ScalarType type) {
  // A copy: the recorded tensor must not become one that wants gradients.
  return item.has(name) ? item.tensor(name).to(type, /*non_blocking=*/false, /*copy=*/true) : at::Tensor();
}

at::Tensor integer(const Case& item, const std::string& name) {
  return item.tensor(name).to(at::kLong);
}

std::optional<at::Tensor> mask(const Case& item, const std::string& name) {
  if (!item.has(name)) return std::nullopt;
  return item.tensor(name).ne(0);
}

std::map<std::string, at::Tensor> weights(const Case& item) {
  std::map<std::string, at::Tensor> found;
  for (const std::string& name : item.inputs) {
    if (name.starts_with("w.")) found[name.substr(2)] = item.tensor(name);
  }
  return found;
}

void expect_all(Group& group, const Case& item, const std::string& main_name, const at::Tensor& main,
                const torch::nn::Module& model, const std::map<std::string, at::Tensor>& inputs,
                const std::function<std::string(const std::string&)>& our_name) {
  if (item.outputs.size() > 1) {
    (item.has("cot") ? (main * number(item, "cot", main.scalar_type())).sum() : main.sum()).backward();
  }
  const auto parameters = model.named_parameters();
  const auto expect = [&](const std::string& name, const at::Tensor& result) {
    group.expect(item, name, with_same_overflow(item, name, result));
  };
  for (const auto& [name, output] : item.outputs) {
    if (name == main_name) {
      expect(name, main);
    } else if (name.starts_with("dw.")) {
      const std::string ours = our_name(name.substr(3));
      ASSERT_TRUE(parameters.contains(ours)) << item.id << ": no parameter " << ours << " for " << name;
      ASSERT_TRUE(parameters[ours].grad().defined()) << item.id << ": no gradient of " << ours;
      expect(name, parameters[ours].grad());
    } else {
      const auto input = inputs.find(name.substr(1));
      ASSERT_TRUE(name.starts_with("d") && input != inputs.end()) << item.id << ": unknown output " << name;
      // Undefined where nothing of the input is left, as when all of it is shifted out.
      const at::Tensor gradient = input->second.grad();
      expect(name, gradient.defined() ? gradient : at::zeros_like(input->second));
    }
  }
}

}  // namespace performer::golden::performer_pytorch
