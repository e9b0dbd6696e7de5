// SPDX-License-Identifier: Apache-2.0
// Trained models of other programs against what their own code recorded (record_real.py, outside of the
// project: the packages are large). The table of docs/conversion.md has the differences.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "performer/models/convert/convert.h"
#include "performer/models/convert/ctranslate2.h"
#include "tests/models/pretrained.h"

namespace performer::convert {
namespace {

namespace fs = std::filesystem;

Request request_of(const fs::path& folder) {
  std::ifstream lines(folder / "source.txt");
  Request request;
  std::string tokenizer;
  std::getline(lines, request.source);
  std::getline(lines, tokenizer);
  if (tokenizer == "ids") {
    request.tokenizer = Tokenizer::ids;
  } else {
    request.tokenizer_files = tokenizer;
  }
  return request;
}

TEST(RealModels, GiveTheOutputsOfTheirOwnCode) {
  const char* variable = std::getenv("PERFORMER_REAL_MODELS");
  if (variable == nullptr) GTEST_SKIP() << "PERFORMER_REAL_MODELS does not name a folder of record_real.py";
  const at::NoGradGuard no_grad;
  for (const auto& entry : fs::directory_iterator(variable)) {
    const auto stored = read_safetensors((entry.path() / "expected.safetensors").string()).tensors;
    Conversion made = convert(request_of(entry.path()));
    Recording recorded{stored.at("tokens"), stored.at("mask").to(at::kBool), {}};
    const std::string name = entry.path().filename().string();
    double difference = 0;
    if (stored.contains("logits")) {
      recorded.logits = stored.at("logits");
      difference = recorded.difference(made.folder.model->forward(recorded.batch(made.folder.vocabulary)),
                                       made.folder.vocabulary);
    } else {
      const int64_t tokens = made.folder.model->vocabulary();
      recorded.logits = at::zeros({1, 1, tokens});
      const at::Tensor hidden = made.folder.model->hidden(recorded.batch(made.folder.vocabulary));
      difference = ((hidden - stored.at("hidden")).abs() * recorded.mask.unsqueeze(-1)).max().item<double>();
    }
    std::printf("%s: largest difference %.2e\n", name.c_str(), difference);
    EXPECT_LT(difference, 1e-4) << name;
  }
}

// OpenNMT's Arabic-to-English transliteration.
class Transliteration : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(path_)) GTEST_SKIP() << "there is no " << path_;
    source_ = lines_of("source_vocabulary.txt");
    target_ = lines_of("target_vocabulary.txt");
  }

  std::vector<std::string> lines_of(const std::string& file) const {
    std::vector<std::string> lines;
    std::ifstream stream(path_ + "/" + file);
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
  }
  static int64_t id_of(const std::vector<std::string>& vocabulary, const std::string& text) {
    const auto found = std::find(vocabulary.begin(), vocabulary.end(), text);
    EXPECT_NE(found, vocabulary.end()) << "'" << text << "' is not in the vocabulary";
    return found - vocabulary.begin();
  }
  static SequenceBatch batch_of(const std::vector<std::string>& vocabulary,
                                const std::vector<std::string>& texts) {
    std::vector<int64_t> ids;
    for (const std::string& text : texts) ids.push_back(id_of(vocabulary, text));
    SequenceBatch batch;
    batch.tokens = at::tensor(ids, at::kLong).unsqueeze(0);
    batch.positions = at::arange(std::ssize(ids)).unsqueeze(0);
    return batch;
  }
  // Letters of two bytes, which all of these are.
  SequenceBatch word(const std::string& letters) const {
    std::vector<std::string> texts;
    for (size_t i = 0; i < letters.size(); i += 2) texts.push_back(letters.substr(i, 2));
    return batch_of(source_, texts);
  }

  // The most probable next letter, again and again.
  std::string greedy(EncoderDecoder& model, const SequenceBatch& word) const {
    DecodeState state = model->begin(word);
    int64_t token = id_of(target_, "<s>");
    std::string text;
    for (int i = 0; i < 30; ++i) {
      token = model->step(at::tensor({token}, at::kLong), state).argmax(-1).item<int64_t>();
      if (target_[static_cast<size_t>(token)] == "</s>") break;
      text += target_[static_cast<size_t>(token)];
    }
    return text;
  }

  const std::string path_ =
      std::string(PERFORMER_SOURCE_DIR) + "/../shared/data/weights/ctranslate2-aren-transliteration";
  std::vector<std::string> source_, target_;
};

