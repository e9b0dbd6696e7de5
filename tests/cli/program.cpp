// SPDX-License-Identifier: Apache-2.0
#include "tests/cli/program.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "performer/base/files.h"
#include "performer/base/philox.h"

namespace performer::testing_cli {
namespace fs = std::filesystem;

namespace {

void redirect(const std::string& path, int flags, int descriptor) {
  const int file = open(path.c_str(), flags, 0600);
  if (file < 0 || dup2(file, descriptor) < 0) _exit(126);
}

void limit(int resource, int64_t bytes) {
  if (bytes <= 0) return;
  const rlimit value{static_cast<rlim_t>(bytes), static_cast<rlim_t>(bytes)};
  if (setrlimit(resource, &value) != 0) _exit(126);
}

}  // namespace

Process::Process(const std::string& directory, const Arguments& arguments, const Setting& setting) {
  static int count = 0;  // files of the harness lie beside the directory, not in it
  const std::string base = fmt::format("{}.{}", directory, ++count);
  output_path_ = base + ".out";
  error_path_ = base + ".err";
  const std::string input_path = base + ".in";
  write_file(input_path, setting.input);
  pid_ = fork();
  if (pid_ == 0) {
    redirect(input_path, O_RDONLY, STDIN_FILENO);
    const bool collected = setting.standard_output.empty();
    redirect(collected ? output_path_ : setting.standard_output, O_WRONLY | O_CREAT | O_TRUNC, STDOUT_FILENO);
    redirect(error_path_, O_WRONLY | O_CREAT | O_TRUNC, STDERR_FILENO);
    if (chdir(directory.c_str()) != 0) _exit(126);
    for (const auto& [name, value] : setting.environment) setenv(name.c_str(), value.c_str(), 1);
    limit(RLIMIT_DATA, setting.data_limit);
    limit(RLIMIT_FSIZE, setting.file_limit);
    if (!setting.shell.empty()) {
      setenv("PERFORMER", PERFORMER_PROGRAM, 1);
      execl("/bin/bash", "bash", "-c", setting.shell.c_str(), nullptr);
      _exit(127);
    }
    std::vector<char*> argv = {const_cast<char*>("performer")};
    for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    execv(PERFORMER_PROGRAM, argv.data());
    _exit(127);
  }
}

Process::~Process() {
  if (!ended_) {
    send(SIGKILL);
    wait();
  }
}

void Process::send(int signal) const {
  kill(pid_, signal);
}

bool Process::running() {
  if (!ended_) ended_ = waitpid(pid_, &status_, WNOHANG) == pid_;
  return !ended_;
}

Result Process::wait() {
  if (!ended_) waitpid(pid_, &status_, 0);
  ended_ = true;
  Result result;
  if (WIFEXITED(status_)) result.code = WEXITSTATUS(status_);
  if (WIFSIGNALED(status_)) result.signal = WTERMSIG(status_);
  if (fs::exists(output_path_)) result.out = read_file(output_path_);
  result.err = read_file(error_path_);
  return result;
}

void ProgramTest::SetUp() {
  ASSERT_TRUE(fs::exists(PERFORMER_PROGRAM)) << PERFORMER_PROGRAM << " is not built";
  std::string name = testing::TempDir() + "/performer-cli-XXXXXX";
  ASSERT_NE(mkdtemp(name.data()), nullptr);
  directory_ = name;
}

void ProgramTest::TearDown() {
  if (directory_.empty()) return;
  const fs::path own(directory_);
  for (const auto& entry : fs::directory_iterator(own.parent_path())) {
    if (entry.path().filename().string().starts_with(own.filename().string())) fs::remove_all(entry.path());
  }
}

Result ProgramTest::run(const Arguments& arguments, const Setting& setting) const {
  return Process(directory_, arguments, setting).wait();
}

void ProgramTest::write(const std::string& name, const std::string& text) const {
  write_file(path(name), text);
}
std::string ProgramTest::read(const std::string& name) const {
  return read_file(path(name));
}
bool ProgramTest::exists(const std::string& name) const {
  return fs::exists(path(name));
}

std::vector<std::string> ProgramTest::files() const {
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(directory_))
    names.push_back(entry.path().string());
  std::sort(names.begin(), names.end());
  return names;
}

bool ProgramTest::wait_until(Process& process, const std::function<bool()>& holds) {
  for (int i = 0; i < 6000; ++i) {
    if (holds()) return true;
    if (!process.running()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

pid_t ProgramTest::find_rank(int rank) const {
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string folder = entry.path().string();
    std::error_code ignored;
    if (fs::read_symlink(folder + "/cwd", ignored) != fs::canonical(directory_)) continue;
    std::ifstream stream(folder + "/environ");
    for (std::string word; std::getline(stream, word, '\0');) {
      if (word == "RANK=" + std::to_string(rank)) return std::atoi(entry.path().filename().c_str());
    }
  }
  return -1;
}

std::string ProgramTest::make_fasta(const std::string& name, int count) const {
  // After a residue comes the next of the alphabet half of the time: a bigram model learns that, and so does
  // ours.
  const std::string letters = "ACDEFGHIKLMNPQRSTVWY";
  std::string text;
  for (int i = 0; i < count; ++i) {
    PhiloxStream random(5, static_cast<uint32_t>(i));
    text += fmt::format(">protein_{} synthetic\n", i + 1);
    size_t residue = random.below(letters.size());
    for (uint64_t left = 20 + random.below(30); left > 0; --left) {
      text += letters[residue];
      residue = random.uniform() < 0.5 ? (residue + 1) % letters.size() : random.below(letters.size());
    }
    text += "\n";
  }
  write(name, text);
  return name;
}

std::string ProgramTest::make_model(const std::string& name, const Arguments& more) const {
  if (!exists("train.fasta")) make_fasta("train.fasta");
  if (exists(name)) return name;
  Arguments options = more;
  if (std::find(more.begin(), more.end(), "--steps") == more.end())
    options.insert(options.begin(), {"--steps", "5"});
  const Result result = run(train_arguments("train.fasta", name, options));
  EXPECT_EQ(result.code, 0) << result.err;
  return name;
}

Arguments train_arguments(const std::string& fasta, const std::string& output, const Arguments& more) {
  Arguments arguments = {"train", "-t", "1", "--train", fasta, "-o", output, "--set"};
  for (const char* setting : {"model.layers=1", "model.width=16", "model.heads=2", "model.ffn=16",
                              "attention.features=8", "data.length=64", "data.batch_tokens=256"}) {
    arguments.emplace_back(setting);
  }
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

std::map<int64_t, std::string> losses(const std::string& metrics) {
  std::map<int64_t, std::string> result;
  for (const auto& line : lines_of(metrics)) {
    const auto record = nlohmann::json::parse(line, nullptr, false);
    if (record.is_object() && record.contains("loss")) result[record.at("step")] = record.at("loss").dump();
  }
  return result;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string> columns_of(const std::string& line) {
  std::vector<std::string> columns;
  std::istringstream stream(line);
  for (std::string column; std::getline(stream, column, '\t');) columns.push_back(column);
  return columns;
}

void expect_failure(const Result& result, int code, const std::vector<std::string>& words) {
  EXPECT_EQ(result.code, code) << "signal " << result.signal << "\n" << result.err;
  EXPECT_EQ(result.out, "");
  for (const auto& word : words) EXPECT_THAT(result.err, testing::HasSubstr(word));
  int messages = 0;
  for (const auto& line : lines_of(result.err)) messages += line.starts_with("performer: ");
  EXPECT_EQ(messages, 1) << "one message is expected:\n" << result.err;
}

}  // namespace performer::testing_cli
