// SPDX-License-Identifier: Apache-2.0
// Fine-tuning: what a run takes over from a model, what it trains, and labels.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/models/folder.h"
#include "performer/train/evaluation.h"
#include "performer/train/prediction_task.h"
#include "performer/train/run_folder.h"
#include "performer/train/task_kinds.h"
#include "performer/train/trained_parameters.h"
#include "tests/train/runs.h"

namespace performer::train {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::losses;
using testing::records;

// Sequences of two letters, whose class is that of which there are more, and whose value is the share of A.
struct Composition {
  std::vector<std::string> proteins;
  std::string classes, values, tokens;  // tables; tokens: + where the residue before is the same
};
Composition composition(int count) {
  PhiloxStream random(3);
  Composition made;
  for (int i = 0; i < count; ++i) {
    std::string protein, marks;
    const uint64_t of_ten = random.below(11), length = 9 + 2 * random.below(8);
    for (uint64_t k = 0; k < length; ++k) {
      protein += random.below(10) < of_ten ? 'A' : 'C';
      marks += protein.back() == 'A' ? 'a' : k % 5 == 4 ? '?' : 'c';
    }
    const auto a = static_cast<double>(std::ranges::count(protein, 'A'));
    made.classes += fmt::format("p{}\t{}\n", i, 2 * a > static_cast<double>(length) ? "rich" : "poor");
    made.values += fmt::format("p{}\t{}\n", i, 10 + 3 * a / static_cast<double>(length));
    made.tokens += fmt::format("p{}\t{}\n", i, marks);
    made.proteins.push_back(protein);
  }
  return made;
}

class FineTune : public testing::RunTest {
 protected:
  void SetUp() override {
    testing::write_fasta(fasta_, data_.proteins);
    write_file(folder_ / "classes.tsv", data_.classes);
    write_file(folder_ / "values.tsv", data_.values);
    write_file(folder_ / "tokens.tsv", data_.tokens);
  }

  // A trained model to start from, made once.
  std::string base() {
    const std::string path = folder_ / "base";
    if (!std::filesystem::exists(path)) {
      LanguageModelRequest with = request("base");
      with.model.objective = "masked";
      with.model.layers = 2;
      with.train.steps = 3;
      run(with);
    }
    return path;
  }
  LanguageModelRequest tuned(const std::string& output) {
    const ModelSettings settings = read_model_settings(base());
    LanguageModelRequest with = request(output);
    with.model = settings.model;
    with.attention = settings.attention;
    with.data = settings.data;
    with.data.batch_tokens = 256;
    with.train.from = base();
    with.train.accumulate = 1;
    with.train.warmup = 0;
    return with;
  }
  LanguageModelRequest labelled(const std::string& output, const std::string& kind) {
    LanguageModelRequest with = tuned(output);
    with.task.kind = kind;
    const std::string table = kind.starts_with("token")       ? "tokens.tsv"
                              : kind == "sequence-regression" ? "values.tsv"
                                                              : "classes.tsv";
    with.task.labels = folder_ / table;
    return with;
  }
  nlohmann::json last_evaluation(const std::string& output) {
    nlohmann::json found;
    for (const auto& record : records(output)) {
      if (record.contains("valid")) found = record["valid"];
    }
    return found;
  }

