// SPDX-License-Identifier: Apache-2.0
// `performer COMMAND --nproc N`: this program again as N ranks on this machine.
#pragma once

#include <cstdint>

namespace performer::cli {

// Starts this process's own command as `count` ranks and waits for them. Signals that would end the command
// are passed on, and where they end the ranks, they end this process; when a rank ends early the others have
// `patience` seconds, in which they end by themselves. Returns the exit code: 0, or that of the first rank
// that failed. Throws Error when no process can be made.
int launch_ranks(int count, double patience);

}  // namespace performer::cli
