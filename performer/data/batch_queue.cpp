// SPDX-License-Identifier: Apache-2.0
#include "performer/data/batch_queue.h"

#include <utility>

namespace performer::data {

BatchSource training_batches(const Corpus& corpus, const DataConfig& config, const std::string& objective,
                             const Cursor& start, std::span<const float> weights) {
  BatchStream stream(corpus, config, objective, weights);
  stream.seek(start);
  return [stream]() mutable {
    Batch batch = stream.next();
    return QueuedBatch{std::move(batch), stream.cursor(), stream.crops()};
  };
}

BatchQueue::BatchQueue(BatchSource source, size_t capacity)
    : source_(std::move(source)), capacity_(capacity) {
  thread_ = std::jthread([this](const std::stop_token& stop) { fill(stop); });
}

void BatchQueue::fill(const std::stop_token& stop) {
  try {
    while (!stop.stop_requested()) {
      QueuedBatch made = source_();
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [&] { return ready_.size() < capacity_; })) return;
      ready_.push_back(std::move(made));
      changed_.notify_all();
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
    changed_.notify_all();
  }
}

QueuedBatch BatchQueue::next() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !ready_.empty() || failure_ != nullptr; });
  if (ready_.empty()) std::rethrow_exception(failure_);
  QueuedBatch batch = std::move(ready_.front());
  ready_.pop_front();
  changed_.notify_all();
  return batch;
}

}  // namespace performer::data
