// SPDX-License-Identifier: Apache-2.0
// Log-probabilities of the tokens of sequences under a model: natural logarithms, one a token, markers not
// counted.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "performer/data/vocabulary.h"
#include "performer/models/language_model.h"
#include "performer/models/long_sequence.h"

namespace performer {

using TokenSequences = std::vector<const std::vector<data::Token>*>;

// log p(x_i | x_<i) of a causal model, all sequences in one forward pass.
std::vector<std::vector<float>> causal_log_probabilities(LanguageModel& model,
                                                         const data::Vocabulary& vocabulary,
                                                         const TokenSequences& sequences);

// The same of one long sequence, chunk by chunk (models/long_sequence.h) as `request` says, whose layers are
// set here. With request.slices all ranks call it together, and the values are those of this rank's slice.
std::vector<float> causal_log_probabilities_in_chunks(LanguageModel& model,
                                                      const data::Vocabulary& vocabulary,
                                                      const std::vector<data::Token>& sequence,
                                                      ChunkedRequest request);

// log p(x_i | x) of a masked model that sees the token itself too, all sequences in one forward pass: what
// Brandes et al. 2023 (Nature Genetics 55, 1512) sum for variants that change the length.
std::vector<std::vector<float>> unmasked_log_probabilities(LanguageModel& model,
                                                           const data::Vocabulary& vocabulary,
                                                           const TokenSequences& sequences);

// log p(x_i | all other tokens) of a masked model: each token hidden alone, one forward pass a token, as many
// side by side as batch_tokens allow. `progress` is told how many are done.
std::vector<float> masked_log_probabilities(LanguageModel& model, const data::Vocabulary& vocabulary,
                                            const std::vector<data::Token>& sequence, int64_t batch_tokens,
                                            const std::function<void(int64_t done)>& progress = {});

// One of these forward passes: of the tokens at places first .. first + count - 1, each hidden in a copy of
// the sequence. masked_copies() is how many it takes for batch_tokens.
std::vector<float> masked_log_probabilities_at(LanguageModel& model, const data::Vocabulary& vocabulary,
                                               const std::vector<data::Token>& sequence, int64_t first,
                                               int64_t count);
int64_t masked_copies(const std::vector<data::Token>& sequence, int64_t batch_tokens);

// Of all tokens of the vocabulary, [places, vocabulary] float32, at some places of one sequence of a masked
// model: with each place hidden alone (masked), or from one pass that hides nothing.
at::Tensor masked_distributions(LanguageModel& model, const data::Vocabulary& vocabulary,
                                const std::vector<data::Token>& sequence, const std::vector<int64_t>& places,
                                int64_t batch_tokens, const std::function<void(int64_t done)>& progress = {});
at::Tensor unmasked_distributions(LanguageModel& model, const data::Vocabulary& vocabulary,
                                  const std::vector<data::Token>& sequence,
                                  const std::vector<int64_t>& places);

}  // namespace performer
