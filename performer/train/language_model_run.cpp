// SPDX-License-Identifier: Apache-2.0
#include "performer/train/language_model_run.h"

#include <ATen/ATen.h>
#include <sys/stat.h>

#include <filesystem>
#include <map>
#include <memory>
#include <utility>

#include "performer/base/error.h"
#include "performer/data/byte_source.h"
#include "performer/data/inputs.h"
#include "performer/data/store.h"
#include "performer/train/language_model_task.h"
#include "performer/train/progress.h"

namespace performer::train {
namespace {

bool holds_out(const LanguageModelRequest& request) {
  return request.valid_files.empty() && request.data.holdout > 0;
}

void validate_request(const LanguageModelRequest& request) {
  validate(request);
  check<UsageError>(!request.train_files.empty(), "no training sequences given (--train FILE...)");
  check<UsageError>(request.options.time_limit >= 0,
                    "the time limit must be 0 (none) or more seconds, but is {}", request.options.time_limit);
}

// Before any file is worked on: what can be said about all of them.
void check_files(const LanguageModelRequest& request, int ranks) {
  for (const std::string& path : request.train_files) {
    check<UsageError>(
        ranks == 1 || data::can_be_read_twice(path),
        "{} can be read only once, and each of {} ranks reads the data: store them in a file first",
        data::source_name(path), ranks);
    check<UsageError>(
        !holds_out(request) || data::can_be_read_twice(path),
        "{} can be read only once, and holding sequences out takes two passes: store the data in "
        "a file first, give --valid files, or set data.holdout = 0",
        data::source_name(path));
  }
  std::vector<std::string> all = request.train_files;
  all.insert(all.end(), request.valid_files.begin(), request.valid_files.end());
  data::list_inputs(all);  // one that can be read only once is not given twice
  data::check_inputs(request.train_files, request.data);
  if (!request.valid_files.empty()) data::check_inputs(request.valid_files, request.data);
  Progress messages(false);
  const std::vector<data::InputFile> train = data::list_inputs(request.train_files),
                                     valid = data::list_inputs(request.valid_files);
  // By device and number, as links and other spellings name the same file.
  std::map<std::pair<dev_t, ino_t>, std::string> seen;
  const auto earlier = [&seen](const std::string& path, bool add) -> std::string {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return "";
    const std::pair key(status.st_dev, status.st_ino);
    const auto found = seen.find(key);
    if (found != seen.end()) return found->second;
    if (add) seen[key] = path;
    return "";
  };
  for (const data::InputFile& file : train) {
    const std::string same = earlier(file.path, true);
    if (same.empty()) continue;
    messages.warning(fmt::format("the training file {} is given twice{}: its sequences count double",
                                 shown(file.path),
                                 same == file.path ? "" : fmt::format(", also as {}", shown(same))));
  }
  for (const data::InputFile& file : valid) {
    if (earlier(file.path, false).empty()) continue;
    messages.warning(
        fmt::format("the validation file {} is a training file too: how well the model does on it "
                    "says nothing about new sequences",
                    shown(file.path)));
  }
}

data::HashSplit split(const LanguageModelRequest& request, data::HashSplit::Side side) {
  if (!holds_out(request)) return {};
  return {side, request.data.holdout, static_cast<uint64_t>(request.data.seed)};
}

// What is evaluated on; null when that is nothing. Format, vocabulary and image shape are those of the
// training sequences.
std::unique_ptr<data::Corpus> open_held_out(const LanguageModelRequest& request, const data::Corpus& train,
                                            const std::string& folder) {
  DataConfig config = request.data;
  data::record_source(config, train);
  const data::Vocabulary& vocabulary = train.vocabulary();
  if (!request.valid_files.empty()) {
    return std::make_unique<data::SequenceStore>(request.valid_files, folder, config, data::HashSplit{},
                                                 vocabulary, request.reading);
  }
  if (!holds_out(request)) return nullptr;
  try {
    return std::make_unique<data::SequenceStore>(request.train_files, folder, config,
                                                 split(request, data::HashSplit::Side::held_out), vocabulary,
                                                 request.reading);
  } catch (const InputError&) {  // the files themselves were read without complaint just before
    Progress(false).warning(
        fmt::format("none of the {} {} falls into the held-out part (data.holdout = {}): there will be no "
                    "evaluation; give --valid files or raise data.holdout",
                    train.size(), train.report().records_name, request.data.holdout));
    return nullptr;
  }
}

// Where a rank keeps what it read: in the folder of the run, or on a machine that does not see it in the
// system's temporary folder.
std::string data_folder(const RunFolder& folder) {
  if (folder.writes() || std::filesystem::is_directory(folder.path())) return folder.path();
  return std::filesystem::temp_directory_path().string();
}

RunResult run_on(distributed::Communicator& ranks, const LanguageModelRequest& request) {
  const RunFolder folder(request.output, request.resume, ranks.rank() == 0);
  check_files(request, ranks.size());
  ranks.sum(at::zeros({1}));  // rank 0 has made the folder
  const std::string place = data_folder(folder);
  const data::SequenceStore train(request.train_files, place, request.data,
                                  split(request, data::HashSplit::Side::train), std::nullopt,
                                  request.reading);
  const std::unique_ptr<data::Corpus> valid = open_held_out(request, train, place);
  LanguageModelTask task(request, train, valid.get());
  task.watch_evaluations(request.options.stop);
  task.divide(ranks);
  if (request.before_training) request.before_training();
  RunOptions options = request.options;
  options.ranks = &ranks;
  return run(task, folder, request.train, options);
}

}  // namespace

RunResult run(const LanguageModelRequest& request) {
  validate_request(request);
  if (request.options.ranks == nullptr) return run_on(*distributed::single_rank(), request);
  try {
    return run_on(*request.options.ranks, request);
  } catch (const Interrupted&) {  // all ranks were
    throw;
  } catch (const std::exception& error) {
    request.options.ranks->fail(error.what());
    throw;
  }
}

}  // namespace performer::train
