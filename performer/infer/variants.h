// SPDX-License-Identifier: Apache-2.0
// Effects of changes of a sequence, as a language model sees them: how much less, or more, probable a variant
// is than the wild type.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "performer/data/vocabulary.h"
#include "performer/models/language_model.h"

namespace performer {

// masked-marginal      sum over changed positions of log p(new) - log p(old), the position hidden in the wild
// type
//                      (Meier et al. 2021, ESM-1v; several changes add up); one pass a position
// wild-type-marginal   the same from one pass over the wild type that hides nothing (Meier et al. 2021)
// pseudo-likelihood    log-likelihood of the variant less that of the wild type, each token hidden alone: as
// many
//                      passes a variant as it has tokens (Salazar et al. 2020)
// log-ratio            log p(variant) - log p(wild type) of a causal model
// one-pass-pseudo-likelihood  the same as pseudo-likelihood from one pass that hides nothing (Brandes et al.
// 2023): what
//                      the two marginal scores give for variants that change the length, for which they mean
//                      nothing
//
// Log-likelihoods of sequences of different lengths cannot be compared: their sums favour short ones, so that
// a truncated protein would win. The scores of whole sequences are therefore
//
//   L (mean over the variant's tokens - mean over the wild type's), L the wild type's length,
//
// which for equal lengths is the difference of the sums.
enum class VariantScore { masked_marginal, wild_type_marginal, pseudo_likelihood, log_ratio, one_pass };
std::string to_text(VariantScore kind);
const std::vector<std::string>& variant_score_names();  // those that may be asked for
// The score of that name, or for "" the default of the model: masked-marginal, or log-ratio for a causal one.
// Throws UsageError for an unknown one and for one that the model cannot give.
VariantScore parse_variant_score(const std::string& name, const LanguageModel& model);

struct Variant {
  std::string name;
  std::vector<data::Token> tokens;
  // Whether each token stands at the place of the wild type's that it replaces; false where tokens were
  // inserted or deleted.
  bool aligned = true;
  int64_t line = 0;  // in its table, for messages; 0: none
};

struct VariantResult {
  double score = 0;
  VariantScore kind = VariantScore::masked_marginal;
  double unnormalized = 0;  // the difference of the sums; for the marginal scores the score itself
  int64_t changes =
      0;  // changed positions; for variants that are not aligned the longer of the changed spans
};

struct VariantRequest {
  VariantScore kind = VariantScore::masked_marginal;
  int64_t batch_tokens = 16384;
  // Told how much of the work is done, in [0, 1].
  std::function<void(double)> progress = {};
};

// The results in the order of the variants. A wild type longer than the model's positions cover (learned and
// axial ones) is seen in windows of that length around the changed positions; a change that spans more throws
// InputError naming the variant. Throws Error when a score is not finite.
std::vector<VariantResult> score_variants(LanguageModel& model, const data::Vocabulary& vocabulary,
                                          const std::vector<data::Token>& wild_type,
                                          const std::vector<Variant>& variants,
                                          const VariantRequest& request);

// Tokens of a sequence that the model can see at once; the largest number when there is no limit.
int64_t variant_window(const LanguageModel& model);

}  // namespace performer