  Composition data_ = composition(80);
};

TEST_F(FineTune, StartsFromTheWeightsOfAModel) {
  LanguageModelRequest with = tuned("run");
  const std::atomic<bool> stop{true};
  with.options.stop = &stop;
  EXPECT_THAT(failure(with), HasSubstr("after step 0"));
  const ModelFolder from = load_model(base()), made = load_model(with.output);
  EXPECT_EQ(made.from, base());
  const auto expected = model_state(from.model), got = model_state(made.model);
  for (const auto& [name, tensor] : expected) EXPECT_TRUE(at::equal(tensor, got.at(name))) << name;
}

TEST_F(FineTune, RefusesAnotherShape) {
  LanguageModelRequest with = tuned("run");
  with.model.width = 32;
  EXPECT_THAT(failure(with), AllOf(HasSubstr("model.width is 32"), HasSubstr(base()), HasSubstr("has 16")));
  with = tuned("run");
  with.attention.set("features", 4);
  EXPECT_THAT(failure(with), HasSubstr("attention.features is 4"));
  with = tuned("run");
  with.data.vocabulary = "dna";
  EXPECT_THAT(failure(with), HasSubstr("data.vocabulary is dna"));
  with = tuned("run");
  with.model.dropout = 0;
  with.attention.redraw_every = 0;
  with.train.steps = 1;
  EXPECT_EQ(failure(with), "") << "no weight depends on these";
}

TEST_F(FineTune, EveryKindOfLabelIsLearned) {
  for (const std::string& kind : head_kinds()) {
    LanguageModelRequest with = labelled(kind, kind);
    if (kind == "token-regression") {
      std::string table;
      for (size_t i = 0; i < data_.proteins.size(); ++i) {
        table += fmt::format("p{}\t\"", i);
        for (size_t k = 0; k < data_.proteins[i].size(); ++k)
          table += fmt::format("{}{}", k > 0 ? "," : "", data_.proteins[i][k] == 'A' ? 3 : -1);
        table += "\"\n";
      }
      write_file(folder_ / "token_values.tsv", table);
      with.task.labels = folder_ / "token_values.tsv";
    }
    with.model.dropout = 0;
    with.train.steps = 60;
    with.train.learning_rate = 1e-2;
    with.train.evaluate_every = 0;
    ASSERT_EQ(failure(with), "") << kind;
    const nlohmann::json found = last_evaluation(with.output);
    EXPECT_EQ(found["kind"], kind);
    if (kind.ends_with("classification")) {
      EXPECT_GT(found["accuracy"], 0.85) << kind;
      EXPECT_GT(found["macro_f1"], 0.8) << kind;
    } else {
      EXPECT_GT(found["spearman"], 0.8) << kind;
      EXPECT_LT(found["mse"], 0.4 * found["variance"].get<double>()) << kind;
    }
    const ModelFolder made = load_model(with.output);
    ASSERT_FALSE(made.head.is_empty());
    EXPECT_EQ(made.head->config().kind, kind);
    if (kind == "sequence-classification") {
      EXPECT_THAT(made.head->config().classes, ElementsAre("poor", "rich"));
    } else if (kind == "sequence-regression") {
      EXPECT_NEAR(made.head->config().mean, 11.5, 0.5);
    }
  }
}

TEST_F(FineTune, PoolingAndLayoutDoNotChangeWhatALabelIs) {
  LanguageModelRequest with = labelled("run", "sequence-classification");
  with.train.steps = 1;
  with.model.dropout = 0;
  with.data.batch_tokens = 30000;
  with.data.length = 64;
  with.data.holdout = 0;
  run(with);
  LanguageModelRequest padded = with;
  padded.output = folder_ / "padded";
  padded.data.layout = "padded";
  padded.data.batch_tokens = 800 * 64;
  EXPECT_EQ(failure(padded), "");
  // A batch of either goes round the corpus several times, so that its loss is nearly the corpus' own.
  EXPECT_NEAR(losses(with.output)[0], losses(padded.output)[0], 0.02);
  LanguageModelRequest first = with;
  first.output = folder_ / "first";
  first.task.pool = "first";
  EXPECT_EQ(failure(first), "");
  EXPECT_NE(losses(first.output), losses(with.output));
}

TEST_F(FineTune, AResumeIsExactWithHeadsAndAdapters) {
  for (const char* kind : {"sequence-classification", "token-classification", "language-model"}) {
    LanguageModelRequest with = std::string(kind) == "language-model" ? tuned(kind) : labelled(kind, kind);
    with.train.lora_rank = 2;
    with.train.lora_dropout = 0.2;
    with.train.lora_targets = "query,value,up,down";
    with.train.layer_decay = 0.5;
    with.train.accumulate = 2;
    with.train.steps = 3;
    ASSERT_EQ(failure(with), "");
    with.resume = true;
    with.train.steps = 8;
    const std::string path = base();
    std::filesystem::rename(path, folder_ / "away");  // a resumed run needs it no more
    EXPECT_EQ(failure(with), "");
    std::filesystem::rename(folder_ / "away", path);
    LanguageModelRequest whole = with;
    whole.output += "-whole";
    whole.resume = false;
    ASSERT_EQ(failure(whole), "");
    EXPECT_EQ(losses(with.output), losses(whole.output)) << kind;
    const auto expected = model_state(load_model(whole.output).model),
               got = model_state(load_model(with.output).model);
    for (const auto& [name, tensor] : expected) EXPECT_TRUE(at::equal(tensor, got.at(name))) << name;
    with.task.weights = folder_ / "values.tsv";
    EXPECT_THAT(failure(with), HasSubstr("task.weights is"));
  }
}

TEST_F(FineTune, OtherLabelsAreNotResumedWith) {
  LanguageModelRequest with = labelled("run", "sequence-classification");
  with.train.steps = 1;
  run(with);
  with.resume = true;
  with.train.steps = 2;
  std::string other = data_.classes;
  other.replace(other.find("rich"), 4, "poor");
  write_file(with.task.labels, other);
  EXPECT_THAT(failure(with), AllOf(HasSubstr("task.labels"), HasSubstr("labels of the sequences")));
}

TEST_F(FineTune, TheSavedModelIsTheMergedOne) {
  LanguageModelRequest with = tuned("run");
  with.model.dropout = 0;
  with.train.lora_rank = 3;
  with.train.lora_alpha = 6;
  with.train.lora_targets = "query,up";
  with.train.steps = 4;
  with.train.learning_rate = 1e-2;
  run(with);
  const auto before = model_state(load_model(base()).model),
             after = model_state(load_model(with.output).model);
  const auto tensors = load_training(with.output).task.tensors;
  int changed = 0;
  for (const auto& [name, tensor] : after) {
    const auto up = tensors.find(fmt::format("lora.{}.up", name));
    if (up == tensors.end()) {
      EXPECT_TRUE(name.find("projection") != std::string::npos || at::equal(tensor, before.at(name)))
          << name << " is frozen";
      continue;
    }
    ++changed;
    const at::Tensor& down = tensors.at(fmt::format("lora.{}.down", name));
    EXPECT_EQ(up->second.size(1), 3);
    EXPECT_FALSE(at::equal(tensor, before.at(name))) << name << " was adapted";
    // What two branches give, x base^T + 2 (x down^T) up^T, is what the merged weight gives.
    const at::Tensor x = at::randn({5, tensor.size(1)});
    const at::Tensor branches = x.matmul(before.at(name).t()) + 2 * x.matmul(down.t()).matmul(up->second.t());
    EXPECT_TRUE(at::allclose(x.matmul(tensor.t()), branches, 1e-4, 1e-4)) << name;
  }
  EXPECT_EQ(changed, 4) << "two projections of two blocks";
}

// The gradients of adapters against those that autograd finds through the product.
TEST(LowRank, GradientsAreThoseOfTheProduct) {
  at::manual_seed(1);
  LanguageModel model(ModelConfig{.layers = 1, .width = 16, .heads = 2, .ffn = 32, .dropout = 0},
                      AttentionConfig(), 8);
  TrainConfig config;
  config.lora_rank = 2;
  config.lora_dropout = 0.5;
  config.lora_targets = "up";
  TrainedParameters trained(model, config);
  ASSERT_EQ(trained.adapters().size(), 1u);
  const LowRankAdapter& adapter = trained.adapters()[0];
  {
    const at::NoGradGuard no_grad;
    at::Tensor up = adapter.up;
    up.copy_(at::randn_like(up));
  }
  trained.begin_backward();
  const at::Tensor x = at::randn({7, 16});
  x.matmul(adapter.weight.t()).square().sum().backward();
  trained.end_backward();
  const at::Tensor up = adapter.up.detach().clone().requires_grad_(),
                   down = adapter.down.detach().clone().requires_grad_();
  const double scale = config.lora_alpha / 2;
  (x.matmul(adapter.base.t()) + scale * (x * adapter.kept).matmul(down.t()).matmul(up.t()))
      .square()
      .sum()
      .backward();
  EXPECT_TRUE(at::allclose(adapter.up.grad(), up.grad(), 1e-3, 1e-2));
  EXPECT_TRUE(at::allclose(adapter.down.grad(), down.grad(), 1e-3, 1e-2));
  EXPECT_FALSE(adapter.weight.grad().defined());
  EXPECT_GT(adapter.kept.eq(0).sum().item<int64_t>(), 0);
  trained.after_step();
  EXPECT_TRUE(
      at::allclose(adapter.weight, adapter.base + scale * adapter.up.matmul(adapter.down), 1e-5, 1e-5))
      << "without dropout";
}

TEST_F(FineTune, FrozenPartsGetNoGradientAndStay) {
  LanguageModelRequest with = labelled("run", "sequence-regression");
  with.train.freeze = "embeddings, 0";
  with.train.steps = 3;
  with.train.checkpoint_activations = true;
  run(with);
  const auto before = model_state(load_model(base()).model),
             after = model_state(load_model(with.output).model);
  for (const auto& [name, tensor] : after) {
    if (name.starts_with("embedding") || (name.starts_with("blocks_0") && name.ends_with("weight"))) {
      EXPECT_TRUE(at::equal(tensor, before.at(name))) << name;
    }
  }
  EXPECT_FALSE(at::equal(after.at("blocks_1.up.weight"), before.at("blocks_1.up.weight")));
  EXPECT_TRUE(at::equal(after.at("output.weight"), before.at("output.weight"))) << "predicts tokens only";
  for (const auto& [name, moment] : load_training(with.output).adam)
    EXPECT_THAT(name, Not(HasSubstr("blocks_0")));

  at::manual_seed(1);
  LanguageModel model(ModelConfig{.layers = 2, .width = 16, .heads = 2, .ffn = 32}, AttentionConfig(), 8);
  TrainConfig config;
  config.freeze = "embeddings,0";
  const TrainedParameters trained(model, config);
  SequenceBatch batch;
  batch.tokens = at::randint(8, {1, 6});
  batch.positions = at::arange(6).unsqueeze(0);
  model->forward(batch).square().sum().backward();
  for (const auto& item : model->named_parameters()) {
    const bool frozen = item.key().starts_with("embedding") || item.key().starts_with("blocks_0");
    EXPECT_EQ(item.value().grad().defined(), !frozen) << item.key();
  }
}

TEST_F(FineTune, FrozenLayersGoWithSlim) {
  LanguageModelRequest with = request("causal");
  with.model.layers = 2;
  with.train.freeze = "embeddings,0";
  with.train.steps = 3;
  with.model.dropout = 0;
  LanguageModelRequest slim = with;
  slim.output = folder_ / "slim";
  slim.train.slim_chunk = 24;
  ASSERT_EQ(failure(with), "");
  ASSERT_EQ(failure(slim), "");
  const auto a = losses(with.output), b = losses(slim.output);
  ASSERT_EQ(a.size(), 3u);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-4 * a[i]) << "step " << i + 1;
}

