// SPDX-License-Identifier: Apache-2.0
// The proof that an attention kind is one file and one line: everything that the program needs to train,
// resume, score and sample with a new kind is in this file. It is also what CONTRIBUTING.md's recipe looks
// like when it is followed.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/program.h"
#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/nn/attention/kind.h"
#include "tests/nn/kind_properties.h"

namespace performer {
namespace {

namespace fs = std::filesystem;

// --- the kind: each token gets the mean of the values so far, older ones weighing less -------------------

struct MeanOptions {
  double decay = 0.9;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("decay", self.decay, "factor on the weight of a value for each token of distance, in (0, 1]");
  }
};

struct MeanCache final : nn::Cache {
  at::Tensor sum, weight;  // [B, H, E] and [B, 1, 1], undefined before the first token

  std::unique_ptr<nn::Cache> select(const at::Tensor& rows) const override {
    auto selected = std::make_unique<MeanCache>();
    if (sum.defined())
      selected->sum = sum.index_select(0, rows), selected->weight = weight.index_select(0, rows);
    return selected;
  }
};

class MeanAttention final : public nn::Attention {
 public:
  explicit MeanAttention(const MeanOptions& options) : decay_(options.decay) {}

  // As a matrix of weights, so that masks and segments are easy to see.
  at::Tensor forward(const ops::AttentionInputs& inputs) override {
    const int64_t length = inputs.value.size(1);
    const at::Tensor place = at::arange(length, inputs.value.options());
    const at::Tensor distance = place.unsqueeze(1) - place;
    at::Tensor weight = at::pow(decay_, distance.clamp_min(0)) * distance.ge(0);
    if (inputs.cu_query) {
      const at::Tensor segment =
          at::arange(inputs.cu_query->size(0) - 1).repeat_interleave(inputs.cu_query->diff());
      weight = weight * segment.unsqueeze(1).eq(segment);
    }
    weight = weight.expand({inputs.value.size(0), length, length});
    if (inputs.key_mask) weight = weight * inputs.key_mask->unsqueeze(1);
    const at::Tensor sum = at::einsum("bts,bshe->bthe", {weight, inputs.value});
    const at::Tensor out = sum / weight.sum(-1).clamp_min(1e-30).unsqueeze(-1).unsqueeze(-1);
    if (!inputs.query_mask) return out;
    return out.masked_fill(inputs.query_mask->logical_not().unsqueeze(-1).unsqueeze(-1), 0);
  }

  std::unique_ptr<nn::Cache> begin(int64_t) const override { return std::make_unique<MeanCache>(); }

  at::Tensor step(const at::Tensor&, const at::Tensor&, const at::Tensor& value,
                  nn::Cache& cache) const override {
    auto& own = dynamic_cast<MeanCache&>(cache);
    own.sum = own.sum.defined() ? own.sum * decay_ + value : value;
    own.weight =
        own.weight.defined() ? own.weight * decay_ + 1 : at::ones({value.size(0), 1, 1}, value.options());
    return own.sum / own.weight;
  }

 private:
  double decay_;
};

nn::AttentionKind mean_kind() {
  nn::AttentionKind kind;
  kind.name = "running-mean";
  kind.summary = "the mean of the values so far";
  kind.capabilities = {.bidirectional = false, .streams = true, .reads_queries = false};
  kind.options = nn::kind_options<MeanOptions>();
  kind.validate = [](const AttentionConfig& config, const nn::AttentionShape&) {
    const double decay = nn::read_options<MeanOptions>(config).decay;
    check<UsageError>(decay > 0 && decay <= 1, "attention.decay must be in (0, 1], not {}", decay);
  };
  kind.make = [](const AttentionConfig& config, const nn::AttentionShape&) {
    return std::make_shared<MeanAttention>(nn::read_options<MeanOptions>(config));
  };
  return kind;
}

const bool registered = (nn::register_kind(mean_kind()), true);  // the one line

// --- its use through the program's own code --------------------------------------------------------------

class RunningMean : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(registered);
    folder_ = fs::temp_directory_path() / ("performer-seams-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
    std::ofstream fasta(path("proteins.fasta"));
    for (int i = 0; i < 40; ++i)
      fasta << ">p" << i << "\n" << (i % 2 ? "MKTAYIAKQR" : "GGASGGLLNN") << "MKV\n";
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  static int performer(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "performer");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    return cli::run_program(static_cast<int>(arguments.size()), argv.data());
  }

  int train(const std::string& folder, int steps, std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments = {"train",
                                          "--preset",
                                          "tiny",
                                          "--set",
                                          "attention.kind=running-mean",
                                          "--set",
                                          "attention.decay=0.8",
                                          "--set",
                                          "data.batch_tokens=128",
                                          "--set",
                                          "data.length=64",
                                          "--train",
                                          path("proteins.fasta"),
                                          "-o",
                                          path(folder),
                                          "--steps",
                                          std::to_string(steps),
                                          "--quiet",
                                          "-t",
                                          "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return performer(arguments);
  }

  std::vector<double> losses(const std::string& folder) const {
    std::vector<double> found;
    std::ifstream lines(path(folder + "/metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const auto record = nlohmann::json::parse(line);
      if (record.contains("loss")) found.push_back(record["loss"].get<double>());
    }
    return found;
  }

  fs::path folder_;
};

TEST_F(RunningMean, KeepsThePromisesOfAllKinds) {
  nn::properties::expect_kind_properties("running-mean");
}

TEST_F(RunningMean, TrainsResumesScoresAndGenerates) {
  ASSERT_EQ(train("straight", 8), 0);
  ASSERT_EQ(train("resumed", 5), 0);
  ASSERT_EQ(train("resumed", 8, {"--resume"}), 0);
  EXPECT_EQ(losses("straight"), losses("resumed"));
  ASSERT_EQ(losses("straight").size(), 8u);
  EXPECT_LT(losses("straight").back(), losses("straight").front());
  EXPECT_EQ(
      performer({"score", path("straight"), path("proteins.fasta"), "-o", path("scores.tsv"), "--quiet"}), 0);
  EXPECT_EQ(performer({"generate", path("straight"), "-n", "3", "--max-length", "20", "-o", path("new.fasta"),
                       "--quiet"}),
            0);
  EXPECT_THAT(read_file(path("new.fasta")), ::testing::HasSubstr(">generated_3 "));
  EXPECT_THAT(read_file(path("straight/config.json")), ::testing::HasSubstr("\"decay\": 0.8"));
}

TEST_F(RunningMean, IsListedHelpedAndRefusedLikeAnyOtherKind) {
  ::testing::internal::CaptureStdout();
  EXPECT_EQ(performer({"info", "--kinds"}), 0);
  EXPECT_THAT(::testing::internal::GetCapturedStdout(), ::testing::HasSubstr("running-mean"));
  ::testing::internal::CaptureStdout();
  EXPECT_EQ(performer({"train", "--set", "attention.kind=running-mean", "--help"}), 0);
  EXPECT_THAT(::testing::internal::GetCapturedStdout(), ::testing::HasSubstr("attention.decay = 0.9"));
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(train("masked", 2, {"--set", "model.objective=masked"}), 2);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              ::testing::HasSubstr("attention.kind = running-mean has no bidirectional form"));
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(train("bad", 2, {"--set", "attention.decay=2"}), 2);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              ::testing::HasSubstr("attention.decay must be in (0, 1]"));
}

}  // namespace
}  // namespace performer
