// SPDX-License-Identifier: Apache-2.0
// Training batches made ahead of time by one background thread.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <span>
#include <stop_token>
#include <string>
#include <thread>

#include "performer/data/batches.h"
#include "performer/data/corpus.h"

namespace performer::data {

// A batch with what a checkpoint must hold once the batch has been used: where the stream stands after it.
// Batches that were only prepared leave no trace.
struct QueuedBatch {
  Batch batch;
  Cursor cursor;
  CropCounts crops;  // since the source began
};

using BatchSource = std::function<QueuedBatch()>;

// Training batches from `start` on. Throws as BatchStream does; `corpus` and `weights` must outlive the
// source.
BatchSource training_batches(const Corpus& corpus, const DataConfig& config, const std::string& objective,
                             const Cursor& start, std::span<const float> weights = {});

class BatchQueue {
 public:
  // Calls `source` from a thread of its own, `capacity` batches ahead at most.
  explicit BatchQueue(BatchSource source, size_t capacity = 4);

  // The next batch in order; waits for it. Rethrows what the source threw, when its turn has come.
  QueuedBatch next();

 private:
  void fill(const std::stop_token& stop);

  BatchSource source_;
  size_t capacity_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<QueuedBatch> ready_;
  std::exception_ptr failure_;
  std::jthread thread_;  // last: joined before anything it uses goes away
};

}  // namespace performer::data