TEST(Freezing, NamesPartsAndRefusesOthers) {
  const FrozenParts parts = parse_frozen("embeddings,0-1, 3", 5);
  EXPECT_TRUE(parts.covers("embedding.weight"));
  EXPECT_TRUE(parts.covers("blocks_1.up.weight"));
  EXPECT_FALSE(parts.covers("blocks_2.up.weight"));
  EXPECT_FALSE(parts.covers("final_norm.weight"));
  EXPECT_TRUE(parse_frozen("all", 2).covers("blocks_1.up.weight"));
  EXPECT_THROW(parse_frozen("0-5", 5), UsageError);
  EXPECT_THROW(parse_frozen("2-1", 5), UsageError);
  EXPECT_THROW(parse_frozen("head", 5), UsageError);
  EXPECT_THROW(parse_frozen("-1", 5), UsageError);
  EXPECT_EQ(rate_of_layer("final_norm.weight", 4, 0.5), 1);
  EXPECT_EQ(rate_of_layer("blocks_3.up.weight", 4, 0.5), 0.5);
  EXPECT_EQ(rate_of_layer("blocks_0.up.weight", 4, 0.5), 0.0625);
  EXPECT_EQ(rate_of_layer("embedding.weight", 4, 0.5), 0.03125);
}

TEST_F(FineTune, FrozenAndAdaptedPartsThatAreNotThereAreNamed) {
  LanguageModelRequest with = tuned("run");
  with.train.freeze = "all";
  EXPECT_THAT(failure(with), HasSubstr("leaves nothing of the model to train"));
  with.train.freeze = "7";
  EXPECT_THAT(failure(with), HasSubstr("the model has the blocks 0 to 1, not 7"));
  with = tuned("run2");
  with.train.lora_rank = 2;
  with.train.lora_targets = "query,gate";
  EXPECT_THAT(failure(with), AllOf(HasSubstr("no projection 'gate'"), HasSubstr("query")));
}

