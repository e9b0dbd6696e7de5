// SPDX-License-Identifier: Apache-2.0
// Log-likelihoods of sequences, whole and residue by residue.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "performer/data/fasta.h"
#include "performer/models/language_model.h"

namespace performer {

struct SequenceScore {
  std::string id;
  std::vector<uint8_t> tokens;
  std::vector<float> log_probabilities;  // natural logarithm, one a residue
  double total() const;
  double mean() const;
};

// Causal: log p(x_i | x_<i). Masked: pseudo-log-likelihood, each residue masked alone (one forward pass a
// residue, batched). Calls `sink` in input order; memory stays bounded by a few batches of `batch_tokens`
// tokens, a longer sequence alone in its batch. Residues only, the end marker is not scored. Returns what the
// reader met. Throws what FastaReader throws, and InputError naming the record for a sequence longer than
// learned positions cover.
data::FastaCounts score_file(LanguageModel& model, const std::string& fasta, int64_t batch_tokens,
                             const std::function<void(const SequenceScore&)>& sink);

}  // namespace performer
