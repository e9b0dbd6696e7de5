// SPDX-License-Identifier: Apache-2.0
// The masked objective: which tokens are hidden, and what the model reads in their place.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "performer/base/philox.h"
#include "performer/data/vocabulary.h"

namespace performer::data {

// The two corruption mixes as fractions of the chosen positions; the rest is kept.
struct Corruption {
  double mask = 0.8, random = 0.1;
};
// "bert" 0.8 / 0.1, "protein-lm" 0.1 / 0.8. Throws UsageError for another name.
Corruption corruption_from_name(const std::string& name);

// Ids that stand for padding, which is never chosen, and for a hidden token. pad -1: there is no padding.
struct MaskingMarkers {
  int64_t pad, mask;
};

// Masked objective with given draws, one of each a token (protein_lm models.py BertMasker): position chosen
// when choose < rate and the token is not PAD; of the chosen, mix < mask gives MASK, mix < mask + random
// gives `replacement`, else kept. Comparisons are made in float32 as there. In place; returns weights (1:
// chosen, 0). Throws Error when the sizes differ.
std::vector<float> corrupt(std::vector<int64_t>& tokens, const std::vector<float>& choose,
                           const std::vector<float>& mix, const std::vector<int64_t>& replacement,
                           double rate, const Corruption& corruption, const MaskingMarkers& markers);

// The project's own rule: as corrupt(), but markers are never chosen, and the draws of token i are block
// `first` + i of `draws`, so that they do not depend on how a sequence is cut. In place; writes the weights.
void corrupt_symbols(std::span<int64_t> tokens, std::span<float> weights, PhiloxStream draws, int64_t first,
                     double rate, const Corruption& corruption, const Vocabulary& vocabulary);

}  // namespace performer::data
