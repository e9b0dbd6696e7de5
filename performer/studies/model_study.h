// SPDX-License-Identifier: Apache-2.0
// The approximation measured on a trained model's own queries and keys, head by head.
#pragma once

#include <string>
#include <vector>

#include "performer/data/reader.h"
#include "performer/models/language_model.h"
#include "performer/studies/studies.h"

namespace performer::studies {

struct ModelStudyOptions {
  std::vector<std::string> kinds = default_estimators();
  std::vector<int64_t> features = {64, 128, 256, 512};
  int64_t draws = 2;       // of the projection
  int64_t sequences = 16;  // read from the start of the input
  // Longer ones are left out and counted: a matrix of attention is held for each head.
  int64_t max_length = 1024;
  double tolerance = 0.1;  // relative error of a head's output that still counts as the same attention
};

struct ModelStudy {
  Table heads;   // one row a head: size of queries and keys, what attention looks like, which attention to
                 // choose
  Table errors;  // one row a head, kind and number of features
  std::vector<std::pair<std::string, Chart>> charts;
  int64_t sequences = 0, left_out = 0;
  int64_t exact_heads = 0;  // where exact softmax is the better choice
};

// Columns of `heads`: squared_norm is the mean of |x + y|^2 over all visible pairs, on which the variance of
// every positive map depends exponentially; attended the exponential of the entropy of exact attention: how
// many keys a query looks at; uniform_error the error of looking at all of them alike. The advice is the kind
// with the fewest features whose error is within the tolerance, and exact where none is, or where sequences
// are so short that exact attention is also cheaper (fewer tokens than 2 M, or 4 M when causal: 4 T^2 D
// against 8 T M D operations). `reader` reads with the vocabulary of the model; `source` is what messages
// call it. Throws what the reader throws, InputError when no sequence is short enough, UsageError for a model
// without queries and keys (identity).
ModelStudy model_study(LanguageModel& model, data::Reader& reader, const std::string& source,
                       const ModelStudyOptions& options, const Progress& progress = {});

}  // namespace performer::studies
