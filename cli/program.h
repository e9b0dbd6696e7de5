// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace performer::cli {

// The whole program but for its set-up: parses the arguments, runs the command, prints errors to standard
// error and returns the exit code. Attention kinds that are registered before are known to all commands.
int run_program(int argc, char** argv);

}  // namespace performer::cli
