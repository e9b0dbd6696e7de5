// SPDX-License-Identifier: Apache-2.0
#include "cli/process.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>
#include <string_view>
#include <thread>

#include "performer/base/cpu_quota.h"
#include "performer/base/files.h"

namespace performer::cli {

int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

ThreadChoice default_threads() {
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    // A list gives the numbers of nested levels: the first is the outermost.
    char* end = nullptr;
    const long number = std::strtol(text, &end, 10);
    const bool whole = end != text && (*end == '\0' || *end == ',' || *end == ' ');
    if (whole && number >= 1) {
      return {static_cast<int>(std::min<long>(number, kMostThreads)), "OMP_NUM_THREADS"};
    }
  }
  const int cpus = std::min(available_cpus(), kMostThreads);
  const int threads = threads_within(cpu_quota(), cpus);
  return {threads, threads < cpus ? "the CPU quota of the control group" : "the CPUs this process may use"};
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
enum class Phase { ends, reads, trains };  // what a signal finds
std::atomic<Phase> phase = Phase::ends;
std::atomic<bool> interrupts_ignored = false;
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<Phase>::is_always_lock_free);

constexpr int kEnding[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGPIPE};
constexpr int kInterrupted = 130;

template <size_t Size>
void say(const char (&message)[Size]) {
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, message, Size - 1);
}

// Only functions that are safe in a signal handler are called.
void on_signal(int number, siginfo_t* info, void*) {
  // A shell lets its background jobs ignore the terminal's Ctrl-C; what a process sends is meant for us.
  if (number == SIGINT && interrupts_ignored && info->si_code > 0) return;
  if (number != SIGPIPE) {
    if (phase == Phase::trains && !stop_flag.exchange(true)) {
      say("\nstopping soon with a checkpoint; a second signal stops at once\n");
      return;
    }
    if (phase == Phase::reads) {
      remove_unfinished_files();
      say("\nperformer: interrupted before a step was made; a checkpoint from before is as it was\n");
      _exit(kInterrupted);
    }
  }
  remove_unfinished_files();
  signal(number, SIG_DFL);
  raise(number);
}

}  // namespace

bool can_redraw_lines() {
  constexpr int kNarrow = 40;
  if (isatty(STDERR_FILENO) != 1) return false;
  const char* terminal = std::getenv("TERM");
  if (terminal == nullptr || *terminal == '\0' || std::string_view(terminal) == "dumb") return false;
  winsize size{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return !known || size.ws_col >= kNarrow;
}

void open_standard_streams() {
  // Reading what was closed for reading, and writing what was closed for writing, stays an error. Only
  // messages vanish.
  constexpr int kModes[] = {O_WRONLY, O_RDONLY, O_WRONLY};
  for (int descriptor = STDIN_FILENO; descriptor <= STDERR_FILENO; ++descriptor) {
    if (fcntl(descriptor, F_GETFD) < 0)
      open("/dev/null", kModes[descriptor]);  // takes the lowest that is free
  }
}

void end_on_signals() {
  for (const int number : kEnding) {
    struct sigaction before {
    }, action{};
    sigaction(number, nullptr, &before);
    const bool ignored = before.sa_handler == SIG_IGN;
    if (number == SIGINT) interrupts_ignored = ignored;
    if (ignored && number != SIGINT) continue;  // nohup, for example
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigaction(number, &action, nullptr);
  }
}

const std::atomic<bool>& interrupt_reading() {
  phase = Phase::reads;
  return stop_flag;
}

void stop_with_checkpoint() {
  phase = Phase::trains;
}

}  // namespace performer::cli
