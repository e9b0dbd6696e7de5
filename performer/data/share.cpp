// SPDX-License-Identifier: Apache-2.0
#include "performer/data/share.h"

#include <algorithm>

#include "performer/base/error.h"

namespace performer::data {
namespace {

// The first segment of each part, and the number of segments at the end.
std::vector<size_t> segments_of_parts(const std::vector<int64_t>& bounds, int64_t parts) {
  const size_t segments = bounds.size() - 1;
  const int64_t total = bounds.back();
  check(std::ssize(bounds) > parts, "a batch of {} segments cannot be divided over {} ranks", segments,
        parts);
  std::vector<size_t> first(static_cast<size_t>(parts) + 1, segments);
  first[0] = 0;
  size_t segment = 0;
  for (int64_t part = 1; part < parts; ++part) {
    ++segment;  // each part has one, and leaves one for each that follows
    while (segments - segment > static_cast<size_t>(parts - part) &&
           parts * (bounds[segment] + bounds[segment + 1]) <= 2 * part * total)
      ++segment;
    first[static_cast<size_t>(part)] = segment;
  }
  return first;
}

template <class T>
void take_columns(const std::vector<T>& from, int64_t width, int64_t row, int64_t rows, int64_t begin,
                  int64_t end, std::vector<T>& to) {
  if (from.empty()) return;
  for (int64_t i = row; i < row + rows; ++i) {
    to.insert(to.end(), from.begin() + i * width + begin, from.begin() + i * width + end);
  }
}

}  // namespace

DataConfig for_ranks(const DataConfig& config, int64_t parts, int64_t slices) {
  DataConfig all = config;
  const int64_t tokens = slices * config.batch_tokens;
  all.batch_tokens = parts * (config.layout == "packed" ? tokens : tokens / config.length * config.length);
  return all;
}

SharedBatch share_of(const Batch& whole, const Share& share) {
  SharedBatch shared;
  Batch& batch = shared.batch;
  shared.length = whole.width;
  shared.part_end = whole.width;
  const bool packed = !whole.cu_seqlens.empty();
  size_t first_segment = 0;
  if (packed) {
    const std::vector<size_t> first = segments_of_parts(whole.cu_seqlens, share.parts);
    const size_t begin = first[static_cast<size_t>(share.part)],
                 end = first[static_cast<size_t>(share.part) + 1];
    shared.part_begin = whole.cu_seqlens[begin];
    shared.part_end = whole.cu_seqlens[end];
    first_segment = begin;
    for (size_t i = begin; i <= end; ++i)
      shared.part_bounds.push_back(whole.cu_seqlens[i] - shared.part_begin);
    batch.rows = 1;
  } else {
    shared.row = whole.rows * share.part / share.parts;
    batch.rows = whole.rows * (share.part + 1) / share.parts - shared.row;
  }
  const int64_t tokens = shared.part_end - shared.part_begin;
  shared.begin = shared.part_begin + slice_begin(tokens, share.slice, share.slices);
  const int64_t end = shared.part_begin + slice_begin(tokens, share.slice + 1, share.slices);
  batch.width = end - shared.begin;
  const auto take = [&](const auto& from, auto& to) {
    take_columns(from, whole.width, shared.row, batch.rows, shared.begin, end, to);
  };
  take(whole.inputs, batch.inputs);
  take(whole.targets, batch.targets);
  take(whole.weights, batch.weights);
  take(whole.positions, batch.positions);
  take(whole.valid, batch.valid);
  if (!packed) {
    take_columns(whole.sequences, 1, shared.row, batch.rows, 0, 1, batch.sequences);
    return shared;
  }
  batch.cu_seqlens = {0};
  for (size_t i = 0; i < shared.part_bounds.size(); ++i) {
    const int64_t own = std::min(shared.part_bounds[i] + shared.part_begin, end) - shared.begin;
    if (own <= batch.cu_seqlens.back())
      continue;  // of slices before, or the segment that ends this one was it
    batch.cu_seqlens.push_back(own);
    if (!whole.sequences.empty()) batch.sequences.push_back(whole.sequences[first_segment + i - 1]);
  }
  return shared;
}

}  // namespace performer::data
