// SPDX-License-Identifier: Apache-2.0
#include "performer/train/run_folder.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/data/json.h"
#include "performer/models/folder.h"

namespace performer::train {
namespace fs = std::filesystem;
namespace {

nlohmann::json state_to_json(const RunState& state) {
  return {
      {"step", state.step},           {"tokens", state.tokens},
      {"targets", state.targets},     {"seconds", state.seconds},
      {"loss", state.loss},           {"evaluated", state.evaluated},
      {"threads", state.threads},     {"best", state.best ? nlohmann::json(*state.best) : nlohmann::json()},
      {"best_step", state.best_step}, {"since_best", state.since_best},
      {"ranks", state.ranks}};
}

RunState state_from_json(const nlohmann::json& json) {
  RunState state;
  json.at("step").get_to(state.step);
  json.at("tokens").get_to(state.tokens);
  json.at("targets").get_to(state.targets);
  json.at("seconds").get_to(state.seconds);
  json.at("loss").get_to(state.loss);
  json.at("evaluated").get_to(state.evaluated);
  json.at("threads").get_to(state.threads);
  if (json.contains("best") && !json["best"].is_null()) state.best = json["best"].get<double>();
  state.best_step = json.value("best_step", state.best_step);
  state.since_best = json.value("since_best", state.since_best);
  state.ranks = json.value("ranks", 1);
  return state;
}

void check_format(const std::string& path, const std::map<std::string, std::string>& metadata) {
  const auto found = metadata.find("performer_format");
  check<InputError>(found != metadata.end(), "{}: not a training checkpoint of this program", path);
  int format = 0;
  const std::string& text = found->second;
  std::from_chars(text.data(), text.data() + text.size(), format);
  check<InputError>(
      format == kModelFormat,
      "{}: format {} is unknown, this program reads format {}: use the release that wrote it, or "
      "train into another folder",
      path, text, kModelFormat);
}

// The tensors whose names begin with `prefix`, without it.
std::map<std::string, at::Tensor> part(const std::map<std::string, at::Tensor>& tensors,
                                       const std::string& prefix) {
  std::map<std::string, at::Tensor> found;
  for (const auto& [name, tensor] : tensors) {
    if (name.starts_with(prefix)) found[name.substr(prefix.size())] = tensor;
  }
  return found;
}

}  // namespace

std::string training_file(const std::string& directory) {
  return directory + "/training.safetensors";
}

void save_training(const std::string& directory, const TrainingCheckpoint& checkpoint) {
  TensorFile file;
  for (const auto& [name, tensor] : checkpoint.task.tensors) file.tensors["task." + name] = tensor;
  for (const auto& [name, tensor] : checkpoint.adam) file.tensors["adam." + name] = tensor;
  file.tensors["generator"] = checkpoint.generator;
  file.metadata["performer_format"] = std::to_string(kModelFormat);
  file.metadata["state"] = state_to_json(checkpoint.state).dump();
  file.metadata["task"] = checkpoint.task.values.dump();
  file.metadata["settings"] = nlohmann::json(checkpoint.settings).dump();
  write_safetensors(training_file(directory), file);
}

TrainingCheckpoint load_training(const std::string& directory) {
  const std::string path = training_file(directory);
  check<UsageError>(fs::exists(path),
                    "{} holds no checkpoint to resume (training.safetensors): leave out --resume to start a "
                    "new run in an empty folder",
                    directory);
  const TensorFile file = read_safetensors(path);
  check_format(path, file.metadata);
  TrainingCheckpoint checkpoint;
  const auto entry = [&](const char* key) {
    const auto found = file.metadata.find(key);
    check<InputError>(found != file.metadata.end(), "{}: damaged training state: '{}' is missing", path, key);
    return nlohmann::json::parse(found->second);
  };
  data::read_json(path, "damaged training state", [&] {
    checkpoint.state = state_from_json(entry("state"));
    checkpoint.task.values = entry("task");
    checkpoint.settings = entry("settings").get<Settings>();
  });
  const auto generator = file.tensors.find("generator");
  check<InputError>(generator != file.tensors.end(), "{}: the state of the random generator is missing",
                    path);
  checkpoint.generator = generator->second;
  checkpoint.task.tensors = part(file.tensors, "task.");
  checkpoint.adam = part(file.tensors, "adam.");
  return checkpoint;
}

void check_same_settings(const std::string& directory, const Settings& then, const Settings& now) {
  static const std::set<std::string> free = {"train.steps",
                                             "train.log_every",
                                             "train.evaluate_every",
                                             "train.checkpoint_every",
                                             "train.sequence_parallel",
                                             "train.shard_optimizer"};
  for (const auto& [key, value] : now) {
    const auto found = then.find(key);
    const std::string before = found == then.end() ? "(not recorded)" : found->second;
    check<UsageError>(free.contains(key) || value == before,
                      "{} is {}, but the run in {} was started with {}: set it back, or train into another "
                      "folder (a resumed run may change only {})",
                      key, value, directory, before, fmt::join(free, ", "));
  }
}

RunFolder::RunFolder(const std::string& path, bool resume, bool writes)
    : path_(path), resumes_(resume), writes_(writes) {
  check<UsageError>(!path.empty(), "no output folder given (-o DIR)");
  if (!writes) return;
  std::error_code ignored;
  check<UsageError>(resume || !fs::is_directory(path) || fs::is_empty(path, ignored),
                    "{} is not empty: continue the run in it with --resume, or choose another folder with -o",
                    path);
  check<UsageError>(!resume || fs::is_directory(path),
                    "{} does not exist, so there is nothing to resume: leave out --resume to start a new run",
                    path);
  make_directories(path);
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  check(descriptor_ >= 0, "cannot open the folder {}: {}", path, std::strerror(errno));
  // File systems without locks are no reason not to train: only a lock that somebody holds is.
  const bool taken = ::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  if (taken) {
    ::close(descriptor_);
    throw UsageError(
        fmt::format("another process trains into {}: wait for it or choose another folder with -o", path));
  }
  remove_stale_files(path);
}

RunFolder::~RunFolder() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace performer::train
