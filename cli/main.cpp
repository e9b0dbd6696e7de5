// SPDX-License-Identifier: Apache-2.0
// The program's set-up: signals, the log, memory, and the one door to the reference systems.
#include <limits.h>
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "cli/pages.h"
#include "cli/process.h"
#include "cli/program.h"
#ifdef PERFORMER_WITH_REFERENCES
#include "performer/references/register.h"
#endif

#ifdef PERFORMER_WITH_JEMALLOC
extern "C" {
extern const char* malloc_conf;
const char* malloc_conf = performer::cli::kPages;  // read when the program is loaded
}
#endif

namespace {

// In a working folder that was removed, MKL ends the process while it is loaded, without a reason. So this is
// looked at before the libraries begin, when only system calls may be used.
void check_working_folder(int, char**, char**) {
  char folder[PATH_MAX];
  if (syscall(SYS_getcwd, folder, sizeof(folder)) >= 0 || errno != ENOENT) return;
  constexpr char message[] =
      "performer: the folder in which this was started no longer exists: change to one that does\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, message, sizeof(message) - 1);
  _exit(1);
}

// The loader calls what lies in this section before it initializes the libraries.
[[gnu::section(".preinit_array"), gnu::used]] void (*const first)(int, char**, char**) = check_working_folder;

}  // namespace

int main(int argc, char** argv) {
  performer::cli::open_standard_streams();
  performer::cli::end_on_signals();
  signal(SIGXFSZ, SIG_IGN);  // a file-size limit is an error like a full disk, not a death without a message
  // oneDNN keeps a compiled product for each shape that it has seen, by default 1,024 of them and some 300
  // MB, and nearly every batch of sequences has a length of its own. A step needs fewer than these.
  setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64", 0);
  auto logger = spdlog::stderr_logger_mt("performer");
  logger->set_pattern("%H:%M:%S %v");
  spdlog::set_default_logger(logger);
#ifdef PERFORMER_WITH_REFERENCES
  performer::references::register_all();
#endif
  performer::cli::limit_memory();
  return performer::cli::run_program(argc, argv);
}
