// SPDX-License-Identifier: Apache-2.0
#include "performer/train/evaluation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/train/runs.h"

namespace performer::train {
namespace {

class EvaluationTest : public ::testing::Test {
 protected:
  LanguageModel make_model(const std::string& objective) {
    at::manual_seed(5);
    ModelConfig model{.objective = objective, .layers = 1, .width = 16, .heads = 2, .ffn = 32};
    AttentionConfig attention;
    attention.kind = "favor-softmax";
    attention.set("features", 8);
    LanguageModel made(model, attention, data::Vocabulary::protein().size());
    made->train();
    return made;
  }
  data::Baselines fitted() const { return testing::fitted(corpus_); }
  testing::TemporaryFolder folder_;
  data::SequenceStore corpus_{{testing::write_fasta(folder_ / "p.fasta", testing::random_proteins(30))},
                              folder_ / ""};
  DataConfig config_;
};

TEST_F(EvaluationTest, CausalIsTheSumOverSequencesAlone) {
  LanguageModel model = make_model("causal");
  const Evaluation all = evaluate(model, corpus_, config_, fitted());
  EXPECT_TRUE(model->is_training()) << "the mode is left as it was";
  EXPECT_EQ(all.sequences, corpus_.size());
  EXPECT_EQ(all.model.tokens, corpus_.total_tokens());
  EXPECT_EQ(all.end_marker.tokens, corpus_.size());

  const at::NoGradGuard no_grad;
  model->eval();
  double residues = 0, ends = 0;
  data::Score unigram, bigram;
  for (int64_t i = 0; i < corpus_.size(); ++i) {
    const auto sequence = corpus_.tokens(i);
    std::vector<int64_t> tokens{data::Vocabulary::protein().bos()};
    tokens.insert(tokens.end(), sequence.begin(), sequence.end());
    const auto length = static_cast<int64_t>(tokens.size());
    SequenceBatch batch;
    batch.tokens = at::tensor(tokens, at::kLong).unsqueeze(0);
    batch.positions = at::arange(length, at::kLong).unsqueeze(0);
    const at::Tensor log_probabilities = at::log_softmax(model->forward(batch)[0], -1);
    for (int64_t t = 0; t + 1 < length; ++t) {
      residues += log_probabilities[t][tokens[static_cast<size_t>(t) + 1]].item<double>();
    }
    ends += log_probabilities[length - 1][data::Vocabulary::protein().eos()].item<double>();
    fitted().add_unigram(unigram, sequence);
    fitted().add_bigram(bigram, sequence);
  }
  EXPECT_NEAR(all.model.log_likelihood, residues, 1e-3);
  EXPECT_NEAR(all.end_marker.log_likelihood, ends, 1e-3);
  EXPECT_NEAR(all.unigram.log_likelihood, unigram.log_likelihood, 1e-6);
  EXPECT_NEAR(all.bigram.log_likelihood, bigram.log_likelihood, 1e-6);
  EXPECT_EQ(all.unigram.correct, unigram.correct);
  EXPECT_EQ(all.bigram.correct, bigram.correct);
}

TEST_F(EvaluationTest, BatchSizeChangesNothing) {
  for (const char* objective : {"causal", "masked"}) {
    LanguageModel model = make_model(objective);
    config_.batch_tokens = 1 << 20;
    const Evaluation whole = evaluate(model, corpus_, config_, fitted());
    config_.batch_tokens = 50;
    const Evaluation pieces = evaluate(model, corpus_, config_, fitted());
    EXPECT_EQ(whole.model.tokens, pieces.model.tokens);
    EXPECT_EQ(whole.model.correct, pieces.model.correct);
    EXPECT_NEAR(whole.model.perplexity(), pieces.model.perplexity(), 1e-5 * whole.model.perplexity());
    EXPECT_DOUBLE_EQ(whole.bigram.log_likelihood, pieces.bigram.log_likelihood);
    EXPECT_EQ(whole.sequences, pieces.sequences);
  }
}

TEST_F(EvaluationTest, MaskedScoresAllThreeOnTheChosenResidues) {
  LanguageModel model = make_model("masked");
  const Evaluation masked = evaluate(model, corpus_, config_, fitted());
  EXPECT_GT(masked.model.tokens, 0);
  EXPECT_LT(masked.model.tokens, corpus_.total_tokens() / 2);
  EXPECT_EQ(masked.unigram.tokens, masked.model.tokens);
  EXPECT_EQ(masked.bigram.tokens, masked.model.tokens);
  EXPECT_EQ(masked.end_marker.tokens, 0);
  EXPECT_FALSE(to_json(masked).contains("end_marker"));

  // The same places by hand: weights of the stream, symbols of the corpus.
  data::Score unigram;
  data::EvaluationStream stream(corpus_, config_, "masked");
  int64_t index = 0;
  while (const auto batch = stream.next()) {
    for (size_t i = 0; i < batch->targets.size(); ++i) {
      index += i > 0 && batch->positions[i] == 0;
      if (batch->weights[i] == 0) continue;
      const auto residue = corpus_.tokens(index)[static_cast<size_t>(batch->positions[i]) - 1];
      EXPECT_EQ(residue, batch->targets[i]);
      fitted().add_unigram(unigram, std::span(&residue, 1));
    }
    ++index;
  }
  EXPECT_NEAR(masked.unigram.log_likelihood, unigram.log_likelihood, 1e-9);
}

TEST_F(EvaluationTest, Json) {
  Evaluation evaluation;
  evaluation.model = {.log_likelihood = -std::log(4.0) * 10, .correct = 3, .tokens = 10};
  evaluation.unigram = evaluation.bigram = evaluation.end_marker = evaluation.model;
  const auto json = to_json(evaluation);
  for (const char* part : {"model", "unigram", "bigram", "end_marker"}) {
    EXPECT_EQ(json[part]["tokens"], 10);
    EXPECT_DOUBLE_EQ(json[part]["accuracy"], 0.3);
    EXPECT_NEAR(json[part]["perplexity"].get<double>(), 4, 1e-12);
    EXPECT_EQ(json[part].size(), 3);
  }
}

TEST(EvaluationBits, NamedByWhatATokenIs) {
  const std::vector<std::vector<data::Token>> one = {{0, 1}};
  const auto key = [&](const data::Vocabulary& vocabulary) {
    return bits_key(data::MemoryCorpus(one, vocabulary));
  };
  EXPECT_EQ(key(data::Vocabulary::bytes()), "bits_per_byte");
  EXPECT_EQ(key(data::Vocabulary::pixels()), "bits_per_dimension");
  EXPECT_EQ(key(data::Vocabulary::protein()), "");
  EXPECT_EQ(key(data::Vocabulary::of_symbols("syllables", {"la", "lo"})), "");

  // Text in a vocabulary of its own: a token is a byte only where every symbol is one.
  const testing::TemporaryFolder folder;
  write_file(folder / "text.txt", "abab");
  write_file(folder / "letters", "a\nb\n");
  write_file(folder / "pairs", "ab\na\n");
  const auto text_key = [&](const std::string& vocabulary) {
    DataConfig config;
    config.vocabulary = folder / vocabulary;
    return bits_key(data::SequenceStore({folder / "text.txt"}, folder / "", config));
  };
  EXPECT_EQ(text_key("letters"), "bits_per_byte");
  EXPECT_EQ(text_key("pairs"), "");
}

// The same numbers, in the units in which images and text are compared.
TEST(EvaluationBits, StandBesidePerplexity) {
  for (const auto& [vocabulary, bits] : {std::pair{data::Vocabulary::bytes(), "bits_per_byte"},
                                         std::pair{data::Vocabulary::pixels(), "bits_per_dimension"}}) {
    const data::MemoryCorpus corpus({{10, 200, 30, 30}, {0, 255, 7}}, vocabulary);
    at::manual_seed(3);
    LanguageModel model(ModelConfig{.layers = 1, .width = 16, .heads = 2, .ffn = 32}, AttentionConfig{},
                        vocabulary.size());
    const Evaluation found = evaluate(model, corpus, {}, testing::fitted(corpus));
    EXPECT_EQ(found.model.tokens, 7) << "end markers are counted apart";
    EXPECT_EQ(found.end_marker.tokens, 2);
    const auto json = to_json(found);
    for (const char* part : {"model", "unigram", "bigram"}) {
      EXPECT_NEAR(json[part][bits].get<double>(), std::log2(json[part]["perplexity"].get<double>()), 1e-9)
          << part;
      EXPECT_EQ(json[part].size(), 4) << "no other measure of bits";
    }
    EXPECT_EQ(json["end_marker"].size(), 3) << "the end is no byte and no dimension";
  }
}

TEST(EvaluationVocabulary, OfAnotherSizeIsRefused) {
  const data::MemoryCorpus corpus({{0, 1}}, data::Vocabulary::dna());
  LanguageModel model(ModelConfig{.layers = 1, .width = 16, .heads = 2, .ffn = 32}, AttentionConfig{}, 29);
  EXPECT_THROW(evaluate(model, corpus, {}, testing::fitted(corpus)), InputError);
}

TEST(ToTensors, PaddedAndPacked) {
  data::Batch batch;
  batch.rows = 2;
  batch.width = 3;
  batch.inputs = {25, 0, 1, 25, 2, 27};
  batch.targets = {0, 1, 26, 2, 26, 27};
  batch.weights = {1, 1, 1, 1, 1, 0};
  batch.positions = {0, 1, 2, 0, 1, 2};
  batch.valid = {1, 1, 1, 1, 1, 0};
  const SequenceBatch padded = to_tensors(batch);
  EXPECT_EQ(padded.tokens.sizes(), at::IntArrayRef({2, 3}));
  EXPECT_EQ(padded.tokens[1][2].item<int64_t>(), 27);
  EXPECT_EQ(padded.positions[1][1].item<int64_t>(), 1);
  EXPECT_FALSE(padded.cu_seqlens.has_value());
  EXPECT_EQ(padded.key_mask->scalar_type(), at::kBool);
  EXPECT_EQ(padded.key_mask->sum().item<int64_t>(), 5);
  EXPECT_EQ(weight_tensor(batch).sum().item<float>(), 5);
  EXPECT_EQ(target_tensor(batch)[0][2].item<int64_t>(), 26);

  batch.rows = 1;
  batch.width = 6;
  batch.valid.clear();
  batch.cu_seqlens = {0, 3, 6};
  const SequenceBatch packed = to_tensors(batch);
  EXPECT_FALSE(packed.key_mask.has_value());
  EXPECT_TRUE(at::equal(*packed.cu_seqlens, at::tensor({0, 3, 6}, at::kLong)));
}

}  // namespace
}  // namespace performer::train
