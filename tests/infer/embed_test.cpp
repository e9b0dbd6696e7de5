// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/embed.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <filesystem>

#include "performer/base/error.h"
#include "performer/infer/embedding_file.h"
#include "performer/models/long_sequence.h"
#include "performer/models/safetensors.h"
#include "tests/errors.h"
#include "tests/infer/tiny_model.h"

namespace performer {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const std::string kEmbedFasta =
    ">a\nMKTAYIAKQR\n>b\nQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVK\n>c\nM\n>d\nMKTAYIAKQR\n>e\nGG\n";

// The layers [T, width] of one sequence with its markers, by one forward pass.
std::vector<at::Tensor> expected_layers(LanguageModel& model, const std::string& text) {
  const at::NoGradGuard no_gradients;
  const data::Vocabulary vocabulary = data::Vocabulary::protein();
  std::vector<int64_t> tokens = {vocabulary.bos()};
  for (const data::Token token : vocabulary.encode(text)) tokens.push_back(token);
  if (model->model_config().objective == "masked") tokens.push_back(vocabulary.eos());
  SequenceBatch batch;
  batch.tokens = at::tensor(tokens, at::kLong).unsqueeze(0);
  batch.positions = at::arange(static_cast<int64_t>(tokens.size()), at::kLong).unsqueeze(0);
  const Representations all = model->represent(batch);
  return {all.input[0], all.layers[0][0], all.output[0]};
}

struct Wanted {
  std::string pool = "mean";
  std::vector<int64_t> layers = {2};
  int64_t batch_tokens = 64, chunk = 8192, most_whole = 65536;
  at::ScalarType type = at::kFloat;
  std::string format = "safetensors";
  bool resume = false;
};

std::string output_of(const Wanted& wanted) {
  return testing::TempDir() + "/embeddings." + wanted.format;
}

data::ReadReport embed_text(LanguageModel& model, const std::string& fasta, const Wanted& wanted,
                            bool finish = true) {
  EmbeddingLayout layout{wanted.format, wanted.type, wanted.layers, 32, wanted.pool == "tokens"};
  EmbeddingFile file(output_of(wanted), layout, {{"pool", wanted.pool}}, wanted.resume);
  const auto reader = data::open_reader(data::memory_bytes(fasta), "memory", {}, data::Vocabulary::protein());
  EmbedRequest request{parse_pooling(wanted.pool), wanted.batch_tokens, wanted.chunk, wanted.most_whole,
                       testing::TempDir()};
  const data::ReadReport report = embed(model, *reader, "memory", request, file);
  if (finish) file.finish();
  return report;
}

at::Tensor embedded(LanguageModel& model, const std::string& fasta, const Wanted& wanted) {
  embed_text(model, fasta, wanted);
  return read_safetensors(output_of(wanted)).tensors.at("embeddings");
}

TEST(Embed, PoolsOverTheSymbols) {
  for (const char* objective : {"causal", "masked"}) {
    LanguageModel model = make_model({.kind = "favor-softmax", .objective = objective});
    for (const int64_t chunk : {8192, 5}) {  // whole, and in chunks
      const at::Tensor mean = embedded(model, kEmbedFasta, {.pool = "mean", .chunk = chunk}),
                       max = embedded(model, kEmbedFasta, {.pool = "max", .chunk = chunk}),
                       first = embedded(model, kEmbedFasta, {.pool = "first", .chunk = chunk}),
                       tokens = embedded(model, kEmbedFasta, {.pool = "tokens", .chunk = chunk});
      ASSERT_EQ(mean.sizes(), at::IntArrayRef({5, 32}));
      ASSERT_EQ(tokens.sizes(), at::IntArrayRef({10 + 50 + 1 + 10 + 2, 32}));
      int64_t row = 0, record = 0;
      for (const char* text :
           {"MKTAYIAKQR", "QISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVK", "M", "MKTAYIAKQR", "GG"}) {
        const at::Tensor all = expected_layers(model, text)[2];
        const auto length = static_cast<int64_t>(std::string(text).size());
        const at::Tensor symbols = all.narrow(0, 1, length);
        const auto near = [&](const at::Tensor& found, const at::Tensor& expected) {
          EXPECT_TRUE(at::allclose(found, expected, 1e-4, 1e-4))
              << objective << ", chunk " << chunk << ", record " << record << ": "
              << (found - expected).abs().max().item<double>();
        };
        near(mean[record], symbols.mean(0));
        near(max[record], symbols.amax(0));
        near(first[record], all[0]);
        near(tokens.narrow(0, row, length), symbols);
        row += length;
        ++record;
      }
    }
  }
}

TEST(Embed, SeveralLayersStandSideBySide) {
  LanguageModel model = make_model({.objective = "masked"});
  for (const int64_t chunk : {8192, 5}) {
    const at::Tensor all =
        embedded(model, kEmbedFasta, {.pool = "tokens", .layers = {0, 1, 2}, .chunk = chunk});
    ASSERT_EQ(all.sizes(), at::IntArrayRef({73, 3, 32}));
    const std::vector<at::Tensor> expected = expected_layers(model, "MKTAYIAKQR");
    for (int64_t layer = 0; layer < 3; ++layer) {
      EXPECT_TRUE(
          at::allclose(all.narrow(0, 0, 10).select(1, layer), expected[layer].narrow(0, 1, 10), 1e-4, 1e-4));
    }
  }
  EXPECT_THAT(resolve_layers({-1, 0, -3, 2}, 2), testing::ElementsAre(0, 2));
  EXPECT_THAT(test::error_of<UsageError>([] { resolve_layers({3}, 2); }),
              AllOf(HasSubstr("--layers 3"), HasSubstr("0 (embedding) to 2"), HasSubstr("-1 to -3")));
}

TEST(Embed, BatchesChangeNothingBeyondRounding) {
  LanguageModel model = make_model({.objective = "masked"});
  const at::Tensor one = embedded(model, kEmbedFasta, {.batch_tokens = 1}),
                   many = embedded(model, kEmbedFasta, {.batch_tokens = 100000});
  EXPECT_TRUE(at::allclose(one, many, 1e-5, 1e-5));
}

TEST(Embed, IndexNamesTheRowsOfEachRecord) {
  LanguageModel model = make_model();
  embed_text(model, kEmbedFasta, {.pool = "tokens"});
  EXPECT_EQ(read_file(output_of({}) + ".tsv"),
            "row\tid\tlength\trows\n0\ta\t10\t10\n10\tb\t50\t50\n60\tc\t1\t1\n61\td\t10\t10\n71\te\t2\t2\n");
  embed_text(model, kEmbedFasta, {.pool = "mean"});
  EXPECT_EQ(read_file(output_of({}) + ".tsv"),
            "row\tid\tlength\trows\n0\ta\t10\t1\n1\tb\t50\t1\n2\tc\t1\t1\n3\td\t10\t1\n4\te\t2\t1\n");
  EXPECT_FALSE(std::filesystem::exists(output_of({}) + ".partial"));
}

// What a run leaves that stops at an illegal letter behind the first records.
void interrupt_run(LanguageModel& model, const Wanted& wanted) {
  const std::string first = kEmbedFasta.substr(0, kEmbedFasta.find(">c"));
  EXPECT_THROW(embed_text(model, first + ">c\nM1\n", wanted), InputError);
}

TEST(Embed, ResumesBehindWhatIsFinished) {
  LanguageModel model = make_model({.objective = "masked"});
  const Wanted wanted{.batch_tokens = 1, .chunk = 5};
  const at::Tensor expected = embedded(model, kEmbedFasta, wanted);
  for (const char* pool : {"mean", "tokens"}) {
    Wanted again = wanted;
    again.pool = pool;
    const at::Tensor whole = embedded(model, kEmbedFasta, again);
    const std::string index = read_file(output_of(again) + ".tsv");
    std::filesystem::remove(output_of(again));
    interrupt_run(model, again);
    ASSERT_TRUE(std::filesystem::exists(output_of(again) + ".partial"));
    EXPECT_FALSE(std::filesystem::exists(output_of(again))) << "nothing half-written has the final name";
    // A torn line at the end, as a crash may leave it, and values that no line speaks of.
    const std::string lines = read_file(output_of(again) + ".partial.tsv");
    write_file(output_of(again) + ".partial.tsv", lines + "2\tc");
    write_file(output_of(again) + ".partial", read_file(output_of(again) + ".partial") + "torn");
    again.resume = true;
    EXPECT_TRUE(at::equal(embedded(model, kEmbedFasta, again), whole)) << pool;
    EXPECT_EQ(read_file(output_of(again) + ".tsv"), index);
    EXPECT_FALSE(std::filesystem::exists(output_of(again) + ".partial.tsv"));
  }
  EXPECT_EQ(expected.size(0), 5);
}

TEST(Embed, ResumingNeedsTheSameOptionsAndInput) {
  LanguageModel model = make_model({.objective = "masked"});
  const Wanted wanted{.batch_tokens = 1, .chunk = 5};
  interrupt_run(model, wanted);
  Wanted other = wanted;
  other.resume = true;
  other.pool = "max";
  EXPECT_THAT(test::error_of<UsageError>([&] { embed_text(model, kEmbedFasta, other); }),
              AllOf(HasSubstr("begun with pool = mean, not max"), HasSubstr("--resume")));
  other.pool = "mean";
  other.layers = {1};
  EXPECT_THAT(test::error_of<UsageError>([&] { embed_text(model, kEmbedFasta, other); }),
              HasSubstr("layers = 2, not 1"));
  other.layers = {2};
  EXPECT_THAT(test::error_of<InputError>([&] { embed_text(model, ">z\nMKTAYIAKQR\n", other); }),
              AllOf(HasSubstr("record 1 ('z'"), HasSubstr("the input has changed")));
  interrupt_run(model, wanted);
  EXPECT_THAT(test::error_of<InputError>([&] { embed_text(model, ">a\nMKTAYIAKQR\n", other); }),
              AllOf(HasSubstr("has 1 sequences"), HasSubstr("had finished 2")));
  // Without --resume it begins again.
  embed_text(model, ">z\nMKTAYIAKQR\n", wanted);
  EXPECT_EQ(read_file(output_of(wanted) + ".tsv"), "row\tid\tlength\trows\n0\tz\t10\t1\n");
}

TEST(Embed, StoresShorterNumbers) {
  LanguageModel model = make_model();
  const at::Tensor full = embedded(model, kEmbedFasta, {});
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    const at::Tensor stored = embedded(model, kEmbedFasta, {.type = type});
    EXPECT_EQ(stored.scalar_type(), type);
    EXPECT_TRUE(at::equal(stored, full.to(type)));
  }
  for (const char* format : {"npy", "npz"}) {
    EXPECT_THAT(test::error_of<UsageError>(
                    [&] { embed_text(model, kEmbedFasta, {.type = at::kBFloat16, .format = format}); }),
                AllOf(HasSubstr("NumPy has no bfloat16"), HasSubstr(".safetensors")));
  }
  const at::NoGradGuard no_gradients;
  for (auto& item : model->named_parameters()) {
    if (item.key() == "final_norm.bias") item.value().fill_(1e5);
  }
  EXPECT_THAT(test::error_of<Error>([&] { embed_text(model, kEmbedFasta, {.type = at::kHalf}); }),
              AllOf(HasSubstr("65504"), HasSubstr("bfloat16")));
}

