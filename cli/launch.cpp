// SPDX-License-Identifier: Apache-2.0
#include "cli/launch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "performer/base/error.h"

extern char** environ;

namespace performer::cli {
namespace {

constexpr int kPassedOn[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};

// The words of this process's command line, as the system keeps them.
std::vector<std::string> own_command() {
  std::ifstream stream("/proc/self/cmdline");
  std::vector<std::string> words;
  for (std::string word; std::getline(stream, word, '\0');) words.push_back(word);
  return words;
}

// A socket that listens at a free port of this machine; rank 0 inherits it, so that nobody can take the port.
struct Listener {
  int socket = -1, port = 0;

  Listener() : socket(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(name);
    auto* plain = reinterpret_cast<sockaddr*>(&name);
    const bool listens = socket >= 0 && ::bind(socket, plain, size) == 0 &&
                         ::listen(socket, SOMAXCONN) == 0 && ::getsockname(socket, plain, &size) == 0;
    check(listens, "--nproc: no socket for the ranks to meet at could be made: {}", std::strerror(errno));
    port = ntohs(name.sin_port);
  }
  ~Listener() { ::close(socket); }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
};

// This environment with the variables of a rank, as torchrun sets them.
std::vector<std::string> environment_of(int rank, int count, const Listener& listener) {
  std::vector<std::string> variables = {fmt::format("RANK={}", rank),
                                        fmt::format("WORLD_SIZE={}", count),
                                        fmt::format("LOCAL_RANK={}", rank),
                                        fmt::format("LOCAL_WORLD_SIZE={}", count),
                                        "MASTER_ADDR=127.0.0.1",
                                        fmt::format("MASTER_PORT={}", listener.port)};
  if (rank == 0) variables.push_back(fmt::format("PERFORMER_LISTENER={}", listener.socket));
  const std::vector<std::string> own = {
      "RANK=",        "WORLD_SIZE=",  "LOCAL_RANK=",         "LOCAL_WORLD_SIZE=",
      "MASTER_ADDR=", "MASTER_PORT=", "PERFORMER_LISTENER=", "TORCHELASTIC_"};
  for (char** each = environ; *each != nullptr; ++each) {
    bool replaced = false;
    for (const std::string& name : own) replaced = replaced || std::string_view(*each).starts_with(name);
    if (!replaced) variables.emplace_back(*each);
  }
  return variables;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> all;
  for (std::string& word : words) all.push_back(word.data());
  all.push_back(nullptr);
  return all;
}

class Ranks {
 public:
  Ranks(int count, double patience) : patience_(patience) {
    sigemptyset(&awaited_);
    sigaddset(&awaited_, SIGCHLD);
    for (const int number : kPassedOn) sigaddset(&awaited_, number);
    sigprocmask(SIG_BLOCK, &awaited_, &before_);
    const Listener listener;
    for (int rank = 0; rank < count; ++rank) start(rank, count, listener);
  }

  int wait() {
    while (running_ > 0) {
      const timespec second{1, 0};
      const int number = sigtimedwait(&awaited_, nullptr, &second);
      if (number > 0 && number != SIGCHLD) signal_all(passed_on_ = number);
      reap();
      if (running_ > 0 && code_ != 0 && std::chrono::steady_clock::now() > deadline_) signal_all(SIGKILL);
    }
    if (ended_by_signal_) {
      ::signal(passed_on_, SIG_DFL);
      ::raise(passed_on_);
    }
    sigprocmask(SIG_SETMASK, &before_, nullptr);
    return code_;
  }

 private:
  void start(int rank, int count, const Listener& listener) {
    std::vector<std::string> command = own_command(), variables = environment_of(rank, count, listener);
    const std::vector<char*> arguments = pointers(command), environment = pointers(variables);
    const pid_t parent = ::getpid(), child = ::fork();
    if (child < 0) {
      signal_all(SIGKILL);
      throw Error(fmt::format("--nproc: process {} of {} could not be started: {}", rank + 1, count,
                              std::strerror(errno)));
    }
    if (child == 0) {
      // A group of its own: the terminal's Ctrl-C reaches ranks through the parent alone, and once.
      ::setpgid(0, 0);
      ::prctl(PR_SET_PDEATHSIG, SIGTERM);
      if (::getppid() != parent) _exit(1);
      if (rank != 0) ::close(listener.socket);
      sigprocmask(SIG_SETMASK, &before_, nullptr);
      ::execve("/proc/self/exe", arguments.data(), environment.data());
      _exit(127);
    }
    children_.push_back(child);
    ++running_;
  }

  void signal_all(int number) const {
    for (const pid_t child : children_) {
      if (child > 0) ::kill(child, number);
    }
  }

  void reap() {
    int status = 0;
    for (pid_t child; (child = ::waitpid(-1, &status, WNOHANG)) > 0;) {
      for (size_t rank = 0; rank < children_.size(); ++rank) {
        if (children_[rank] != child) continue;
        children_[rank] = -1;
        --running_;
        note(rank, status);
      }
    }
  }

  void note(size_t rank, int status) {
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    if (WIFSIGNALED(status) && WTERMSIG(status) == passed_on_) {
      ended_by_signal_ = true;
    } else if (WIFSIGNALED(status)) {
      spdlog::error("rank {} was ended by signal {} ({})", rank, WTERMSIG(status),
                    ::strsignal(WTERMSIG(status)));
    }
    if (code == 0) return;
    const bool first = code_ == 0;
    // A rank that is told of another's error ends with 1, perhaps before that rank, whose code says more.
    if (first || code_ == 1) code_ = code;
    if (!first) return;
    deadline_ = std::chrono::steady_clock::now() + std::chrono::seconds(static_cast<int64_t>(patience_));
  }

  double patience_;
  sigset_t awaited_{}, before_{};
  std::vector<pid_t> children_;  // -1: ended
  int running_ = 0, code_ = 0;
  int passed_on_ = 0;             // the last signal that the ranks were sent
  bool ended_by_signal_ = false;  // and of which one ended
  std::chrono::steady_clock::time_point deadline_{};
};

}  // namespace

int launch_ranks(int count, double patience) {
  return Ranks(count, patience).wait();
}

}  // namespace performer::cli
