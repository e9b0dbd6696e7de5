// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/variants.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <cmath>
#include <numeric>

#include "performer/base/error.h"
#include "performer/data/vocabulary_text.h"
#include "performer/infer/variant_table.h"
#include "tests/errors.h"
#include "tests/infer/tiny_model.h"

namespace performer {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Tokens = std::vector<data::Token>;

const data::Vocabulary kResidues = data::Vocabulary::protein();
const std::string kWildType = "MKTAYIAKQRQISFVKSHFSRQLEERLGLI";

Tokens residues_of(const std::string& text) {
  return kResidues.encode(text);
}

VariantTable table_of(const std::string& text, const VariantTableOptions& options = {}) {
  return read_variants(temporary_file("variants.csv", text), residues_of(kWildType), kResidues, options);
}

// Log-probabilities [T, vocabulary] of a masked model for a sequence between its markers; `hidden`: none
// below 0.
at::Tensor distributions(LanguageModel& model, const Tokens& sequence, int64_t hidden) {
  const at::NoGradGuard no_gradients;
  std::vector<int64_t> tokens = {kResidues.bos()};
  tokens.insert(tokens.end(), sequence.begin(), sequence.end());
  tokens.push_back(kResidues.eos());
  if (hidden >= 0) tokens[static_cast<size_t>(hidden) + 1] = kResidues.mask();
  SequenceBatch batch;
  batch.tokens = at::tensor(tokens, at::kLong).unsqueeze(0);
  batch.positions = at::arange(static_cast<int64_t>(tokens.size()), at::kLong).unsqueeze(0);
  return at::log_softmax(model->forward(batch)[0].to(at::kDouble), -1).narrow(0, 1, std::ssize(sequence));
}

double pseudo_sum(LanguageModel& model, const Tokens& sequence) {
  double sum = 0;
  for (int64_t i = 0; i < std::ssize(sequence); ++i) {
    sum += distributions(model, sequence, i)[i][sequence[static_cast<size_t>(i)]].item<double>();
  }
  return sum;
}

double causal_sum(LanguageModel& model, const Tokens& sequence) {
  const std::vector<double> each = forward_log_probabilities(model, {sequence.begin(), sequence.end()});
  return std::accumulate(each.begin(), each.end(), 0.0);
}

std::vector<VariantResult> scores(LanguageModel& model, const VariantTable& table, VariantScore kind,
                                  int64_t batch_tokens = 100) {
  double share = 0;
  const auto results = score_variants(model, kResidues, residues_of(kWildType), table.variants,
                                      {kind, batch_tokens, [&](double now) {
                                         EXPECT_GE(now, share);
                                         EXPECT_LE(now, 1);
                                         share = now;
                                       }});
  EXPECT_NEAR(share, 1, 1e-9);
  return results;
}

const std::string kVariantTable = "mutant\nA4P\nK2W:Y5D\nA4del\nA4_I6delinsG\nT3_A4insGSG\nS13*\nWT\n";

TEST(VariantScores, MarginalsSumLogRatiosAtTheChangedPositions) {
  LanguageModel model = make_model({.kind = "favor-softmax", .objective = "masked"});
  const VariantTable table = table_of(kVariantTable);
  const Tokens wild = residues_of(kWildType);
  const auto masked = scores(model, table, VariantScore::masked_marginal),
             open = scores(model, table, VariantScore::wild_type_marginal);
  const auto ratio = [&](int64_t place, char to, bool hide) {
    const at::Tensor row = distributions(model, wild, hide ? place : -1)[place];
    return row[kResidues.token_of(to)].item<double>() - row[wild[static_cast<size_t>(place)]].item<double>();
  };
  EXPECT_NEAR(masked[0].score, ratio(3, 'P', true), 1e-4);
  EXPECT_NEAR(masked[1].score, ratio(1, 'W', true) + ratio(4, 'D', true), 1e-4);
  EXPECT_NEAR(open[0].score, ratio(3, 'P', false), 1e-4);
  EXPECT_NEAR(open[1].score, ratio(1, 'W', false) + ratio(4, 'D', false), 1e-4);
  EXPECT_GT(std::abs(masked[0].score - open[0].score), 1e-3)
      << "hiding must matter, or this test shows nothing";
  EXPECT_EQ(masked[1].changes, 2);
  EXPECT_EQ(masked[6].score, 0);
  for (const auto& results : {masked, open}) {
    EXPECT_NE(to_text(results[0].kind), to_text(results[2].kind));
    EXPECT_EQ(to_text(results[2].kind), "one-pass-pseudo-likelihood");
    EXPECT_EQ(results[4].changes, 3);
  }
}

// L times the difference of the means a token.
double normalized(double sum, size_t length, double wild_sum) {
  const auto wild_length = static_cast<double>(kWildType.size());
  return wild_length * (sum / static_cast<double>(length) - wild_sum / wild_length);
}

TEST(VariantScores, WholeSequencesAreComparedByTheirMeans) {
  const VariantTable table = table_of(kVariantTable);
  const Tokens wild = residues_of(kWildType);
  for (const auto& [kind, objective] :
       std::vector<std::pair<std::string, std::string>>{{"favor-softmax", "causal"},
                                                        {"exact", "causal"},
                                                        {"local", "causal"},
                                                        {"favor-softmax", "masked"}}) {
    LanguageModel model = make_model({.kind = kind, .objective = objective});
    const bool is_causal = objective == "causal";
    const auto sum = [&](const Tokens& tokens) {
      return is_causal ? causal_sum(model, tokens) : pseudo_sum(model, tokens);
    };
    const double of_wild = sum(wild);
    for (const int64_t batch : {1, 100, 100000}) {
      const auto results =
          scores(model, table, is_causal ? VariantScore::log_ratio : VariantScore::pseudo_likelihood, batch);
      for (size_t i = 0; i < results.size(); ++i) {
        const Tokens& tokens = table.variants[i].tokens;
        EXPECT_NEAR(results[i].unnormalized, sum(tokens) - of_wild, 1e-3) << objective << " " << i;
        EXPECT_NEAR(results[i].score, normalized(sum(tokens), tokens.size(), of_wild), 1e-3)
            << objective << " " << i;
      }
      // Of a variant of the same length it is the plain difference.
      EXPECT_EQ(results[0].score, results[0].unnormalized);
    }
  }
}

TEST(VariantScores, ATruncatedProteinDoesNotWin) {
  LanguageModel model = make_model();
  const auto results = scores(model, table_of("mutant\nA4del\nS13*\n"), VariantScore::log_ratio);
  // Its sum is that of far fewer tokens; a score by sums would call it the best of all.
  EXPECT_GT(results[1].unnormalized, 10 * std::abs(results[0].unnormalized));
  EXPECT_LT(std::abs(results[1].score), results[1].unnormalized / 2);
}

TEST(VariantScores, InsertionsOfMarginalScoresAreOnePassPseudoLikelihoods) {
  LanguageModel model = make_model({.kind = "exact", .objective = "masked"});
  const VariantTable table = table_of("mutant\nT3_A4insGSG\n");
  const auto sum = [&](const Tokens& tokens) {
    const at::Tensor all = distributions(model, tokens, -1);
    double total = 0;
    for (int64_t i = 0; i < std::ssize(tokens); ++i)
      total += all[i][tokens[static_cast<size_t>(i)]].item<double>();
    return total;
  };
  const Tokens& tokens = table.variants[0].tokens;
  EXPECT_NEAR(scores(model, table, VariantScore::masked_marginal)[0].score,
              normalized(sum(tokens), tokens.size(), sum(residues_of(kWildType))), 1e-3);
}

TEST(VariantScores, LongWildTypesAreSeenInWindows) {
  const VariantTable table = table_of("mutant\nM1W\nS17D\nI30P\nF14_K16del\nQ9W:R10W\n");
  for (const char* objective : {"causal", "masked"}) {
    const bool is_causal = std::string(objective) == "causal";
    LanguageModel model =
        make_model({.objective = objective, .positions = "learned", .max_length = is_causal ? 12 : 14});
    ASSERT_EQ(variant_window(model), 12);
    const std::vector<VariantScore> kinds =
        is_causal ? std::vector{VariantScore::log_ratio}
                  : std::vector{VariantScore::masked_marginal, VariantScore::wild_type_marginal,
                                VariantScore::pseudo_likelihood};
    for (const VariantScore kind : kinds) {
      for (const VariantResult& result : scores(model, table, kind)) {
        EXPECT_TRUE(std::isfinite(result.score));
        EXPECT_NE(result.score, 0);
      }
    }
  }
  // The window of position 17 is residues 11 to 22, seen alone.
  LanguageModel model = make_model({.objective = "masked", .positions = "learned", .max_length = 14});
  const Tokens wild = residues_of(kWildType), window(wild.begin() + 10, wild.begin() + 22);
  const at::Tensor row = distributions(model, window, 6)[6];
  EXPECT_NEAR(scores(model, table, VariantScore::masked_marginal)[1].score,
              row[kResidues.token_of('D')].item<double>() - row[wild[16]].item<double>(), 1e-4);
  EXPECT_THAT(
      test::error_of<InputError>(
          [&] { scores(model, table_of("mutant\nM1W:I30P\n"), VariantScore::pseudo_likelihood); }),
      AllOf(HasSubstr("'M1W:I30P' (line 2)"), HasSubstr("a part of 30 residues"), HasSubstr("cover 12")));
}

TEST(VariantScores, GoWithTheObjective) {
  const LanguageModel causal_model = make_model(), masked_model = make_model({.objective = "masked"});
  EXPECT_EQ(parse_variant_score("", causal_model), VariantScore::log_ratio);
  EXPECT_EQ(parse_variant_score("", masked_model), VariantScore::masked_marginal);
  EXPECT_EQ(parse_variant_score("pseudo-likelihood", masked_model), VariantScore::pseudo_likelihood);
  EXPECT_THAT(test::error_of<UsageError>([&] { parse_variant_score("log-ratio", masked_model); }),
              AllOf(HasSubstr("causal models"), HasSubstr("take masked-marginal")));
  EXPECT_THAT(test::error_of<UsageError>([&] { parse_variant_score("masked-marginal", causal_model); }),
              HasSubstr("take log-ratio"));
}

TEST(VariantTables, ReadNotationsSequencesAndEffects) {
  const std::string deleted = "MKTYIAKQRQISFVKSHFSRQLEERLGLI";
  const VariantTable table = table_of(
      "mutant,mutated_sequence,DMS_score,DMS_score_bin\nA4P,MKTPYIAKQRQISFVKSHFSRQLEERLGLI,"
      "-0.5,0\n" +
      deleted + "," + deleted + ",NA,1\np.Ala4del,,1e-2,1\n");
  ASSERT_EQ(table.variants.size(), 3u);
  EXPECT_EQ(table.measured_name, "DMS_score");
  EXPECT_EQ(table.measured[0], -0.5);
  EXPECT_TRUE(std::isnan(table.measured[1]));
  EXPECT_TRUE(table.variants[0].aligned);
  EXPECT_FALSE(table.variants[1].aligned);
  EXPECT_EQ(table.variants[1].tokens, table.variants[2].tokens);
  // Only sequences, one named column, a list without names, another column.
  EXPECT_EQ(table_of("mutant\n" + deleted + "\n").variants[0].tokens, residues_of(deleted));
  EXPECT_EQ(table_of("mutated_sequence\n" + deleted + "\n").variants[0].tokens, residues_of(deleted));
  EXPECT_EQ(table_of("anything\nA4P\n").variants[0].name, "A4P");
  EXPECT_EQ(table_of("A4P\nY5D\n").variants.size(), 2u);
  const VariantTable other = table_of("what\tmutation_name\ty\n1\tA4P\t2\n", {0, "mutation_name", "y"});
  EXPECT_EQ(other.measured[0], 2);
  EXPECT_EQ(table_of("hgvs_pro\np.Ala28Pro\n", {24, "", ""}).variants[0].tokens,
            residues_of("MKTP" + kWildType.substr(4)));
}

TEST(VariantTables, NameRowExpectationAndFinding) {
  const auto refused = [](const std::string& text, const VariantTableOptions& options = {}) {
    return test::error_of<InputError>([&] { table_of(text, options); });
  };
  EXPECT_THAT(refused("mutant,DMS_score\nA4P,1\nG5P,1\n"),
              AllOf(HasSubstr("variants.csv, line 3 ('G5P')"), HasSubstr("expected G at position 5"),
                    HasSubstr("found Y"), HasSubstr("--offset")));
  EXPECT_THAT(refused("mutant,DMS_score\nA4P,high\n"), AllOf(HasSubstr("line 2"), HasSubstr("found 'high'")));
  EXPECT_THAT(refused("mutant\nA400P\n"), AllOf(HasSubstr("position 400"), HasSubstr("1 to 30")));
  EXPECT_THAT(refused("mutant\nA4J1\n"), AllOf(HasSubstr("line 2"), HasSubstr("is no variant")));
  EXPECT_THAT(
      refused("mutant,mutated_sequence\nA4P,MKTGYIAKQRQISFVKSHFSRQLEERLGLI\n"),
      AllOf(HasSubstr("differs from what the variant says at position 4"), HasSubstr("expected P, found G")));
  EXPECT_THAT(refused("mutant,mutated_sequence\nA4P,MKT1\n"),
              AllOf(HasSubstr("mutated_sequence"), HasSubstr("4")));
  EXPECT_THAT(refused("mutant\nA28P\nY29D\nK32W\nM25G\n"), HasSubstr("all fit --offset 24"));
  EXPECT_THAT(refused("mutant\nR97Pfs*23\n"), HasSubstr("frameshift"));
  const auto usage = [](const std::string& text, const VariantTableOptions& options) {
    return test::error_of<UsageError>([&] { table_of(text, options); });
  };
  EXPECT_THAT(usage("mutant,x\nA4P,1\n", {0, "", "y"}),
              AllOf(HasSubstr("no column 'y'"), HasSubstr("mutant, x")));
  EXPECT_THAT(usage("u,v\n1,2\n", {}), AllOf(HasSubstr("--variant-column"), HasSubstr("u, v")));
  EXPECT_THAT(usage("A4P\n", {0, "", "y"}), HasSubstr("no line of column names"));
}

TEST(VariantTables, AllSinglesAreTheOtherResidues) {
  const auto all = all_single_variants(residues_of("MX"), kResidues, 10);
  ASSERT_EQ(all.size(), 19u + 20u);
  EXPECT_EQ(all[0].name, "M11A");
  EXPECT_EQ(all.back().name, "X12Y");
  EXPECT_EQ(all[0].tokens, residues_of("AX"));
  EXPECT_EQ(all_single_variants(data::Vocabulary::dna().encode("A"), data::Vocabulary::dna(), 0).size(), 3u);
  EXPECT_THROW(all_single_variants({1}, data::Vocabulary::pixels(), 0), UsageError);
}

TEST(VariantTables, AllSinglesLeaveOutGapsAndUnknownsOfImportedResidues) {
  data::VocabularyText parts;
  parts.name = "esm";
  parts.unit = "residues";
  for (const char letter : std::string_view("LAGVSERTIDPKQNFYMHWCXBUZO.-"))
    parts.symbols.emplace_back(1, letter);
  const data::Vocabulary esm = data::Vocabulary::from_parts(parts);
  EXPECT_EQ(all_single_variants(esm.encode("MK"), esm, 0).size(), 2u * 19u);
}

}  // namespace
}  // namespace performer
