// SPDX-License-Identifier: Apache-2.0
#include "performer/models/folder.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/data/vocabulary.h"
#include "tests/models/make.h"

namespace performer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;

class Checkpoint : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("performer-checkpoint-{}", getpid());
    fs::remove_all(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string file(const std::string& name) const { return (folder_ / name).string(); }
  ModelFolder save(const Variant& variant = {"favor-softmax"}) {
    ModelFolder saved;
    saved.model = make_model(variant);
    saved.model->redraw(4);
    saved.data.length = 77;
    saved.data.corruption = "protein-lm";
    saved.baselines.add(std::vector<data::Token>{0, 3, 3, 24});
    saved.objective_note = "masked, protein-lm's mix";
    save_model(folder_.string(), saved);
    return saved;
  }
  void edit_config(const std::function<void(json&)>& change) {
    json config = json::parse(read_file(file("config.json")));
    change(config);
    write_file(file("config.json"), config.dump());
  }
  std::string load_message() {
    try {
      load_model(folder_.string());
    } catch (const InputError& error) {
      return error.what();
    }
    return "loaded";
  }

  fs::path folder_;
};

TEST_F(Checkpoint, LoadsWhatWasSaved) {
  for (const Variant& variant :
       {Variant{"favor-softmax"}, Variant{"favor-relu", "learned", "post", true}, Variant{"exact"}}) {
    const ModelFolder saved = save(variant);
    ModelFolder loaded = load_model(folder_.string());
    EXPECT_FALSE(loaded.model->is_training());
    const SequenceBatch batch = rows(random_tokens({1, 20}));
    LanguageModel original = saved.model;
    EXPECT_TRUE(at::equal(original(batch), loaded.model(batch))) << variant.kind;
    EXPECT_EQ(loaded.data.length, 77);
    EXPECT_EQ(loaded.data.corruption, "protein-lm");
    EXPECT_TRUE(loaded.vocabulary == data::Vocabulary::protein());
    EXPECT_EQ(loaded.vocabulary.name(), "protein");
    EXPECT_EQ(loaded.baselines.counts(), saved.baselines.counts());
    EXPECT_EQ(loaded.objective_note, saved.objective_note);
    const auto before = list_fields("model", saved.model->model_config());
    const auto after = list_fields("model", loaded.model->model_config());
    for (size_t i = 0; i < before.size(); ++i) EXPECT_EQ(before[i].value, after[i].value) << before[i].name;
    EXPECT_EQ(loaded.model->attention_config().kind, variant.kind);
  }
}

// A folder is read with the vocabulary that it holds, down to symbols of any bytes.
TEST_F(Checkpoint, HoldsItsVocabulary) {
  const auto own = data::Vocabulary::of_symbols("own", {"ab", "\n", "\xff", "\xc3\xa4", " ", "\\x41"});
  for (const data::Vocabulary& vocabulary : {own, data::Vocabulary::dna(), data::Vocabulary::rna(),
                                             data::Vocabulary::bytes(), data::Vocabulary::pixels()}) {
    ModelFolder saved;
    saved.model = LanguageModel(small_model(), small_attention(), vocabulary.size());
    saved.vocabulary = vocabulary;
    saved.data.vocabulary = vocabulary.name();
    saved.data.image_shape = "2x3x1";
    saved.baselines = data::Baselines(vocabulary.symbols());
    saved.baselines.add(std::vector<data::Token>{0, 3, 2});
    save_model(folder_.string(), saved);
    const ModelFolder loaded = load_model(folder_.string());
    EXPECT_TRUE(loaded.vocabulary == vocabulary) << vocabulary.name();
    EXPECT_EQ(loaded.vocabulary.name(), vocabulary.name());
    EXPECT_EQ(loaded.vocabulary.unit(), vocabulary.unit());
    EXPECT_EQ(loaded.model->vocabulary(), vocabulary.size());
    EXPECT_EQ(loaded.baselines.counts(), saved.baselines.counts());
    EXPECT_EQ(loaded.data.vocabulary, vocabulary.name());
    EXPECT_EQ(loaded.data.image_shape, "2x3x1");
  }
}

