// SPDX-License-Identifier: Apache-2.0
// For the implementations of Corpus.
#pragma once

#include <cstdint>

#include "performer/data/corpus.h"

namespace performer::data {

// The fingerprint of a corpus that goes on with one more sequence, given by its sequence_hash().
uint64_t extended_fingerprint(uint64_t fingerprint, uint64_t sequence);

// Throws UsageError for a fraction outside [0, 1).
void check_split(const HashSplit& split);
// Throws InputError when a corpus has no sequence of the `records` that were read.
void check_not_empty(int64_t size, int64_t records, const HashSplit& split);
// Throws InputError when a corpus has so many sequences that another one has no number.
void check_room(int64_t size);

}  // namespace performer::data
