// SPDX-License-Identifier: Apache-2.0
// The progress line on a terminal, and log messages that do not tear it.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace performer {

struct ProgressState {
  int64_t step = 0, steps = 0;
  double loss = 0, accuracy = 0;
  double tokens_per_second = 0;
  double remaining = -1;  // seconds; negative: not known yet
};

// "1:02:03", "4:05", "0:07".
std::string format_duration(double seconds);
// "300/1000  loss 2.812  accuracy 0.131  9,714 tokens/s  2:31 left"
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

}  // namespace performer
