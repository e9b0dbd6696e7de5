// SPDX-License-Identifier: Apache-2.0
// Fuzz entry of a model folder's configuration: any bytes as config.json, with the weights of small models,
// to a model that is built (libFuzzer: clang++ -fsanitize=fuzzer,address,undefined).
#include <torch/nn/module.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "performer/base/error.h"
#include "performer/models/bounds.h"
#include "performer/models/folder.h"

namespace performer::model_fuzz {

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "model: %s\n", what);
  std::abort();
}

// The weights of a small model.
inline TensorFile weights_of(const char* kind, const char* positions, bool options) {
  ModelConfig model;
  model.layers = 1;
  model.width = 4;
  model.heads = 2;
  model.ffn = 4;
  model.max_length = 8;
  model.positions = positions;
  model.attention_bias = model.tied_output = options;
  AttentionConfig attention;
  attention.kind = kind;
  attention.set("features", 2);
  attention.qk_norm = attention.learned_temperature = options;
  return {model_state(LanguageModel(model, attention, data::Vocabulary::dna().size())), {}};
}

inline const std::vector<TensorFile>& all_weights() {
  static const std::vector<TensorFile> all = {weights_of("favor-softmax", "rotary", false),
                                              weights_of("favor-t2r", "learned", true)};
  return all;
}

// A model is what its configuration says: what is counted before building covers all that it holds, and its
// own weights fit it.
inline void check_model(const ModelFolder& folder, const ModelTexts& texts) {
  const std::map<std::string, at::Tensor> state = model_state(folder.model);
  double held = 0;
  for (const auto& [name, tensor] : state) held += static_cast<double>(tensor.numel());
  require(held <= building_numbers(folder.model->model_config(), folder.model->attention_config(),
                                   folder.model->vocabulary()),
          "a model holds more numbers than were counted");
  const ModelFolder again = parse_model("input", texts, [&] { return TensorFile{state, {}}; });
  require(model_state(again.model).size() == state.size(), "its own weights are another model");
}

// The text as config.json, with the weights that fit it if there are any.
inline void read_config(const std::string& text) {
  const ModelTexts texts{text};
  for (const TensorFile& weights : all_weights()) {
    bool is_good = false;  // as far as it can be told without weights
    try {
      const auto read_weights = [&] {
        is_good = true;
        return weights;
      };
      return check_model(parse_model("input", texts, read_weights), texts);
    } catch (const InputError&) {
      if (!is_good) return;  // the expected answer to damaged configurations
    }
  }
}

// The text as the other JSON files of a folder.
inline void read_others(const std::string& text) {
  static const std::string config =
      R"({"format": 2, "model": {"layers": 1, "width": 4, "heads": 2, "ffn": 4, "dropout": 0},)"
      R"( "attention": {"kind": "favor-softmax", "features": 2}, "data": {"vocabulary": "dna"}})";
  ModelTexts texts{config};
  (text.find("counts") == text.npos ? texts.tokenizer : texts.baselines) = text;
  try {
    parse_model("input", texts, [] { return all_weights().front(); });
  } catch (const InputError&) {
    // The expected answer to damaged files.
  }
}

}  // namespace performer::model_fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  if (text.find("format") == text.npos)
    performer::model_fuzz::read_others(text);
  else
    performer::model_fuzz::read_config(text);
  return 0;
}