// Log-probabilities of "atzmon" for its own test's word, as ctranslate2 4 scores them (score_batch), and its
// greedy answer.
TEST_F(Transliteration, ScoresAsCtranslate2) {
  EncoderDecoder model = import_ctranslate2(path_);
  const SequenceBatch source = word("آتزمون");
  const SequenceBatch given = batch_of(target_, {"<s>", "a", "t", "z", "m", "o", "n"});
  const at::Tensor wanted = batch_of(target_, {"a", "t", "z", "m", "o", "n", "</s>"}).tokens;
  const at::NoGradGuard no_grad;
  const at::Tensor logits = model->forward(source, given);
  const at::Tensor scores = logits.log_softmax(-1).gather(2, wanted.unsqueeze(-1)).flatten();
  const at::Tensor recorded =
      at::tensor({-0.10602283, -0.06541061, -0.05600262, -0.44795322, -0.23071384, -0.09218311, -0.06346321});
  const double difference = (scores - recorded).abs().max().item<double>();
  std::printf("ctranslate2: largest difference of log-probabilities %.2e\n", difference);
  EXPECT_LT(difference, 1e-4);
  EXPECT_TRUE(logits.argmax(-1).equal(wanted));
  EXPECT_EQ(greedy(model, source), "atzmon");
}

// The encoder's self-attention estimated by more and more random features, without any training.
TEST_F(Transliteration, ComesCloserToExactAttentionWithMoreFeatures) {
  const std::vector<std::string> names = {
      "محمد",    "أحمد",   "علي",   "حسن",  "حسين",  "فاطمة",  "خديجة",   "مريم",  "يوسف",
      "إبراهيم", "سليمان", "داود",  "موسى", "عيسى",  "زينب",   "سارة",    "خالد",  "عمر",
      "عثمان",   "طارق",   "سعيد",  "كريم", "جمال",  "نبيل",   "رشيد",    "منصور", "القاهرة",
      "بغداد",   "دمشق",   "بيروت", "تونس", "مراكش", "طرابلس", "الخرطوم", "صنعاء", "مسقط"};
  constexpr int64_t kSeeds = 4;
  const at::NoGradGuard no_grad;
  EncoderDecoder exact = import_ctranslate2(path_);
  std::vector<double> errors, equal;
  for (const int64_t features : {64, 256, 1024}) {
    double error = 0, same = 0;
    for (int64_t seed = 0; seed < kSeeds; ++seed) {
      TranslationAttention attention;
      attention.encoder = {.kind = "favor-softmax", .seed = seed};
      attention.encoder.set("features", features);
      EncoderDecoder swapped = import_ctranslate2(path_, attention);
      for (const std::string& name : names) {
        const SequenceBatch letters = word(name);
        const at::Tensor wanted = exact->encode(letters);
        error += ((swapped->encode(letters) - wanted).norm() / wanted.norm()).item<double>();
        same += greedy(swapped, letters) == greedy(exact, letters);
      }
    }
    const auto count = static_cast<double>(kSeeds) * static_cast<double>(names.size());
    errors.push_back(error / count);
    equal.push_back(same / count);
    std::printf("ctranslate2: %d features: relative error of encodings %.4f, %.1f %% of %zu names alike\n",
                static_cast<int>(features), errors.back(), 100 * equal.back(), names.size());
  }
  // Four times the features took a quarter off the error when this was written; names, of which a few change,
  // are compared over the whole span alone.
  EXPECT_LT(errors[1], 0.9 * errors[0]);
  EXPECT_LT(errors[2], 0.9 * errors[1]);
  EXPECT_GT(equal[2], equal[0]);
}

}  // namespace
}  // namespace performer::convert