TEST_F(FineTune, ALinearProbeTrainsTheHeadAlone) {
  LanguageModelRequest with = labelled("run", "sequence-classification");
  with.train.freeze = "all";
  with.train.steps = 5;
  ASSERT_EQ(failure(with), "");
  const auto before = model_state(load_model(base()).model),
             after = model_state(load_model(with.output).model);
  for (const auto& [name, tensor] : after) {
    EXPECT_TRUE(!name.ends_with("weight") || at::equal(tensor, before.at(name))) << name;
  }
  for (const auto& [name, moment] : load_training(with.output).adam)
    EXPECT_TRUE(name == "steps" || name.starts_with("head.")) << name;
}

TEST_F(FineTune, WeightsOfSequencesWeighTheLoss) {
  const auto with_weights = [&](const std::string& output, const auto& weight) {
    std::string table = "id\tweight\n";
    for (size_t i = 0; i < data_.proteins.size(); ++i) table += fmt::format("p{}\t{}\n", i, weight(i));
    write_file(folder_ / (output + ".tsv"), table);
    LanguageModelRequest with = request(output);
    with.task.weights = folder_ / (output + ".tsv");
    with.train.steps = 4;
    EXPECT_EQ(failure(with), "");
    return losses(with.output);
  };
  LanguageModelRequest plain = request("plain");
  plain.train.steps = 4;
  run(plain);
  const auto ones = with_weights("ones", [](size_t) { return 1; });
  const auto threes = with_weights("threes", [](size_t) { return 3; });
  const auto other = with_weights("other", [](size_t i) { return i % 2; });
  EXPECT_EQ(ones, losses(plain.output));
  for (size_t i = 0; i < ones.size(); ++i) EXPECT_NEAR(threes[i], ones[i], 1e-4) << "a weighted mean";
  EXPECT_NE(other, ones);
}

