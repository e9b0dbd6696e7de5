// SPDX-License-Identifier: Apache-2.0
// The matrices of attention of a trained model: their rows, what the heads look like, and pictures of them
// (arXiv 2009.14794, appendix C.4).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "performer/data/reader.h"
#include "performer/models/language_model.h"
#include "performer/studies/heat_map.h"

namespace performer::studies {

struct AttentionStudyOptions {
  std::vector<int64_t> layers = {}, heads = {};  // from 0; empty: all
  int64_t first_row = 0, last_row = -1;          // of the tokens as the model reads them; -1: the last
  int64_t matrix_tokens = 1024;  // of longer sequences no matrix is kept, unless few rows are asked for
  int64_t picture_cells = 128;   // of larger matrices pictures show means of blocks
  // What counts as near: the band |i - j| <= w has as many diagonals as `near` of the tokens (at least
  // three), and the heaviest columns are that share of them (at least one).
  double near = 0.05;
  double threshold = 0.4;  // share of the weight from which a head is called diagonal or vertical
};

// Of one head, over the rows that were asked for. The `uniform_` numbers are those of attention that looks at
// all visible tokens alike: what a share or distance must be compared with.
struct HeadStatistics {
  int64_t layer = 0, head = 0;
  double diagonal = 0, uniform_diagonal = 0;  // share of the weight within the band
  double vertical = 0, uniform_vertical = 0;  // share of the weight in the heaviest columns
  double entropy = 0;                         // of a row's weights, mean over rows, natural logarithm
  double attended = 0, uniform_attended = 0;  // exp(entropy) of each row, mean: how many tokens it looks at
  double distance = 0, uniform_distance = 0;  // mean |i - j| by weight
  // Share of negative weights in the sum of all sizes: 0 but for feature maps of both signs, whose entropy is
  // that of the sizes.
  double negative = 0;
  // diagonal: share within the band at least the threshold, twice that of uniform attention and not below
  // the share of columns; vertical: the same of the heaviest columns; else diffuse.
  std::string label;
};

struct LayerAttention {
  int64_t layer = 0;
  at::Tensor rows;       // float32 [heads, rows, tokens]; undefined for long sequences
  HeatMapPage pictures;  // one of each head
};

struct AttentionStudy {
  std::string id;
  std::string tokens;  // as text, markers included
  int64_t length = 0;  // tokens that the model reads, markers included
  int64_t first_row = 0, last_row = 0;
  int64_t band = 0, columns = 0;  // w, and how many columns are the heaviest
  std::vector<HeadStatistics> heads;
  std::vector<LayerAttention> layers;
};

// One pass of the model over a sequence. Rows are computed in blocks: memory grows with the length, not with
// its square, but for the matrices that are kept. Throws UsageError for layers, heads or rows that do not
// exist and for a kind without Capabilities::rows.
AttentionStudy attention_study(LanguageModel& model, const data::Vocabulary& vocabulary,
                               const data::Record& record, const AttentionStudyOptions& options);

// {"id", "length", "tokens", "rows", "band", "columns", "heads": [...]}
nlohmann::ordered_json to_json(const AttentionStudy& study);
std::string to_text(const AttentionStudy& study);  // a table for reading

}  // namespace performer::studies
