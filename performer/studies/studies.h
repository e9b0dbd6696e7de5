// SPDX-License-Identifier: Apache-2.0
// The approximation studies of the Performer papers as tables and pictures.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "performer/studies/chart.h"
#include "performer/studies/estimator.h"
#include "performer/studies/table.h"

namespace performer::studies {

struct StudyOptions {
  std::vector<std::string> kinds = default_estimators();
  std::vector<int64_t> features = {16, 32, 64, 128, 256, 512};
  std::vector<double> stds = {0.25, 0.5, 1};  // of the entries of queries and keys
  std::vector<int64_t> lengths = {256};
  int64_t head_size = 64;
  int64_t draws = 8;   // independent queries, keys, values and projections
  int64_t layers = 6;  // of the propagation study
  int64_t seed = 0;
  bool causal = false;
};

// Throws UsageError naming the option that is out of range.
void validate(const StudyOptions& options);

struct Study {
  Table table;
  std::vector<std::pair<std::string, Chart>> charts;  // name of the file without extension
  std::string summary = {};                           // the table for reading, without its smaller columns
};

using Progress = std::function<void(const std::string&)>;

// Errors of output and attention matrix against the number of features, for each kind, size of queries and
// keys, and length; mean over draws and its standard error (arXiv 2009.14794, figure 4). "uniform" is
// attention that looks at nothing.
Study output_error_study(const StudyOptions& options, const Progress& progress = {});

// Relative root mean square error of the kernel estimate exp(q k / sqrt(D)) against |x + y|^2, x and y being
// queries and keys times D^(-1/4), for the largest number of features; with the prediction where the papers
// have a formula.
Study kernel_error_study(const StudyOptions& options, const Progress& progress = {});

// Relative error of the residual stream after each layer of a Transformer as it is initialised, in which only
// attention differs from exact (arXiv 2009.14794, figure 5).
Study propagation_study(const StudyOptions& options, const Progress& progress = {});

// The orderings of variances that the papers prove, measured: ratio of mean square errors with a 99.9 %
// interval, what the theorem says, and whether the measurement agrees.
Study ordering_study(const StudyOptions& options, const Progress& progress = {});

}  // namespace performer::studies
