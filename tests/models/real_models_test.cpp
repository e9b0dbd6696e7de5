// SPDX-License-Identifier: Apache-2.0
// Trained models of other programs against what their own code recorded (record_real.py, outside of the
// project: the packages are large). The table of docs/conversion.md has the differences.
#include <gtest/gtest.h>

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

}  // namespace
}  // namespace performer::convert
