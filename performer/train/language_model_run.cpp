// SPDX-License-Identifier: Apache-2.0
#include "performer/train/language_model_run.h"

#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <memory>
#include <optional>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/distributed/machine.h"
#include "performer/train/run_data.h"
#include "performer/train/task_kinds.h"

namespace performer::train {
namespace {

void validate_request(const LanguageModelRequest& request) {
  validate(request);
  check<UsageError>(!request.train_files.empty(), "no training sequences given (--train FILE...)");
  check<UsageError>(request.options.time_limit >= 0,
                    "the time limit must be 0 (none) or more seconds, but is {}", request.options.time_limit);
}

// What may differ from the model that a run starts from, since the weights do not depend on it.
bool may_differ(const std::string& key) {
  return key == "model.dropout" || key == "attention.redraw_every" || key == "attention.seed";
}

template <class Config>
void check_same_shape(const std::string& section, const Config& wanted, const Config& given,
                      const std::string& from) {
  std::map<std::string, std::string> known;
  for (const FieldInfo& field : list_fields(section, given)) known[field.key()] = to_text(field.value);
  for (const FieldInfo& field : list_fields(section, wanted)) {
    const std::string value = to_text(field.value);
    check<UsageError>(
        may_differ(field.key()) || known[field.key()] == value,
        "{} is {}, but the model that the run starts from, {}, has {}: leave it out, the shape is "
        "that model's",
        field.key(), value, from, known[field.key()]);
  }
}

// The model that a new run starts from, and the vocabulary of its data: that of the model, also where the run
// goes on without it.
struct Start {
  std::optional<ModelFolder> folder;
  std::optional<data::Vocabulary> vocabulary;
};

Start find_start(const LanguageModelRequest& request) {
  Start start;
  const std::string& from = request.train.from;
  if (from.empty()) return start;
  const std::string tokenizer = request.output + "/tokenizer.json";
  constexpr size_t kMostBytes = size_t{96} << 20;
  if (request.resume && std::filesystem::exists(tokenizer)) {
    start.vocabulary = data::Vocabulary::from_json(read_file(tokenizer, kMostBytes), tokenizer);
    return start;
  }
  start.folder = load_model(from);
  start.vocabulary = start.folder->vocabulary;
  const LanguageModel& model = start.folder->model;
  check_same_shape("model", request.model, model->model_config(), from);
  check_same_shape("attention", request.attention, model->attention_config(), from);
  const std::string& vocabulary = request.data.vocabulary;
  check<UsageError>(vocabulary == "auto" || vocabulary == start.vocabulary->name(),
                    "data.vocabulary is {}, but the model that the run starts from, {}, has {}: leave it out",
                    vocabulary, from, start.vocabulary->name());
  return start;
}

// Where the first rank of a machine keeps what it read: in the folder of the run, or on a machine that does
// not see it in the system's temporary folder.
std::string data_folder(const RunFolder& folder) {
  if (folder.writes() || std::filesystem::is_directory(folder.path())) return folder.path();
  return std::filesystem::temp_directory_path().string();
}

RunResult run_on(distributed::Communicator& ranks, const LanguageModelRequest& request) {
  Start start = find_start(request);
  distributed::Machine machine(ranks);
  RunData data(request, machine);
  const RunFolder folder(request.output, request.resume, ranks.rank() == 0);
  ranks.sum(at::zeros({1}));  // rank 0 has made the folder
  data.read(start.vocabulary, data_folder(folder));
  const std::unique_ptr<ModelTask> task = make_task(request, data.parts());
  if (start.folder) task->start_from(start.folder->model);
  start.folder.reset();
  task->watch_evaluations(request.options.stop);
  task->divide(ranks);
  if (request.before_training) request.before_training();
  RunOptions options = request.options;
  options.ranks = &ranks;
  return run(*task, folder, request.train, options);
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