TEST(Embed, WritesNumpyAndCsv) {
  LanguageModel model = make_model();
  const at::Tensor expected = embedded(model, kEmbedFasta, {});
  embed_text(model, kEmbedFasta, {.format = "npy"});
  const std::string npy = read_file(output_of({.format = "npy"}));
  const size_t header = npy.size() - 5 * 32 * sizeof(float);
  EXPECT_EQ(header % 64, 0u);
  EXPECT_THAT(npy.substr(0, header), HasSubstr("(5, 32)"));
  const at::Tensor values = at::empty({5, 32}, at::kFloat);
  std::memcpy(values.data_ptr(), npy.data() + header, npy.size() - header);
  EXPECT_TRUE(at::equal(values, expected));

  embed_text(model, kEmbedFasta, {.format = "npz"});
  const std::string npz = read_file(output_of({.format = "npz"}));
  for (const char* member : {"embeddings.npy", "ids.npy", "lengths.npy", "first_rows.npy"}) {
    EXPECT_THAT(npz, HasSubstr(member));
  }
  EXPECT_NE(npz.find(npy), std::string::npos) << "the array as in .npy";

  embed_text(model, kEmbedFasta, {.pool = "tokens", .layers = {1, 2}, .format = "csv"});
  const std::string csv = read_file(output_of({.format = "csv"}));
  EXPECT_THAT(csv, testing::StartsWith("id,length,position,layer,d0,d1,"));
  EXPECT_THAT(csv, AllOf(HasSubstr("\na,10,1,1,"), HasSubstr("\na,10,1,2,"), HasSubstr("\ne,2,2,2,")));
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1 + 73 * 2);
  EXPECT_FALSE(std::filesystem::exists(output_of({.format = "csv"}) + ".tsv"));
}

