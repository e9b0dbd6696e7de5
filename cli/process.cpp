// SPDX-License-Identifier: Apache-2.0
#include "cli/process.h"

#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>
#include <thread>

namespace performer::cli {

int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

std::vector<std::string> cpu_features() {
  static const std::vector<std::string> known = {
      "ssse3",    "sse4_2",   "avx",      "avx2",        "fma",         "f16c",
      "avx512f",  "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
      "amx_tile", "amx_bf16", "amx_int8", "asimd",       "bf16",        "sve"};
  std::ifstream stream("/proc/cpuinfo");
  for (std::string line; std::getline(stream, line);) {
    if (!line.starts_with("flags") && !line.starts_with("Features")) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    std::vector<std::string> found;
    for (std::string word; words >> word;) {
      if (std::find(known.begin(), known.end(), word) != known.end()) found.push_back(word);
    }
    return found;
  }
  return {};
}

namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

// Bytes that /proc/meminfo calls available, and free swap.
uint64_t free_memory() {
  std::ifstream stream("/proc/meminfo");
  uint64_t kilobytes = 0, sum = 0;
  for (std::string name, unit; stream >> name >> kilobytes; std::getline(stream, unit)) {
    if (name == "MemAvailable:" || name == "SwapFree:") sum += kilobytes * 1024;
  }
  return sum > 0 ? sum : kUnlimited;
}

// The limit of this process's container, if any (control groups, version 2 or 1).
uint64_t container_memory() {
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::ifstream stream(path);
    if (uint64_t bytes = 0; stream >> bytes) return bytes;
  }
  return kUnlimited;
}

}  // namespace

void limit_memory() {
  const uint64_t bytes = std::min(free_memory(), container_memory());
  rlimit limit{};
  if (bytes == kUnlimited || getrlimit(RLIMIT_DATA, &limit) != 0 || limit.rlim_cur <= bytes) return;
  limit.rlim_cur = bytes;
  setrlimit(RLIMIT_DATA, &limit);
}

namespace {

std::atomic<bool> stop_flag = false;
static_assert(std::atomic<bool>::is_always_lock_free);  // a signal handler may set it

void on_signal(int) {
  stop_flag = true;
  signal(SIGINT, SIG_DFL);
  signal(SIGTERM, SIG_DFL);
  constexpr char message[] = "\nstopping after this step with a checkpoint; a second signal stops at once\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, message, sizeof(message) - 1);
}

}  // namespace

const std::atomic<bool>& stop_on_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  return stop_flag;
}

}  // namespace performer::cli
