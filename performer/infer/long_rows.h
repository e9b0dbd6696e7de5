// SPDX-License-Identifier: Apache-2.0
// Rows of embeddings of one sequence that is too long for one forward pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "performer/infer/embed.h"
#include "performer/infer/reading_ranks.h"
#include "performer/models/activation_store.h"
#include "performer/models/long_sequence.h"

namespace performer {

// What is kept of rows [T, width] of one layer until all have come, piece by piece: their mean, their
// maximum, or the one row that comes.
class Pool {
 public:
  Pool(Pooling pooling, int64_t width);
  void add(const at::Tensor& rows);
  // Takes in what the pools of all ranks have.
  void merge(const ReadingRanks& ranks);
  at::Tensor result() const;  // [1, width] float32

 private:
  Pooling pooling_;
  at::Tensor values_;  // sums or maxima, float64
  int64_t count_ = 0;
};

// As EmbeddingSink::write().
using RowWriter = std::function<void(int64_t first, int64_t place, const at::Tensor& values)>;

// Hands the rows of a sequence to `write`: one a symbol with Pooling::tokens, else one a layer at the end.
// `tokens` [T] with the markers, of which there is one before the symbols. With request.slices all ranks call
// it together; symbols' rows are then those of this rank's slice, pooled ones the same on all ranks.
void read_long(const LanguageModel& model, const at::Tensor& tokens, const ChunkedRequest& request,
               int64_t symbols, Pooling pooling, const ReadingRanks& ranks, const RowWriter& write);

// Rows begin .. begin + rows - 1 of a sequence that wait for their turn to be written. What is more than a
// few MiB lies in an unlinked temporary file.
class WaitingRows {
 public:
  WaitingRows(int64_t begin, int64_t rows, int64_t layers, int64_t width, const std::string& folder);
  void write(int64_t first, int64_t place, const at::Tensor& values);
  at::Tensor read(int64_t first, int64_t place, int64_t count) const;  // [count, width] float32

 private:
  int64_t begin_;
  std::vector<std::unique_ptr<ActivationStore>> layers_;
};

}  // namespace performer