TEST_F(FineTune, ARunEndsWhenNothingGetsBetter) {
  LanguageModelRequest with = labelled("run", "sequence-classification");
  with.attention.redraw_every = 0;
  with.train.learning_rate = 0;  // nothing changes, so the first evaluation stays the best
  with.train.evaluate_every = 2;
  with.train.patience = 2;
  with.train.steps = 50;
  ASSERT_EQ(failure(with), "");
  const auto last = records(with.output).back();
  EXPECT_EQ(last["step"], 6) << "evaluations after steps 2, 4 and 6";
  EXPECT_EQ(last["final"]["best_step"], 2);
  with.resume = true;
  with.train.steps = 60;
  ASSERT_EQ(failure(with), "");
  EXPECT_EQ(records(with.output).back()["step"], 6) << "patience is at its end";
  with.output = folder_ / "none";
  with.resume = false;
  with.data.holdout = 0;
  EXPECT_THAT(failure(with), AllOf(HasSubstr("train.patience = 2"), HasSubstr("held-out")));
}

TEST_F(FineTune, TheBestModelIsKept) {
  LanguageModelRequest with = request("run");
  with.train.learning_rate = 0.3;  // far too large: it gets worse and worse
  with.train.warmup = 0;
  with.train.clip = 0;
  with.train.evaluate_every = 1;
  with.train.patience = 3;
  with.train.steps = 12;
  ASSERT_EQ(failure(with), "");
  std::map<int64_t, double> perplexities;
  for (const auto& record : records(with.output)) {
    if (record.contains("valid")) perplexities[record["step"]] = record["valid"]["model"]["perplexity"];
  }
  const int64_t best = records(with.output).back()["final"]["best_step"];
  for (const auto& [step, perplexity] : perplexities) EXPECT_GE(perplexity, perplexities[best]) << step;
  ASSERT_LT(best, perplexities.rbegin()->first);
  // The folder holds the model of that step.
  ModelFolder folder = load_model(with.output);
  const data::SequenceStore valid({fasta_}, folder_ / "run", folder.data,
                                  {data::HashSplit::Side::held_out, with.data.holdout, 0}, folder.vocabulary);
  const Evaluation found = evaluate(folder.model, valid, folder.data, folder.baselines);
  EXPECT_NEAR(found.model.perplexity(), perplexities[best], 1e-6 * perplexities[best]);
}