TEST_F(Checkpoint, RefusesSizesThatDoNotBelongTogether) {
  ModelFolder folder;
  folder.model = make_model({"exact"});  // of 29 tokens
  folder.vocabulary = data::Vocabulary::dna();
  folder.baselines = data::Baselines(5);
  EXPECT_THROW(save_model(folder_.string(), folder), Error);
  folder.vocabulary = data::Vocabulary::protein();
  EXPECT_THROW(save_model(folder_.string(), folder), Error) << "baselines of another size";
  EXPECT_FALSE(fs::exists(folder_)) << "nothing half-made is left";

  save();
  write_file(file("tokenizer.json"), data::Vocabulary::dna().to_json());
  EXPECT_THAT(load_message(), HasSubstr("the baselines of 5 symbols need 30 counts, found 650"));
}

TEST_F(Checkpoint, SavingTwiceGivesTheSameBytesAndLeavesNothingBehind) {
  const ModelFolder saved = save();
  const std::string weights = read_file(file("model.safetensors")), config = read_file(file("config.json"));
  save_model(folder_.string(), saved);
  EXPECT_EQ(read_file(file("model.safetensors")), weights);
  EXPECT_EQ(read_file(file("config.json")), config);
  int files = 0;
  for (const auto& entry : fs::directory_iterator(folder_)) files += entry.is_regular_file() ? 1 : 100;
  EXPECT_EQ(files, 4);
}

TEST_F(Checkpoint, NamesMissingFolderAndFiles) {
  EXPECT_THAT(load_message(), HasSubstr("there is no model folder"));
  for (const char* name : {"config.json", "model.safetensors"}) {
    save();
    fs::remove(folder_ / name);
    EXPECT_THAT(load_message(), HasSubstr(fmt::format("it has no {}", name)));
  }
}

TEST_F(Checkpoint, NeedsNoBaselinesAndNoTokenizerOfABuiltInVocabulary) {
  save();
  fs::remove(folder_ / "baselines.json");
  const ModelFolder without = load_model(folder_.string());
  EXPECT_FALSE(without.has_baselines);
  EXPECT_EQ(without.baselines.symbols(), without.vocabulary.symbols());
  fs::remove(folder_ / "tokenizer.json");
  edit_config([](json& c) { c["data"]["vocabulary"] = "protein"; });
  EXPECT_EQ(load_model(folder_.string()).vocabulary, data::Vocabulary::protein());
  edit_config([](json& c) { c["data"]["vocabulary"] = "syllables"; });
  EXPECT_THAT(load_message(), testing::AllOf(HasSubstr("it has no tokenizer.json"), HasSubstr("syllables")));
}

TEST_F(Checkpoint, NamesTruncatedAndDamagedFiles) {
  save();
  const std::string weights = read_file(file("model.safetensors"));
  write_file(file("model.safetensors"), weights.substr(0, weights.size() - 10));
  EXPECT_THAT(load_message(), HasSubstr("model.safetensors is truncated"));
  save();
  write_file(file("config.json"), "{\"format\": 1,");
  EXPECT_THAT(load_message(), HasSubstr("config.json, line 1, column 14: not JSON"));
  save();
  write_file(file("baselines.json"), "{\"counts\": [1, 2]}");
  EXPECT_THAT(load_message(), HasSubstr("baselines.json"));
  write_file(file("baselines.json"), "{\"counts\": [1.5]}");
  EXPECT_THAT(load_message(),
              testing::MatchesRegex("[^:]*baselines.json: 'counts' must be a list of whole numbers, not .*"));
  save();
  write_file(file("tokenizer.json"), "{\"letters\": \"ACGT\"}");
  EXPECT_THAT(load_message(), HasSubstr("tokenizer.json: 'name' is missing"));
}

