// SPDX-License-Identifier: Apache-2.0
// The program's set-up: signals, the log, memory, and the one door to the reference systems.
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "cli/process.h"
#include "cli/program.h"
#ifdef PERFORMER_WITH_REFERENCES
#include "performer/references/register.h"
#endif

int main(int argc, char** argv) {
  performer::cli::open_standard_streams();
  performer::cli::end_on_signals();
  signal(SIGXFSZ, SIG_IGN);  // a file-size limit is an error like a full disk, not a death without a message
  auto logger = spdlog::stderr_logger_mt("performer");
  logger->set_pattern("%H:%M:%S %v");
  spdlog::set_default_logger(logger);
#ifdef PERFORMER_WITH_REFERENCES
  performer::references::register_all();
#endif
  performer::cli::limit_memory();
  return performer::cli::run_program(argc, argv);
}
