// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/residue_similarity.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/studies/model_input.h"
#include "tests/errors.h"
#include "tests/infer/tiny_model.h"

namespace performer::studies {
namespace {

int64_t place(char residue) {
  return static_cast<int64_t>(kAminoAcids.find(residue));
}

std::vector<data::Record> records() {
  std::vector<data::Record> made(2);
  made[0].tokens = data::Vocabulary::protein().encode_symbols("ACDEFGHIKLMNPQRSTVWYXXMKTAYIAKQRQISFVKSHFSRQ");
  made[1].tokens = data::Vocabulary::protein().encode_symbols("GGSSTTAAKKDEDEFYFY");
  return made;
}

TEST(Blosum62, IsTheTableOfNcbi) {
  const at::Tensor table = blosum62();
  EXPECT_TRUE(at::equal(table, table.transpose(0, 1)));
  EXPECT_EQ(table[place('W')][place('W')].item<double>(), 11);
  EXPECT_EQ(table[place('D')][place('E')].item<double>(), 2);
  EXPECT_EQ(table[place('F')][place('Y')].item<double>(), 3);
  EXPECT_EQ(table[place('I')][place('G')].item<double>(), -4);
  EXPECT_EQ(table.diagonal().sum().item<double>(), 116);
  EXPECT_EQ(table.sum().item<double>(), -426);
}

// What is summed by values that are indicators is what the rows of the matrices hold.
TEST(ResidueAttention, SumsTheWeightsOfTheMatrices) {
  TinyModel tiny;
  tiny.kind = "favor-softmax";
  LanguageModel model = make_model(tiny);
  const auto vocabulary = data::Vocabulary::protein();
  const ResidueAttention found = residue_attention(model, vocabulary, records());
  EXPECT_EQ(found.sequences, 2);
  EXPECT_EQ(found.residues, 62);
  EXPECT_EQ(found.count.sum().item<double>(), 60) << "X is no amino acid";
  EXPECT_EQ(found.count[place('D')].item<double>(), 3);
  const int64_t heads = model->model_config().heads;
  at::Tensor expected = at::zeros_like(found.weight);
  for (const data::Record& record : records()) {
    const auto tokens = model_input(model->model_config().objective, vocabulary, record.tokens, true);
    const auto observer = [&](int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
      const at::Tensor rows = model->attention(layer)->rows({q, k, v}, {}, {0, std::ssize(tokens)})[0];
      for (size_t i = 0; i < tokens.size(); ++i) {
        for (size_t j = 0; j < tokens.size(); ++j) {
          if (tokens[i] >= 20 || tokens[j] >= 20) continue;
          expected.narrow(0, layer * heads, heads).select(1, tokens[i]).select(1, tokens[j]) +=
              rows.select(1, static_cast<int64_t>(i)).select(1, static_cast<int64_t>(j));
        }
      }
    };
    observe_during(model, observer, [&] { model->hidden(as_batch(tokens)); });
  }
  EXPECT_TRUE(at::allclose(found.weight, expected, 1e-4, 1e-5)) << (found.weight - expected).abs().max();
}

// Twenty profiles made so that D and E are alike, F and Y opposite, and everything else is known.
TEST(ResidueSimilarity, CorrelatesProfiles) {
  ResidueAttention made;
  made.count = at::full({20}, 7, at::kDouble);
  at::Tensor profile = at::rand({20, 12}, at::kDouble) + 0.1;
  profile[place('E')] = 3 * profile[place('D')];
  profile[place('Y')] = 2 - profile[place('F')];
  made.weight = profile.transpose(0, 1).unsqueeze(1).expand({12, 20, 20}).clone();
  for (const at::Tensor& similarity : {similarity_by_heads(made), similarity_by_partners(made)}) {
    EXPECT_TRUE(at::equal(similarity, similarity.transpose(0, 1)));
    EXPECT_EQ(similarity.diagonal().sum().item<double>(), 20);
    EXPECT_LE(similarity.abs().max().item<double>(), 1 + 1e-12);
  }
  const at::Tensor partners = similarity_by_partners(made);
  EXPECT_NEAR(partners[place('D')][place('E')].item<double>(), 1, 1e-9);
  EXPECT_NEAR(partners[place('F')][place('Y')].item<double>(), -1, 1e-9);
  const at::Tensor x = profile[place('A')] - profile[place('A')].mean(),
                   y = profile[place('C')] - profile[place('C')].mean();
  EXPECT_NEAR(partners[place('A')][place('C')].item<double>(),
              ((x * y).sum() / (x.norm() * y.norm())).item<double>(), 1e-9);
  const auto json = similarity_json(made, {});
  EXPECT_EQ(json["model"]["by_partners"]["pairs"]["FY"]["rank"], 190);
  EXPECT_EQ(json["model"]["by_partners"]["pairs"]["DE"]["rank"], 1);
  EXPECT_EQ(json["blosum62"].size(), 20u);
}

TEST(ResidueSimilarity, ProfilesThatDoNotVaryHaveNone) {
  ResidueAttention made;
  made.count = at::full({20}, 7, at::kDouble);
  made.weight = at::ones({2, 20, 20}, at::kDouble);
  EXPECT_TRUE(std::isnan(similarity_by_heads(made)[0][1].item<double>())) << "two heads make no correlation";
  EXPECT_TRUE(std::isnan(similarity_by_partners(made)[0][1].item<double>()));
  EXPECT_TRUE(std::isnan(pair_correlation(similarity_by_heads(made), blosum62())));
  EXPECT_TRUE(similarity_json(made, {made})["untrained"][0]["by_heads"]["correlation"].is_null());
  EXPECT_NEAR(pair_correlation(blosum62(), 5 + 2 * blosum62()), 1, 1e-12);
  EXPECT_NEAR(pair_correlation(blosum62(), -blosum62()), -1, 1e-12);
}

TEST(ResidueSimilarity, IsOfProteinsOnly) {
  LanguageModel model = make_model();
  EXPECT_THAT(test::error_of<UsageError>([&] { residue_attention(model, data::Vocabulary::dna(), {}); }),
              ::testing::HasSubstr("nucleotides"));
}

}  // namespace
}  // namespace performer::studies
