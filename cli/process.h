// SPDX-License-Identifier: Apache-2.0
// The program and its operating system: processors, memory, signals.
#pragma once

#include <atomic>
#include <string>
#include <vector>

namespace performer::cli {

// Processors this process may run on (its affinity mask), at least 1.
int available_cpus();

// Vector extensions of the processor that matter here, as the system names them.
std::vector<std::string> cpu_features();

// Makes allocations beyond the memory that is free now fail, so that running out ends with a message instead
// of the system killing the process without one. A lower limit set by the user stays.
void limit_memory();

// From now on SIGINT and SIGTERM set the returned flag and say so on standard error; a second one kills.
const std::atomic<bool>& stop_on_signals();

}  // namespace performer::cli
