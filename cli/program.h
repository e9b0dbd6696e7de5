// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace performer::cli {

// The whole program but for its set-up: parses the arguments, runs the command, prints errors to standard
// error and returns the exit code. Attention kinds that are registered before are known to all commands.
int run_program(int argc, char** argv);

// Thrown by a command whose processes have said already what went wrong: ends with the code and no message.
struct SilentEnd {
  int exit_code = 1;
};

// Errors of this process are printed as "performer: WORDS message" from now on.
void begin_messages_with(const std::string& words);

}  // namespace performer::cli
