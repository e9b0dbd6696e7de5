// SPDX-License-Identifier: Apache-2.0
// A step's batch divided over the processes (ranks) of a run: parts go to groups of ranks, and the ranks of a
// group take consecutive tokens of the same sequences.
#pragma once

#include <cstdint>

#include "performer/data/batches.h"

namespace performer::data {

struct Share {
  int64_t part = 0, parts = 1;    // this rank's part of the batch
  int64_t slice = 0, slices = 1;  // and of that, which slice of the tokens
  bool whole() const { return parts == 1 && slices == 1; }
};

// What one process reads in a step of parts x slices ranks, each of which reads config.batch_tokens: the same
// with that many times the tokens. Batches with rows have as many for each part as its ranks hold together.
DataConfig for_ranks(const DataConfig& config, int64_t parts, int64_t slices = 1);

// The tokens of a share, and where they stand in the whole batch.
struct SharedBatch {
  Batch batch;                           // without rows where a rank gets nothing
  int64_t row = 0, begin = 0;            // of its first token; packed: row 0
  int64_t length = 0;                    // tokens of a row of the whole batch
  std::vector<int64_t> part_bounds;      // packed: the segments of the whole part, from 0; else empty
  int64_t part_begin = 0, part_end = 0;  // tokens of a row that the part has, all slices together
};

// The first of the `tokens` of a part that falls to a slice; of slice `slices`: their number.
inline int64_t slice_begin(int64_t tokens, int64_t slice, int64_t slices) {
  return tokens * slice / slices;
}

// Rows are divided evenly, in order. Packed segments stay whole within a part: a part ends where its share of
// the tokens is reached, so that it may hold half a segment more than its share. A batch of for_ranks() has a
// segment for each part; throws Error for fewer. Slices of a part are of equal length up to one token; they
// cut segments.
SharedBatch share_of(const Batch& whole, const Share& share);

}  // namespace performer::data
