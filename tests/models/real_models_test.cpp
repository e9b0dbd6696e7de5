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

// OpenNMT's Arabic-to-English transliteration: log-probabilities of "atzmon" for its own test's word, as
// ctranslate2 4 scores them (score_batch), and its greedy answer.
TEST(RealModels, TransliterateAsCtranslate2) {
  const std::string path =
      std::string(PERFORMER_SOURCE_DIR) + "/../shared/data/weights/ctranslate2-aren-transliteration";
  if (!fs::exists(path)) GTEST_SKIP() << "there is no " << path;
  EncoderDecoder model = import_ctranslate2(path);
  const auto tokens_of = [&](const std::string& file, const std::vector<std::string>& texts) {
    std::vector<std::string> lines;
    std::ifstream stream(path + "/" + file);
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    std::vector<int64_t> ids;
    for (const std::string& text : texts)
      ids.push_back(std::find(lines.begin(), lines.end(), text) - lines.begin());
    return at::tensor(ids, at::kLong).unsqueeze(0);
  };
  const auto batch_of = [](const at::Tensor& tokens) {
    SequenceBatch batch;
    batch.tokens = tokens;
    batch.positions = at::arange(tokens.size(1)).unsqueeze(0);
    return batch;
  };
  const at::Tensor source = tokens_of("source_vocabulary.txt", {"آ", "ت", "ز", "م", "و", "ن"});
  const at::Tensor target = tokens_of("target_vocabulary.txt", {"<s>", "a", "t", "z", "m", "o", "n", "</s>"});
  const at::NoGradGuard no_grad;
  const at::Tensor given = target.narrow(1, 0, 7), wanted = target.narrow(1, 1, 7);
  const at::Tensor logits = model->forward(batch_of(source), batch_of(given));
  const at::Tensor scores = logits.log_softmax(-1).gather(2, wanted.unsqueeze(-1)).flatten();
  const at::Tensor recorded =
      at::tensor({-0.10602283, -0.06541061, -0.05600262, -0.44795322, -0.23071384, -0.09218311, -0.06346321});
  const double difference = (scores - recorded).abs().max().item<double>();
  std::printf("ctranslate2: largest difference of log-probabilities %.2e\n", difference);
  EXPECT_LT(difference, 1e-4);
  EXPECT_TRUE(logits.argmax(-1).equal(wanted));
}

}  // namespace
}  // namespace performer::convert
