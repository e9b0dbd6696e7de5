// SPDX-License-Identifier: Apache-2.0
// The progress line on a terminal, and log messages that do not tear it.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace performer::train {

struct ProgressState {
  int64_t step = 0, steps = 0;
  double elapsed = 0, time_limit = 0;  // seconds of this call; no limit: 0
  double pace = 0;                     // seconds that a step takes at present; 0: not known yet
  double loss = 0, accuracy = 0;       // accuracy NaN: there is none
  double tokens_per_second = 0;
};

// Whether the time limit ends the run, and not its last step, if steps go on at the present pace.
bool ends_by_time(const ProgressState& state);
// How much of the run is done, by what ends it: 0 to 1.
double fraction_done(const ProgressState& state);

// "1:02:03", "4:05", "0:07".
std::string format_duration(double seconds);
// How far the run is by what ends it, and what it does: by steps
// "300/1000  loss 2.812  accuracy 0.131  9,714 tokens/s  2:31 left", by time
// "2:10 of 5:00  step 300  loss 2.812  accuracy 0.131  9,714 tokens/s".
std::string format_status(const ProgressState& state);
// The same behind a bar, in at most `columns` characters; a narrow terminal gets no bar.
std::string format_progress(const ProgressState& state, int columns);

// Without `draw` nothing is drawn and messages go straight to the log.
class Progress {
 public:
  explicit Progress(bool draw) : draw_(draw) {}
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  bool draws() const { return draw_; }
  void update(const ProgressState& state);  // redraws at most ten times a second
  void message(const std::string& text);    // information, by the logger "performer" on standard error
  void warning(const std::string& text);
  void clear();

 private:
  bool draw_, visible_ = false;
  std::chrono::steady_clock::time_point drawn_{};
};

}  // namespace performer::train
