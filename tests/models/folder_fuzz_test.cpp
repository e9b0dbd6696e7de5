// SPDX-License-Identifier: Apache-2.0
// The fuzz entries of model folders and of safetensors on damaged inputs, the same ones in every run, and on
// those with which libFuzzer reached most of their code.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "performer/nn/attention/kind.h"
#include "tests/fuzz/damage.h"
#include "tests/models/make.h"

#define LLVMFuzzerTestOneInput fuzz_model
#include "tests/fuzz/model_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_safetensors
#include "tests/fuzz/safetensors_fuzz.cpp"
#undef LLVMFuzzerTestOneInput

namespace performer {
namespace {

using nlohmann::json;

// A configuration that fits the first weights of the entry.
json fitting() {
  return {{"format", kModelFormat},
          {"model", {{"layers", 1}, {"width", 4}, {"heads", 2}, {"ffn", 4}, {"dropout", 0}}},
          {"attention", {{"kind", "favor-softmax"}, {"features", 2}}},
          {"data", {{"vocabulary", "dna"}}},
          {"provenance", {{"objective", "next token"}}}};
}

ModelFolder build(const json& config) {
  return parse_model("input", {config.dump()}, [] { return model_fuzz::all_weights().front(); });
}

std::string message(const std::string& config) {
  try {
    parse_model("input", {config}, [] { return model_fuzz::all_weights().front(); });
  } catch (const InputError& error) {
    return error.what();
  }
  return "built";
}

TEST(ModelFuzz, SurvivesDamagedConfigurations) {
  ASSERT_NO_THROW(build(fitting())) << "what is damaged here was good before";
  json learned = fitting();
  learned["model"].update({{"positions", "learned"}, {"max_length", 8}, {"attention_bias", true}});
  learned["model"]["tied_output"] = true;
  learned["attention"] = {
      {"kind", "favor-t2r"}, {"features", 2}, {"qk_norm", true}, {"learned_temperature", true}};
  fuzz::run_damaged(fuzz_model, {fitting().dump(), learned.dump(1)}, 400, "0123456789-.eE\",:[]{}t");
  fuzz::run_damaged(fuzz_model, {data::Vocabulary::dna().to_json(), R"({"counts": [1, 2, 3]})"}, 100,
                    "0123456789\",:[]{}");
}

TEST(SafetensorsFuzz, SurvivesDamagedFiles) {
  const std::string header =
      R"({"__metadata__": {"format": "x"}, "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}, )"
      R"("b": {"dtype": "BOOL", "shape": [3], "data_offsets": [8, 11]}})";
  std::string file = {static_cast<char>(header.size()), 0, 0, 0, 0, 0, 0, 0};
  file += header + std::string(8, '\x3f') + std::string("\0\1\1", 3);
  EXPECT_EQ(parse_safetensors(std::as_bytes(std::span(file)), "good").tensors.size(), 2U);
  fuzz::run_damaged(fuzz_safetensors, {file}, 4000, "0123456789-\",:[]{}FIB");
}

TEST(FuzzCorpus, PassesForModels) {
  fuzz::run_corpus(fuzz_model, "model");
  fuzz::run_corpus(fuzz_safetensors, "safetensors");
}

// The largest sizes that a configuration may name, one after the other and together, take no memory.
TEST(HostileConfiguration, IsRefusedBeforeItIsBuilt) {
  const auto refused = [](const std::function<void(json&)>& change) {
    json config = fitting();
    change(config);
    return message(config.dump());
  };
  const auto too_large = ::testing::HasSubstr("nothing was built");
  for (const char* size : {"layers", "width", "ffn", "heads"}) {
    EXPECT_THAT(refused([&](json& c) {
                  c["model"].update({{"positions", "none"}, {"head_size", 1}, {size, kLargestSize}});
                }),
                too_large)
        << size;
  }
  EXPECT_THAT(refused([](json& c) { c["model"]["head_size"] = kLargestSize / 2; }), too_large);
  for (const char* positions : {"learned", "axial"}) {
    EXPECT_THAT(refused([&](json& c) {
                  c["model"].update({{"positions", positions}, {"max_length", kLargestSize}, {"width", 128}});
                }),
                too_large)
        << positions;
  }
  EXPECT_THAT(refused([](json& c) { c["attention"]["features"] = kLargestSize; }), too_large);
  EXPECT_THAT(refused([](json& c) { c["model"]["layers"] = 1 << 14; }), too_large) << "of many small layers";
}

TEST(HostileConfiguration, MayNotNestItsValues) {
  const std::string depth(100000, '['), end(100000, ']');
  EXPECT_THAT(message("{\"format\": 2, \"model\": {\"layers\": " + depth + end + "}}"),
              ::testing::HasSubstr("config.json is damaged"));
}

// What is counted before building covers what a model of any kind then holds, with every kind of positions.
TEST(BuildingNumbers, CoverEveryKind) {
  for (const std::string& kind : nn::kind_names()) {
    for (const char* positions : {"rotary", "learned", "axial"}) {
      const Variant variant{kind, positions, "pre", true};
      ModelConfig model = small_model(variant);
      if (!nn::find_kind(kind).capabilities.causal) model.objective = "masked";
      const AttentionConfig attention = small_attention(variant);
      double held = 0;
      for (const auto& [name, tensor] : model_state(LanguageModel(model, attention, kVocabulary)))
        held += static_cast<double>(tensor.numel());
      const double modules = 8192.0 * static_cast<double>(model.layers);  // counted for no tensor
      EXPECT_GE(building_numbers(model, attention, kVocabulary) - modules, held) << kind << " " << positions;
    }
  }
}

// A model of many shared or few grouped weights is not taken for a hostile one.
TEST(BuildingNumbers, AcceptModelsThatShareWeights) {
  const auto accepted = [](const ModelConfig& model, const AttentionConfig& attention) {
    const auto state = model_state(LanguageModel(model, attention, kVocabulary));
    EXPECT_NO_THROW(check_weights_suffice(model, attention, kVocabulary, state, "the model"));
    double held = 0;
    for (const auto& [name, tensor] : state) held += static_cast<double>(tensor.numel());
    const double modules = 8192.0 * static_cast<double>(model.layers);
    EXPECT_GE(building_numbers(model, attention, kVocabulary) - modules, held);
  };
  ModelConfig model;
  model.layers = 4, model.width = 64, model.heads = 4, model.ffn = 128, model.objective = "masked";
  for (const char* reduce : {"learned", "random", "mean", "convolution"}) {
    for (const char* sharing : {"none", "heads", "kv", "layers"}) {
      SCOPED_TRACE(fmt::format("{}, {}", reduce, sharing));
      AttentionConfig linformer{.kind = "linformer"};
      linformer.set("length", 1024).set("rank", 600).set("reduce", reduce).set("sharing", sharing);
      accepted(model, linformer);
    }
  }
  ModelConfig grouped;
  grouped.layers = 8, grouped.width = 1024, grouped.heads = 16, grouped.kv_heads = 1, grouped.ffn = 16;
  accepted(grouped, AttentionConfig{.kind = "exact"});
}

}  // namespace
}  // namespace performer
