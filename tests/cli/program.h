// SPDX-License-Identifier: Apache-2.0
// Runs the real program as a user would, in a directory of its own.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace performer::testing_cli {

using Arguments = std::vector<std::string>;

struct Setting {
  std::string input = "";            // standard input
  std::string standard_output = "";  // file that standard output goes to instead of being collected
  int64_t data_limit = 0;            // bytes of memory (RLIMIT_DATA), 0: as it is
  int64_t file_limit = 0;            // bytes a file may have (RLIMIT_FSIZE), 0: as it is
  std::map<std::string, std::string> environment = {};
  std::string shell = "";  // a script for bash that runs instead; "$PERFORMER" is the program
};

struct Result {
  int code = -1;   // exit code; -1 when a signal ended it
  int signal = 0;  // that signal
  std::string out, err;
};

// A running program.
class Process {
 public:
  Process(const std::string& directory, const Arguments& arguments, const Setting& setting);
  ~Process();
  Process(const Process&) = delete;

  void send(int signal) const;
  bool running();
  Result wait();

 private:
  std::string output_path_, error_path_;
  pid_t pid_ = -1;
  int status_ = 0;
  bool ended_ = false;
};

// A temporary directory, in which programs run and files are made; removed at the end.
class ProgramTest : public testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  Result run(const Arguments& arguments, const Setting& setting = {}) const;
  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  void write(const std::string& name, const std::string& text) const;
  std::string read(const std::string& name) const;
  bool exists(const std::string& name) const;
  // Everything below the directory, sorted, to see that nothing was left behind.
  std::vector<std::string> files() const;

  // Whether `holds` while the process still runs, within a minute.
  static bool wait_until(Process& process, const std::function<bool()>& holds);
  // The process of this program that has RANK=`rank` and works in this directory; -1: there is none.
  pid_t find_rank(int rank) const;

  // Writes NAME with `count` proteins that have something to learn, and returns NAME.
  std::string make_fasta(const std::string& name, int count = 60) const;
  // Trains a tiny model into NAME on make_fasta("train.fasta") unless it exists, and returns NAME. `more` are
  // further options; 5 steps unless they say otherwise.
  std::string make_model(const std::string& name = "model", const Arguments& more = {}) const;

  std::string directory_;
};

// "performer train" with a configuration that takes milliseconds a step.
Arguments train_arguments(const std::string& fasta, const std::string& output, const Arguments& more = {});
// Losses by step from the text of a metrics.jsonl, as written.
std::map<int64_t, std::string> losses(const std::string& metrics);
std::vector<std::string> lines_of(const std::string& text);
std::vector<std::string> columns_of(const std::string& line);

// Expects the exit code and that standard error holds every one of `words` (and standard output nothing).
void expect_failure(const Result& result, int code, const std::vector<std::string>& words);

}  // namespace performer::testing_cli
