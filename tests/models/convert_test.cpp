// SPDX-License-Identifier: Apache-2.0
// Imported models against outputs that transformers itself recorded (record_pretrained.py).
#include "performer/models/convert/convert.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/models/convert/blocks.h"
#include "performer/models/safetensors.h"
#include "tests/fuzz/damage.h"
#include "tests/models/make.h"
#include "tests/models/pretrained.h"

namespace performer::convert {
namespace {

using ::testing::HasSubstr;

namespace fs = std::filesystem;

class Pretrained : public ::testing::TestWithParam<const char*> {};

// Letters where the source has them, else its ids.
Conversion imported(const std::string& name, const std::string& attention = "") {
  Request request{pretrained_path(name)};
  request.attention = attention;
  try {
    return convert(request);
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("--tokenizer ids")) << name;
    request.tokenizer = Tokenizer::ids;
    return convert(request);
  }
}

TEST_P(Pretrained, GivesTheLogitsOfTheOriginal) {
  const Recording recorded = recording(GetParam());
  Conversion made = imported(GetParam());
  EXPECT_EQ(made.folder.model->attention_config().kind, "exact");
  const at::NoGradGuard no_grad;
  const at::Tensor logits = made.folder.model->forward(recorded.batch(made.folder.vocabulary));
  EXPECT_LT(recorded.difference(logits, made.folder.vocabulary), 1e-4) << GetParam();
}

TEST_P(Pretrained, GivesThemPackedToo) {
  const Recording recorded = recording(GetParam());
  Conversion made = imported(GetParam());
  const at::NoGradGuard no_grad;
  const at::Tensor ours = recorded.our_tokens(made.folder.vocabulary);
  std::vector<at::Tensor> rows;
  for (int64_t row = 0; row < 2; ++row) rows.push_back(ours[row].narrow(0, 0, recorded.length(row)));
  const at::Tensor together = made.folder.model->forward(packed(rows))[0];
  at::Tensor logits = at::zeros({2, ours.size(1), together.size(1)});
  for (int64_t row = 0, at = 0; row < 2; at += recorded.length(row), ++row)
    logits[row].narrow(0, 0, recorded.length(row)).copy_(together.narrow(0, at, recorded.length(row)));
  EXPECT_LT(recorded.difference(logits, made.folder.vocabulary), 1e-4) << GetParam();
}

TEST_P(Pretrained, IsTheSameAfterSavingAndLoading) {
  const Recording recorded = recording(GetParam());
  Conversion made = imported(GetParam());
  const fs::path folder = fs::path(::testing::TempDir()) / ("converted_" + std::string(GetParam()));
  fs::remove_all(folder);
  save_model(folder.string(), made.folder);
  ModelFolder loaded = load_model(folder.string());
  EXPECT_EQ(loaded.vocabulary, made.folder.vocabulary);
  EXPECT_EQ(loaded.vocabulary.source_ids(), made.folder.vocabulary.source_ids());
  EXPECT_FALSE(loaded.has_baselines);
  const at::NoGradGuard no_grad;
  const SequenceBatch batch = recorded.batch(made.folder.vocabulary);
  EXPECT_TRUE(loaded.model->forward(batch).equal(made.folder.model->forward(batch)));
  fs::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Recorded, Pretrained,
                         ::testing::Values("bert", "bert_bin", "roberta", "esm2", "esm1b", "fairseq_esm2",
                                           "fairseq_roberta", "distilbert", "gpt2", "llama", "llama3"));

class Causal : public ::testing::TestWithParam<const char*> {};

// One token after the other gives the logits of the whole, so that streams of imported models are theirs too.
TEST_P(Causal, StreamsTheLogitsOfTheOriginal) {
  const Recording recorded = recording(GetParam());
  Conversion made = imported(GetParam());
  const at::Tensor tokens = recorded.our_tokens(made.folder.vocabulary);
  DecodeState state = made.folder.model->begin(2);
  std::vector<at::Tensor> steps;
  for (int64_t i = 0; i < tokens.size(1); ++i)
    steps.push_back(made.folder.model->step(tokens.select(1, i), state));
  EXPECT_LT(recorded.difference(at::stack(steps, 1), made.folder.vocabulary), 1e-4);
}

// A linear kind in the same architecture: pieces of a stream that follow each other are the whole.
TEST_P(Causal, GoesOnInPiecesWithALinearKind) {
  const Recording recorded = recording(GetParam());
  Conversion made = imported(GetParam(), "favor-relu");
  const SequenceBatch whole = recorded.batch(made.folder.vocabulary);
  const at::NoGradGuard no_grad;
  const int64_t length = whole.tokens.size(1), first = 5;
  DecodeState state = made.folder.model->begin(whole.tokens.size(0));
  const at::Tensor begin = made.folder.model->advance(whole.tokens.narrow(1, 0, first), state);
  const at::Tensor rest = made.folder.model->advance(whole.tokens.narrow(1, first, length - first), state);
  const at::Tensor kept = whole.key_mask->unsqueeze(2);  // padding, which is behind the tokens, is read, too
  EXPECT_TRUE(
      (at::cat({begin, rest}, 1) * kept).allclose(made.folder.model->hidden(whole) * kept, 1e-4, 1e-4));
}

INSTANTIATE_TEST_SUITE_P(Recorded, Causal, ::testing::Values("gpt2", "llama", "llama3"));

TEST(Convert, KeepsAllWeightsWithAnotherKind) {
  const Conversion exact = imported("esm2"), linear = imported("esm2", "favor-softmax");
  EXPECT_EQ(linear.folder.model->attention_config().kind, "favor-softmax");
  const auto theirs = model_state(linear.folder.model);
  for (const auto& [name, tensor] : model_state(exact.folder.model))
    EXPECT_TRUE(theirs.at(name).equal(tensor));
}

TEST(Convert, TakesSettings) {
  Request request{pretrained_path("bert"), "favor-softmax", {"attention.features=48", "data.length=17"}};
  const Conversion made = convert(request);
  EXPECT_EQ(std::get<int64_t>(made.folder.model->attention_config().options.at("features")), 48);
  EXPECT_EQ(made.folder.data.length, 17);
  request.settings = {"train.steps=3"};
  EXPECT_THROW(convert(request), UsageError);
}

TEST(Convert, ReadsProteinsByTheLettersOfTheSource) {
  const data::Vocabulary esm = imported("esm2").folder.vocabulary;
  EXPECT_TRUE(esm.has_letters());
  EXPECT_EQ(esm.size(), 33);
  const auto ids = esm.encode("LAX-");
  ASSERT_EQ(ids.size(), 4U);
  EXPECT_EQ(esm.source_ids()[ids[0]], 4);
  EXPECT_EQ(esm.source_ids()[ids[1]], 5);
  EXPECT_EQ(esm.source_ids()[ids[2]], 24);
  EXPECT_EQ(esm.source_ids()[ids[3]], 30);
  EXPECT_EQ(esm.source_ids()[esm.encode("J")[0]], 3) << "unknown";
  EXPECT_EQ(esm.source_ids()[esm.bos()], 0);
  EXPECT_EQ(esm.source_ids()[esm.eos()], 2);
  EXPECT_EQ(esm.source_ids()[esm.pad()], 1);
  EXPECT_EQ(esm.source_ids()[esm.mask()], 32);
  EXPECT_THROW(esm.encode("<null_1>"), InputError) << "no text stands for it";
  // Sapiens' vocabulary has no X, so that its unknown token is what X is read as.
  const data::Vocabulary sapiens = imported("fairseq_roberta").folder.vocabulary;
  EXPECT_EQ(sapiens.source_ids()[sapiens.encode("X")[0]], 3);
  EXPECT_EQ(sapiens.encode("U"), sapiens.encode("X"));
}

TEST(Convert, ReadsIdsAsNumbers) {
  const data::Vocabulary gpt2 = imported("gpt2").folder.vocabulary;
  const auto ids = gpt2.encode("7 0  25");
  ASSERT_EQ(ids.size(), 3U);
  EXPECT_EQ(gpt2.source_ids()[ids[0]], 7);
  EXPECT_EQ(gpt2.source_ids()[ids[2]], 25);
  EXPECT_THROW(gpt2.encode("26"), InputError) << "the end marker is no symbol";
  EXPECT_EQ(gpt2.decode(std::span<const data::Token>(ids)), "7 0 25");
}

// A model of llama2.c of zeros with these tokens.
std::string llama2c_model(const std::vector<std::string>& tokens) {
  const std::filesystem::path folder = std::filesystem::path(::testing::TempDir()) / "Convert_llama2c";
  std::filesystem::create_directories(folder);
  const auto bytes_of = [](const auto& value) {
    return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
  };
  std::string spelled = bytes_of(int32_t{8});
  for (const std::string& token : tokens)
    spelled += bytes_of(0.0F) + bytes_of(static_cast<int32_t>(token.size())) + token;
  write_file((folder / fmt::format("tok{}.bin", tokens.size())).string(), spelled);
  std::string model;
  for (const int32_t size : {4, 6, 1, 2, 1, static_cast<int32_t>(tokens.size()), 3}) model += bytes_of(size);
  const size_t numbers = tokens.size() * 4 + 4 + 16 + 8 + 8 + 16 + 4 + 24 + 24 + 24 + 4 + 3 + 3;
  model.resize(model.size() + numbers * sizeof(float));
  write_file((folder / "model.bin").string(), model);
  return (folder / "model.bin").string();
}

// Sentencepiece has a token for each byte, and pieces of one letter beside them, which a text is made of.
TEST(Convert, SpellsLettersByPiecesRatherThanBytes) {
  Request request;
  request.source = llama2c_model({"<unk>", "<s>", "</s>", "<0x61>", "<0x62>", "b", "bb"});
  const data::Vocabulary vocabulary = convert(request).folder.vocabulary;
  const auto ids = vocabulary.encode("abbb");
  ASSERT_EQ(ids.size(), 3U);
  EXPECT_EQ(vocabulary.source_ids()[ids[0]], 3) << "no piece spells a";
  EXPECT_EQ(vocabulary.source_ids()[ids[1]], 6);
  EXPECT_EQ(vocabulary.source_ids()[ids[2]], 5);
  EXPECT_EQ(vocabulary.decode(std::span<const data::Token>(ids)), "abbb");
}

// What a source does not have is never predicted, whatever the model thinks.
TEST(Convert, NeverPredictsTokensThatTheSourceLacks) {
  const Recording recorded = recording("gpt2");
  Conversion made = imported("gpt2");
  const at::NoGradGuard no_grad;
  const at::Tensor shares =
      made.folder.model->forward(recorded.batch(made.folder.vocabulary)).softmax(-1).flatten(0, 1);
  for (const int64_t marker :
       {made.folder.vocabulary.bos(), made.folder.vocabulary.pad(), made.folder.vocabulary.mask()})
    EXPECT_EQ(shares.select(1, marker).max().item<float>(), 0) << marker;
}

// A copy of a recorded folder whose tensors are changed.
class Changed : public ::testing::Test {
 protected:
  std::string message(const std::string& name, const std::function<void(TensorFile&)>& change) {
    const fs::path folder = fs::path(::testing::TempDir()) / "changed_source";
    fs::remove_all(folder);
    fs::copy(pretrained_path(name), folder);
    TensorFile file = read_safetensors((folder / "model.safetensors").string());
    change(file);
    write_safetensors((folder / "model.safetensors").string(), file);
    try {
      convert({folder.string()});
    } catch (const InputError& error) {
      return error.what();
    }
    return "converted";
  }
};

TEST_F(Changed, NamesWhatIsMissing) {
  const std::string name = "bert.encoder.layer.1.output.dense.bias";
  EXPECT_THAT(message("bert", [&](TensorFile& file) { file.tensors.erase(name); }),
              HasSubstr("missing: encoder.layer.1.output.dense.bias [32]"));
}

TEST_F(Changed, NamesWhatHasNoPlace) {
  EXPECT_THAT(message("bert",
                      [](TensorFile& file) {
                        file.tensors["bert.encoder.layer.1.adapter.weight"] = at::ones({3, 4});
                      }),
              HasSubstr("without a place in the model: encoder.layer.1.adapter.weight [3, 4]"));
}

TEST_F(Changed, NamesWhatHasAnotherShape) {
  EXPECT_THAT(message("bert",
                      [](TensorFile& file) {
                        file.tensors["bert.encoder.layer.0.intermediate.dense.weight"] = at::ones({3, 4});
                      }),
              HasSubstr("encoder.layer.0.intermediate.dense.weight' has shape [3, 4], expected [48, 32]"));
}

TEST(Convert, SaysWhatItDoesNotKnow) {
  const fs::path folder = fs::path(::testing::TempDir()) / "unknown_source";
  fs::remove_all(folder);
  fs::create_directories(folder);
  const auto message = [&] {
    try {
      convert({folder.string()});
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("converted");
  };
  EXPECT_THAT(message(), HasSubstr("no config.json"));
  write_file((folder / "config.json").string(), R"({"model_type": "t5"})");
  EXPECT_THAT(message(), HasSubstr("has no weights"));
  write_safetensors((folder / "model.safetensors").string(), {{{"a", at::ones({2})}}, {}});
  EXPECT_THAT(message(), HasSubstr("its model_type is t5"));
  fs::remove_all(folder);
}

// Whatever config.json says, the answer is a model or an error of ours, and no memory is taken for sizes that
// the weights do not have.
TEST(Convert, SurvivesDamagedConfigurations) {
  const fs::path folder = fs::path(::testing::TempDir()) / "damaged_source";
  int refused = 0;
  for (const char* name : {"bert", "esm2", "gpt2", "llama3", "distilbert"}) {
    fs::remove_all(folder);
    fs::copy(pretrained_path(name), folder);
    const std::string good = read_file((folder / "config.json").string());
    PhiloxStream draws(5);
    for (int round = 0; round < 60; ++round) {
      write_file((folder / "config.json").string(), fuzz::damaged(good, "0123456789-.eE\",:[]{}t", draws));
      Request request{folder.string()};
      request.tokenizer = Tokenizer::ids;
      try {
        convert(request);
      } catch (const Error&) {
        ++refused;
      }
    }
    for (const char* key :
         {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
          "max_position_embeddings", "n_embd", "n_layer", "n_head", "n_inner", "n_positions", "dim"}) {
      for (const char* size : {"0", "-1", "16777216", "9223372036854775807"}) {
        nlohmann::json config = nlohmann::json::parse(good);
        if (!config.contains(key)) continue;
        config[key] = nlohmann::json::parse(size);
        write_file((folder / "config.json").string(), config.dump());
        Request request{folder.string()};
        request.tokenizer = Tokenizer::ids;
        const bool unused = std::string(key) == "max_position_embeddings" &&
                            (std::string(name) == "esm2" || std::string(name) == "llama3") && size[0] == '1';
        if (unused) continue;
        EXPECT_THROW(convert(request), Error) << name << " " << key << " " << size;
      }
    }
  }
  EXPECT_GT(refused, 100) << "the damage did something";
  fs::remove_all(folder);
}

TEST(NeighbouringPairs, AreTheHalvesByTurns) {
  const at::Tensor rows = at::arange(8).unsqueeze(1).to(at::kFloat);  // two heads of four
  const at::Tensor ours = neighbouring_pairs(rows, 4);
  EXPECT_TRUE(ours.squeeze(1).equal(at::tensor({0, 2, 1, 3, 4, 6, 5, 7}).to(at::kFloat)));
  EXPECT_TRUE(half_pairs(ours, 4).equal(rows));
}

}  // namespace
}  // namespace performer::convert