TEST_F(FineTune, LongSequencesAreNotCutInSilence) {
  LanguageModelRequest with = labelled("run", "sequence-classification");
  with.data.length = 12;
  EXPECT_THAT(failure(with), AllOf(HasSubstr("data.length is 12"), HasSubstr("data.crop")));
  with.data.crop = "start";
  with.train.steps = 1;
  with.output = folder_ / "start";
  EXPECT_EQ(failure(with), "");
  LanguageModelRequest tokens = labelled("tokens", "token-classification");
  tokens.data.length = 12;
  tokens.train.steps = 2;
  EXPECT_EQ(failure(tokens), "") << "labels of tokens are cut with their tokens";
}

TEST_F(FineTune, SettingsThatContradictEachOtherAreRefused) {
  LanguageModelRequest with = labelled("run", "sequence-classification");
  with.task.kind = "language-model";
  EXPECT_THAT(failure(with), HasSubstr("task.labels"));
  with = labelled("run", "sequence-classification");
  with.task.labels = "";
  EXPECT_THAT(failure(with), HasSubstr("set task.labels"));
  with = labelled("run", "sequence-classification");
  with.data.layout = "concatenated";
  EXPECT_THAT(failure(with), HasSubstr("data.layout"));
  with = labelled("run", "sequence-regression");
  with.task.labels = folder_ / "classes.tsv";
  EXPECT_THAT(failure(with), AllOf(HasSubstr("classes.tsv"), HasSubstr("expected a number")));
  std::set<std::string> kinds;
  for (const TaskKind& kind : task_kinds()) kinds.insert(kind.name);
  for (const FieldInfo& field : list_fields("task", TaskConfig())) {
    if (field.name == "kind") {
      EXPECT_EQ(kinds, (std::set<std::string>(field.choices.begin(), field.choices.end())));
    }
  }
}

}  // namespace
}  // namespace performer::train
