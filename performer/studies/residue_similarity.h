// SPDX-License-Identifier: Apache-2.0
// Which amino acids a protein model's attention treats alike, beside BLOSUM62 (arXiv 2006.15222; arXiv
// 2009.14794, appendix C.4).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string_view>
#include <vector>

#include "performer/data/reader.h"
#include "performer/models/language_model.h"
#include "performer/studies/studies.h"

namespace performer::studies {

// The 20 amino acids in the order of data::Vocabulary::protein(), of all matrices here.
inline constexpr std::string_view kAminoAcids = "ACDEFGHIKLMNPQRSTVWY";

// BLOSUM62 scores [20, 20], in half bits (Henikoff and Henikoff 1992).
at::Tensor blosum62();

// Weights of attention summed over sequences: weight [heads of all layers, 20, 20] from amino acid (row) to
// amino acid, and how often each was seen, count [20]; float64. Markers and other letters are left out.
struct ResidueAttention {
  at::Tensor weight, count;
  int64_t sequences = 0, residues = 0;
};
// Attention with indicators of the amino acids as values, so that no matrix is made and every kind can do it.
// Throws UsageError for a model that does not read proteins.
ResidueAttention residue_attention(LanguageModel& model, const data::Vocabulary& vocabulary,
                                   const std::vector<data::Record>& records, const Progress& progress = {});

// Similarity of two amino acids [20, 20]: Pearson's correlation of their profiles. NaN where a profile has
// fewer than three entries or does not vary.
//
// by_heads: the profile is the share of a head's attention that goes to the amino acid, head by head (Vig et
// al. 2006.15222).
// by_partners: the profile is the mean attention from each other amino acid and head, relative to how often
// the amino acid occurs; attention from the two that are compared is left out. It has 18 entries a head and
// so serves models of few heads.
at::Tensor similarity_by_heads(const ResidueAttention& attention);
at::Tensor similarity_by_partners(const ResidueAttention& attention);

// Pearson's correlation of two symmetric matrices over the 190 pairs off the diagonal; pairs of which one is
// NaN are left out, and with fewer than three of them the result is NaN.
double pair_correlation(const at::Tensor& a, const at::Tensor& b);

// {"sequences", "residues", "amino_acids", "model": R, "untrained": [R...], "blosum62"}, where R holds the
// matrices, their correlation to BLOSUM62, and for (D, E) and (F, Y) similarity and rank among the 190 pairs
// (1: the most similar). NaN is null.
nlohmann::ordered_json similarity_json(const ResidueAttention& model,
                                       const std::vector<ResidueAttention>& untrained);

}  // namespace performer::studies
