// SPDX-License-Identifier: Apache-2.0
#include "performer/train/progress.h"

#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>

namespace performer::train {
namespace {

// The program may have registered a logger of this name; otherwise messages go to standard error.
spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto known = spdlog::get("performer");
    return known != nullptr ? known : spdlog::stderr_color_mt("performer");
  }();
  return *instance;
}

int terminal_columns() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string with_thousands(double number) {
  std::string digits = fmt::format("{:.0f}", number);
  for (int64_t at = static_cast<int64_t>(digits.size()) - 3; at > 0; at -= 3)
    digits.insert(static_cast<size_t>(at), 1, ',');
  return digits;
}

}  // namespace

std::string format_duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
  const int64_t hours = whole / 3600, minutes = whole / 60 % 60, rest = whole % 60;
  return hours > 0 ? fmt::format("{}:{:02}:{:02}", hours, minutes, rest)
                   : fmt::format("{}:{:02}", minutes, rest);
}

bool ends_by_time(const ProgressState& state) {
  if (state.time_limit <= 0) return false;
  const double for_steps = static_cast<double>(state.steps - state.step) * state.pace;
  return state.pace <= 0 || state.time_limit - state.elapsed < for_steps;
}

double fraction_done(const ProgressState& state) {
  if (ends_by_time(state)) return std::clamp(state.elapsed / state.time_limit, 0.0, 1.0);
  return state.steps > 0 ? static_cast<double>(state.step) / static_cast<double>(state.steps) : 1;
}

std::string format_status(const ProgressState& state) {
  const bool by_time = ends_by_time(state);
  std::string text = by_time ? fmt::format("{} of {}  step {}", format_duration(state.elapsed),
                                           format_duration(state.time_limit), state.step)
                             : fmt::format("{}/{}", state.step, state.steps);
  text += fmt::format("  loss {:.3f}", state.loss);
  if (!std::isnan(state.accuracy)) text += fmt::format("  accuracy {:.3f}", state.accuracy);
  text += fmt::format("  {} tokens/s", with_thousands(state.tokens_per_second));
  if (!by_time && state.pace > 0) {
    const double left = static_cast<double>(state.steps - state.step) * state.pace;
    text += fmt::format("  {} left", format_duration(left));
  }
  return text;
}

std::string format_progress(const ProgressState& state, int columns) {
  std::string text = format_status(state);
  const int room = std::min(columns - static_cast<int>(text.size()) - 4, 30);
  if (room >= 5) {
    const int filled = std::clamp(static_cast<int>(fraction_done(state) * room), 0, room);
    std::string bar(static_cast<size_t>(filled), '=');
    if (filled < room) bar += '>';
    bar.resize(static_cast<size_t>(room), ' ');
    text = fmt::format("[{}]  {}", bar, text);
  }
  return text.substr(0, static_cast<size_t>(std::max(columns, 0)));
}

void Progress::update(const ProgressState& state) {
  const auto now = std::chrono::steady_clock::now();
  if (!draw_ || (visible_ && now - drawn_ < std::chrono::milliseconds(100))) return;
  // Carriage return, then "erase to the end of the line"; one column stays free so that the line never wraps.
  // A terminal that is gone is no reason to stop: errors are passed over.
  std::fputs(fmt::format("\r{}\x1b[K", format_progress(state, terminal_columns() - 1)).c_str(), stderr);
  std::fflush(stderr);
  visible_ = true;
  drawn_ = now;
}

void Progress::message(const std::string& text) {
  clear();
  logger().info("{}", text);
}

void Progress::warning(const std::string& text) {
  clear();
  logger().warn("{}", text);
}

void Progress::clear() {
  if (!visible_) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  visible_ = false;
}

}  // namespace performer::train