TEST(Embed, WhatIsTooLongIsNamed) {
  LanguageModel learned = make_model({.positions = "learned", .max_length = 16});
  EXPECT_THAT(test::error_of<InputError>([&] { embed_text(learned, kEmbedFasta, {}); }),
              AllOf(HasSubstr("record 2 ('b', line 3) has 50 residues"), HasSubstr("cover 15")));
  LanguageModel local = make_model({.kind = "local", .objective = "masked"});
  EXPECT_THAT(
      test::error_of<InputError>([&] { embed_text(local, kEmbedFasta, {.chunk = 5, .most_whole = 20}); }),
      AllOf(HasSubstr("record 2"), HasSubstr("attention.kind = local"), HasSubstr("--most-whole")));
  // Whole, it can.
  EXPECT_EQ(embedded(local, kEmbedFasta, {.chunk = 5}).size(0), 5);
}

TEST(Embed, FormatsGoByTheEnding) {
  EXPECT_EQ(embedding_format("a/b.npz"), "npz");
  EXPECT_THAT(test::error_of<UsageError>([] { embedding_format("b.h5"); }),
              AllOf(HasSubstr("b.h5"), HasSubstr(".safetensors, .npy, .npz, .csv"), HasSubstr("--format")));
}

}  // namespace
}  // namespace performer