TEST_F(Checkpoint, NamesWhatIsWrongInTheConfiguration) {
  const auto message = [&](const std::function<void(json&)>& change) {
    save();
    edit_config(change);
    return load_message();
  };
  EXPECT_EQ(message([](json&) {}), "loaded");
  EXPECT_THAT(
      message([](json& c) { c["format"] = kModelFormat + 1; }),
      HasSubstr(fmt::format("has format {}, this program reads formats up to {}: use a newer performer",
                            kModelFormat + 1, kModelFormat)));
  EXPECT_THAT(message([](json& c) { c.erase("format"); }), HasSubstr("has no format number"));
  EXPECT_THAT(
      message([](json& c) { c["format"] = 1; }),
      HasSubstr(fmt::format("has format 1, which this program no longer reads (it reads format {}): train "
                            "the model again, or use the performer that wrote it",
                            kModelFormat)));
  EXPECT_THAT(message([](json& c) { c["format"] = 0; }),
              HasSubstr("has format 0, which this program no longer reads"));
  EXPECT_THAT(message([](json& c) { c["model"]["head"] = 2; }),
              HasSubstr("unknown key 'model.head'; the nearest known one is 'model.heads'"));
  EXPECT_THAT(message([](json& c) { c["modle"] = 2; }),
              HasSubstr("unknown key 'modle'; the nearest known one is 'model'"));
  EXPECT_THAT(message([](json& c) { c.erase("attention"); }),
              HasSubstr("the section 'attention' is missing"));
  EXPECT_THAT(message([](json& c) { c["model"]["heads"] = "two"; }),
              HasSubstr("model.heads must be a whole number, not \"two\""));
  EXPECT_THAT(message([](json& c) { c["model"]["heads"] = 2.5; }),
              HasSubstr("model.heads must be a whole number"));
  EXPECT_THAT(message([](json& c) { c["model"]["heads"] = 18446744073709551615u; }),
              HasSubstr("model.heads must be a whole number"));
  EXPECT_THAT(message([](json& c) { c["model"]["tied_output"] = 1; }),
              HasSubstr("model.tied_output must be true or false"));
  EXPECT_THAT(message([](json& c) { c["attention"]["kind"] = "linear"; }),
              HasSubstr("attention.kind must be a known attention kind, but is 'linear'"));
  EXPECT_THAT(message([](json& c) { c["model"]["heads"] = 5; }),
              HasSubstr("must be divisible by model.heads (5)"));
  EXPECT_THAT(message([](json& c) { c["data"]["length"] = 0; }), HasSubstr("data.length"));
  EXPECT_THAT(message([](json& c) { c["provenance"] = 3; }), HasSubstr("provenance must be an object"));
}

TEST_F(Checkpoint, LoadsInTransformersAndFromIt) {
  save();
  const json config = json::parse(read_file(file("config.json")));
  EXPECT_EQ(config["model_type"], "performer");
  EXPECT_EQ(config["architectures"][0], "PerformerForCausalLM");
  EXPECT_EQ(config["vocab_size"], load_model(folder_.string()).vocabulary.size());
  edit_config([](json& c) { c["hidden_size"] = 24; });
  EXPECT_THAT(load_message(), HasSubstr("unknown key 'hidden_size'"));
  edit_config([](json& c) { c["transformers_version"] = "5.24.0"; });
  EXPECT_EQ(load_message(), "loaded");
}

TEST_F(Checkpoint, NamesTheFirstTensorOfAnotherArchitecture) {
  save();
  edit_config([](json& c) { c["model"]["ffn"] = 40; });
  EXPECT_THAT(load_message(),
              HasSubstr("model.safetensors is of another architecture: tensor 'blocks_0.down.weight' is "
                        "[24, 32], expected [24, 40]"));
  edit_config([](json& c) { c["model"]["ffn"] = 32, c["model"]["layers"] = 3; });
  EXPECT_THAT(load_message(), HasSubstr("it has no tensor 'blocks_2."));
  edit_config([](json& c) { c["model"]["layers"] = 1; });
  EXPECT_THAT(load_message(), HasSubstr("its tensor 'blocks_1."));
  edit_config([](json& c) { c["model"]["layers"] = 2, c["attention"]["features"] = 17; });
  EXPECT_THAT(load_message(),
              HasSubstr("tensor 'blocks_0.attention.kind.projection' is [2, 16, 12], expected [2, 17, 12]"));
}

TEST_F(Checkpoint, RefusesWeightsOfAnotherType) {
  const ModelFolder saved = save();
  auto state = model_state(saved.model);
  state["final_norm.weight"] = state["final_norm.weight"].to(at::kLong);
  LanguageModel model = saved.model;
  EXPECT_THROW(set_model_state(model, state, "test"), InputError);
}

TEST_F(Checkpoint, AFailedSaveKeepsTheOldFolder) {
  save();
  const std::string weights = read_file(file("model.safetensors"));
  // The file cannot be written aside: its temporary name is taken by a directory.
  fs::create_directories(file(fmt::format("model.safetensors.tmp-{}", getpid())));
  ModelFolder other;
  other.model = make_model({"exact"});
  EXPECT_THROW(save_model(folder_.string(), other), Error);
  EXPECT_EQ(read_file(file("model.safetensors")), weights);
  EXPECT_EQ(load_message(), "loaded");
}

}  // namespace
}  // namespace performer
