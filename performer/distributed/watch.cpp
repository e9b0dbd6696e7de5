// SPDX-License-Identifier: Apache-2.0
#include "performer/distributed/watch.h"

#include <fmt/format.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace performer::distributed {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kBeat = std::chrono::milliseconds(500);
constexpr double kDying = 3;     // seconds of silence that mean a loss once a connection broke
constexpr double kFarewell = 5;  // seconds that the keeper of the store waits for the others
constexpr char kRuns = 'r', kDone = 'd', kFailed = 'f';

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string key_of(int rank) {
  return fmt::format("sign/{}", rank);
}

}  // namespace

// What a rank writes is a letter and a text: r and a number that grows, d, or f and a reason.
struct Watch::State {
  struct Other {
    std::string sign;
    Clock::time_point changed;
  };

  c10::intrusive_ptr<c10d::Store> store;
  int rank = 0, size = 0;
  double silence = 0;
  bool keeps_store = false;

  mutable std::mutex mutex;
  std::condition_variable changed;
  std::string ending;  // what this rank leaves as its last sign, once it ends
  bool ended = false;  // the last sign was written, or could not be
  std::vector<Other> others;
  Clock::time_point contact = Clock::now();  // when the store answered last
  bool store_broken = false;

  void beat(int64_t count) {
    std::string last;
    {
      const std::lock_guard lock(mutex);
      last = ending;
    }
    const std::string sign = last.empty() ? fmt::format("{}{}", kRuns, count) : last;
    store->set(key_of(rank), sign);
    std::vector<std::string> keys;
    for (int other = 0; other < size; ++other) keys.push_back(key_of(other));
    const auto found = store->multiGet(keys);
    const std::lock_guard lock(mutex);
    contact = Clock::now();
    for (int other = 0; other < size; ++other) {
      std::string text(found[static_cast<size_t>(other)].begin(), found[static_cast<size_t>(other)].end());
      Other& known = others[static_cast<size_t>(other)];
      if (text == known.sign) continue;
      known = {std::move(text), contact};
    }
    ended = !last.empty();
  }

  void run() {
    for (int64_t count = 0;; ++count) {
      try {
        beat(count);
      } catch (const std::exception&) {
        const std::lock_guard lock(mutex);
        store_broken = true;
        ended = true;
      }
      std::unique_lock lock(mutex);
      changed.notify_all();
      if (ended) return;
      changed.wait_for(lock, kBeat, [&] { return !ending.empty(); });
    }
  }

  // None of the others will read any more: they ended, or were lost.
  bool all_ended() const {
    for (const Other& other : others) {
      const double quiet = std::chrono::duration<double>(contact - other.changed).count();
      if (!other.sign.empty() && other.sign.front() == kRuns && quiet < kDying) return false;
    }
    return true;
  }

  // `patience`: seconds of silence that mean a loss.
  std::string trouble(double patience) const {
    for (int other = 0; other < size; ++other) {
      const std::string& sign = others[static_cast<size_t>(other)].sign;
      if (other != rank && !sign.empty() && sign.front() == kFailed) {
        return fmt::format("rank {} failed: {}", other, sign.substr(1));
      }
    }
    for (int other = 0; other < size; ++other) {
      const Other& known = others[static_cast<size_t>(other)];
      if (other == rank || known.sign.empty() || known.sign.front() == kDone) continue;
      // Silence counts up to the last contact: while the store is out of reach nothing is known of the
      // others.
      const double quiet = std::chrono::duration<double>(contact - known.changed).count();
      if (quiet >= patience) {
        return fmt::format("rank {} of {} was lost: it has given no sign of life for {:.0f} s", other, size,
                           quiet);
      }
    }
    const double away = seconds_since(contact);
    if (store_broken || away >= std::max(patience, kDying)) {
      return fmt::format("rank 0 was lost: the meeting place that it keeps does not answer");
    }
    return "";
  }

  void end(const std::string& sign, double seconds) {
    std::unique_lock lock(mutex);
    if (!ending.empty()) return;
    ending = sign;
    changed.notify_all();
    changed.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return ended; });
  }
};

Watch::Watch(c10::intrusive_ptr<c10d::Store> store, int rank, int size, double silence)
    : state_(std::make_shared<State>()) {
  state_->store = std::move(store);
  state_->rank = rank;
  state_->size = size;
  state_->silence = silence;
  state_->others.assign(static_cast<size_t>(size), {"", Clock::now()});
  // Detached: a store that does not answer may hold it for long, which must not hold the process.
  std::thread([state = state_] { state->run(); }).detach();
}

Watch::~Watch() {
  state_->end(std::string(1, kDone), kFarewell);
  if (!state_->keeps_store) return;
  // The store goes with this process, and others may still have to read why it ends.
  const auto begun = Clock::now();
  int64_t last = 0;
  while (seconds_since(begun) < kFarewell) {
    try {
      state_->beat(++last);
    } catch (const std::exception&) {
      return;
    }
    std::unique_lock lock(state_->mutex);
    if (state_->all_ended()) return;
    state_->changed.wait_for(lock, kBeat / 5);
  }
}

void Watch::keeps_store(bool value) {
  state_->keeps_store = value;
}

std::string Watch::trouble() const {
  const std::lock_guard lock(state_->mutex);
  return state_->trouble(state_->silence);
}

std::string Watch::explain(const std::string& error) {
  const auto begun = Clock::now();
  for (;;) {
    {
      std::unique_lock lock(state_->mutex);
      const std::string found = state_->trouble(std::min(kDying, state_->silence));
      if (!found.empty()) return found;
      state_->changed.wait_for(lock, kBeat);
    }
    if (seconds_since(begun) > state_->silence) return "an exchange with another rank failed: " + error;
  }
}

bool Watch::first_fails_with(const std::string& reason, double seconds) const {
  if (state_->rank == 0) return false;
  std::unique_lock lock(state_->mutex);
  const std::string& sign = state_->others[0].sign;
  state_->changed.wait_for(lock, std::chrono::duration<double>(seconds),
                           [&] { return state_->store_broken || (!sign.empty() && sign.front() != kRuns); });
  if (sign.empty() || sign.front() != kFailed) return false;
  // Who was told of the other's reason names its rank before it.
  const std::string_view theirs = std::string_view(sign).substr(1), own = reason;
  return own.ends_with(theirs) || theirs.ends_with(own);
}

void Watch::fail(const std::string& reason) noexcept {
  try {
    state_->end(kFailed + reason, kFarewell);
  } catch (const std::exception&) {  // the others then find out by this rank's silence
  }
}

}  // namespace performer::distributed
