// SPDX-License-Identifier: Apache-2.0
#include "performer/train/language_model_run.h"

#include <ATen/ATen.h>
#include <sys/stat.h>

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/data/byte_source.h"
#include "performer/data/inputs.h"
#include "performer/data/labels.h"
#include "performer/data/store.h"
#include "performer/train/progress.h"
#include "performer/train/task_kinds.h"

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
void check_files(const LanguageModelRequest& request, const std::optional<data::Vocabulary>& vocabulary,
                 int ranks) {
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
  data::check_inputs(request.train_files, request.data, vocabulary);
  if (!request.valid_files.empty()) data::check_inputs(request.valid_files, request.data, vocabulary);
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

// Labels and weights of a run's sequences; what is not asked for is empty.
class Tables {
 public:
  explicit Tables(const TaskConfig& task) {
    const data::LabelColumns columns{task.id_column, task.label_column};
    if (task.has_head()) labels_.emplace(task.labels, task.form(), columns);
    if (!task.weights.empty()) weights_.emplace(task.weights);
    check<UsageError>(
        !weights_ || !labels_ || !labels_->has_weights(),
        "task.weights = {} and the weights in task.labels = {} exclude each other: leave one out",
        task.weights, task.labels);
  }

  const data::LabelTable* labels() const { return labels_ ? &*labels_ : nullptr; }
  data::LabelledSequences sequences() const { return {labels(), weights_ ? &*weights_ : nullptr}; }
  // What a store asks of each record; the labels of those it takes go to `sequences`.
  data::RecordFilter filter(data::LabelledSequences& sequences) const {
    if (!labels_ && !weights_) return {};
    return [&sequences](const data::Record& record, const std::string& format) {
      return sequences.take(record, format);
    };
  }

  void report(const data::LabelledSequences& train, const data::LabelledSequences& valid) const {
    Progress messages(false);
    for (const auto& [part, what] :
         {std::pair{&train, "training sequences"}, std::pair{&valid, "held-out sequences"}}) {
      for (const std::string& line : part->report(what)) messages.warning(line);
    }
    if (!labels_) return;
    const std::string unused = unused_labels(*labels_, {&train, &valid});
    if (!unused.empty()) messages.warning(unused);
    if (labels_->repeated() > 0)
      messages.message(
          fmt::format("{}: {} rows repeat an earlier one", labels_->name(), labels_->repeated()));
  }

 private:
  std::optional<data::LabelTable> labels_;
  std::optional<data::WeightTable> weights_;
};

// What is evaluated on; null when that is nothing. Format, vocabulary and image shape are those of the
// training sequences.
std::unique_ptr<data::Corpus> open_held_out(const LanguageModelRequest& request, const data::Corpus& train,
                                            const std::string& folder, const data::RecordFilter& filter) {
  DataConfig config = request.data;
  data::record_source(config, train);
  const data::Vocabulary& vocabulary = train.vocabulary();
  if (!request.valid_files.empty()) {
    return std::make_unique<data::SequenceStore>(request.valid_files, folder, config, data::HashSplit{},
                                                 vocabulary, request.reading, filter);
  }
  if (!holds_out(request)) return nullptr;
  try {
    return std::make_unique<data::SequenceStore>(request.train_files, folder, config,
                                                 split(request, data::HashSplit::Side::held_out), vocabulary,
                                                 request.reading, filter);
  } catch (const InputError&) {  // the files themselves were read without complaint just before
    Progress(false).warning(
        fmt::format("none of the {} {} falls into the held-out part (data.holdout = {}): there will be no "
                    "evaluation; give --valid files or raise data.holdout",
                    train.size(), train.report().records_name, request.data.holdout));
    return nullptr;
  }
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

// Where a rank keeps what it read: in the folder of the run, or on a machine that does not see it in the
// system's temporary folder.
std::string data_folder(const RunFolder& folder) {
  if (folder.writes() || std::filesystem::is_directory(folder.path())) return folder.path();
  return std::filesystem::temp_directory_path().string();
}

RunResult run_on(distributed::Communicator& ranks, const LanguageModelRequest& request) {
  Start start = find_start(request);
  const Tables tables(request.task);
  const RunFolder folder(request.output, request.resume, ranks.rank() == 0);
  check_files(request, start.vocabulary, ranks.size());
  ranks.sum(at::zeros({1}));  // rank 0 has made the folder
  const std::string place = data_folder(folder);
  data::LabelledSequences train_labels = tables.sequences(), valid_labels = tables.sequences();
  const data::SequenceStore train(request.train_files, place, request.data,
                                  split(request, data::HashSplit::Side::train), start.vocabulary,
                                  request.reading, tables.filter(train_labels));
  const std::unique_ptr<data::Corpus> valid =
      open_held_out(request, train, place, tables.filter(valid_labels));
  tables.report(train_labels, valid_labels);
  const std::unique_ptr<ModelTask> task =
      make_task(request, {train, valid.get(), train_labels, &valid_labels, tables.labels()});
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
