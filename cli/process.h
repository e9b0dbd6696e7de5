// SPDX-License-Identifier: Apache-2.0
// The program and its operating system: processors, memory, signals.
#pragma once

#include <atomic>
#include <string>
#include <vector>

namespace performer::cli {

// Processors this process may run on (its affinity mask), at least 1.
int available_cpus();

inline constexpr int kMostThreads = 1024;
// How many threads to compute with where the user says nothing, 1 to kMostThreads: the number that
// OMP_NUM_THREADS begins with, else the smaller of available_cpus() and the CPU quota of the control group
// (containers, batch systems), rounded up. `reason` says which decided.
struct ThreadChoice {
  int threads = 1;
  std::string reason;
};
ThreadChoice default_threads();

// Vector extensions of the processor that matter here, as the system names them.
std::vector<std::string> cpu_features();

// Makes allocations beyond the memory that is free now fail, so that running out ends with a message instead
// of the system killing the process without one. A lower limit set by the user stays.
void limit_memory();

// Whether standard error is a terminal on which a line can be drawn again: not one whose TERM is "dumb" or
// empty, nor one that is too narrow for it.
bool can_redraw_lines();

// Opens the null device on those of the descriptors 0 to 2 that are closed, so that no file that is opened
// later takes their place and receives messages. To be called before anything is opened.
void open_standard_streams();

// From now on SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGPIPE remove what is half-written and then end
// the process as they would without this. Signals that are ignored stay ignored (nohup, background jobs); an
// ignored SIGINT, which means that of the terminal, is still obeyed when another process sends it (kill
// -INT).
void end_on_signals();

// For training: from now on these signals, without SIGPIPE, end the process with exit code 130, and from
// stop_with_checkpoint() on the first one sets the returned flag and says so on standard error; the second
// ends the process.
const std::atomic<bool>& interrupt_reading();
void stop_with_checkpoint();

}  // namespace performer::cli
