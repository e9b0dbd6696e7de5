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
#include "performer/models/folder.h"

namespace performer {
namespace fs = std::filesystem;
namespace {

std::string training_path(const std::string& directory) {
  return directory + "/training.safetensors";
}

nlohmann::json state_to_json(const RunState& state) {
  return {{"step", state.step},
          {"tokens", state.tokens},
          {"seconds", state.seconds},
          {"loss", state.loss},
          {"evaluated", state.evaluated},
          {"redraw", state.redraw},
          {"cursor", {state.cursor.epoch, state.cursor.sequence, state.cursor.offset}},
          {"crops",
           {state.crops.sequences, state.crops.cropped, state.crops.residues_dropped, state.crops.pieces}},
          {"train_fingerprint", state.train_fingerprint},
          {"valid_fingerprint", state.valid_fingerprint},
          {"threads", state.threads}};
}

RunState state_from_json(const nlohmann::json& json) {
  RunState state;
  json.at("step").get_to(state.step);
  json.at("tokens").get_to(state.tokens);
  json.at("seconds").get_to(state.seconds);
  json.at("loss").get_to(state.loss);
  json.at("evaluated").get_to(state.evaluated);
  json.at("redraw").get_to(state.redraw);
  const auto& cursor = json.at("cursor");
  state.cursor = {cursor.at(0), cursor.at(1), cursor.at(2)};
  const auto& crops = json.at("crops");
  state.crops = {crops.at(0), crops.at(1), crops.at(2), crops.at(3)};
  json.at("train_fingerprint").get_to(state.train_fingerprint);
  json.at("valid_fingerprint").get_to(state.valid_fingerprint);
  json.at("threads").get_to(state.threads);
  return state;
}

void check_format(const std::string& path, const std::map<std::string, std::string>& metadata) {
  const auto found = metadata.find("performer_format");
  check<InputError>(found != metadata.end(), "{}: not a training checkpoint of this program", path);
  int format = 0;
  const std::string& text = found->second;
  std::from_chars(text.data(), text.data() + text.size(), format);
  check<InputError>(format >= 1 && format <= kModelFormat,
                    "{}: format {} is unknown, this program reads up to {}: use the release that wrote it",
                    path, text, kModelFormat);
}

}  // namespace

void save_training(const std::string& directory, const TrainingCheckpoint& checkpoint) {
  TensorFile file;
  file.tensors = checkpoint.tensors;
  file.metadata["performer_format"] = std::to_string(kModelFormat);
  file.metadata["state"] = state_to_json(checkpoint.state).dump();
  file.metadata["settings"] = nlohmann::json(checkpoint.settings).dump();
  write_safetensors(training_path(directory), file);
}

TrainingCheckpoint load_training(const std::string& directory) {
  const std::string path = training_path(directory);
  check<UsageError>(fs::exists(path),
                    "{} holds no checkpoint to resume (training.safetensors): leave out --resume to start a "
                    "new run in an empty folder",
                    directory);
  TensorFile file = read_safetensors(path);
  check_format(path, file.metadata);
  TrainingCheckpoint checkpoint;
  try {
    checkpoint.state = state_from_json(nlohmann::json::parse(file.metadata.at("state")));
    checkpoint.settings = nlohmann::json::parse(file.metadata.at("settings")).get<Settings>();
  } catch (const std::exception& error) {  // JSON errors and missing entries
    throw InputError(fmt::format("{}: damaged training state: {}", path, error.what()));
  }
  checkpoint.tensors = std::move(file.tensors);
  return checkpoint;
}

void check_same_settings(const std::string& directory, const Settings& then, const Settings& now) {
  static const std::set<std::string> free = {"train.steps", "train.log_every", "train.evaluate_every",
                                             "train.checkpoint_every"};
  for (const auto& [key, value] : now) {
    const auto found = then.find(key);
    const std::string before = found == then.end() ? "(not recorded)" : found->second;
    check<UsageError>(free.contains(key) || value == before,
                      "{} is {}, but the run in {} was started with {}: set it back, or train into another "
                      "folder (a resumed run may change only {})",
                      key, value, directory, before, fmt::join(free, ", "));
  }
}

RunFolder::RunFolder(const std::string& path, bool resume) : path_(path) {
  check<UsageError>(!path.empty(), "no output folder given (-o DIR)");
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
  ::close(descriptor_);
}

}  // namespace performer
