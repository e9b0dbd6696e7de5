// SPDX-License-Identifier: Apache-2.0
#include "performer/train/run_data.h"

#include <sys/stat.h>

#include <map>
#include <utility>

#include "performer/base/error.h"
#include "performer/data/byte_source.h"
#include "performer/data/inputs.h"
#include "performer/train/progress.h"

namespace performer::train {
namespace {

bool holds_out(const LanguageModelRequest& request) {
  return request.valid_files.empty() && request.data.holdout > 0;
}

// Before any file is worked on: what can be said about all of them.
void check_files(const LanguageModelRequest& request, const std::optional<data::Vocabulary>& vocabulary,
                 int ranks) {
  for (const std::string& path : request.train_files) {
    check<UsageError>(ranks == 1 || data::can_be_read_twice(path),
                      "{} can be read only once, and of {} ranks the first one on each machine reads the "
                      "data: store them in a "
                      "file first",
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

}  // namespace

// Labels and weights of a run's sequences; what is not asked for is empty.
class RunData::Tables {
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

  // To gather those of a part of the sequences.
  data::LabelledSequences gatherer() const {
    return {labels_ ? &*labels_ : nullptr, weights_ ? &*weights_ : nullptr};
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

RunData::RunData(const LanguageModelRequest& request, distributed::Machine& machine)
    : request_(request), machine_(machine) {
  if (machine_.is_first()) tables_ = std::make_shared<const Tables>(request.task);
}

void RunData::read(const std::optional<data::Vocabulary>& vocabulary, const std::string& directory) {
  if (machine_.is_first()) check_files(request_, vocabulary, machine_.ranks());
  share(train_, [&](Part& part) { read_train(part, vocabulary, directory); });
  share(valid_, [&](Part& part) { read_held_out(part, directory); });
  if (machine_.is_first()) tables_->report(train_.labels, valid_.labels);
}

void RunData::share(Part& part, const std::function<void(Part& part)>& read) {
  if (machine_.is_first()) {
    part.labels = tables_->gatherer();
    read(part);
  }
  const std::optional<int> file = machine_.share(part.store ? part.store->file().descriptor() : -1);
  if (!file) return;
  part.store = std::make_unique<data::SequenceStore>(
      data::SectionFile(*file, fmt::format("the file of the sequences that rank {} read", machine_.first())));
  part.labels = data::LabelledSequences(part.store->file(), part.store->offsets());
}

void RunData::read_train(Part& part, const std::optional<data::Vocabulary>& vocabulary,
                         const std::string& directory) {
  part.store = std::make_unique<data::SequenceStore>(request_.train_files, directory, request_.data,
                                                     split(request_, data::HashSplit::Side::train),
                                                     vocabulary, request_.reading, &part.labels);
}

// Format, vocabulary and image shape are those of the training sequences.
void RunData::read_held_out(Part& part, const std::string& directory) {
  const data::SequenceStore& train = *train_.store;
  DataConfig config = request_.data;
  data::record_source(config, train);
  const auto read = [&](const std::vector<std::string>& files, const data::HashSplit& split) {
    part.store = std::make_unique<data::SequenceStore>(files, directory, config, split, train.vocabulary(),
                                                       request_.reading, &part.labels);
  };
  if (!request_.valid_files.empty()) return read(request_.valid_files, {});
  if (!holds_out(request_)) return;
  try {
    read(request_.train_files, split(request_, data::HashSplit::Side::held_out));
  } catch (const InputError&) {  // the files themselves were read without complaint just before
    Progress(false).warning(
        fmt::format("none of the {} {} falls into the held-out part (data.holdout = {}): there will be no "
                    "evaluation; give --valid files or raise data.holdout",
                    train.size(), train.report().records_name, request_.data.holdout));
  }
}

}  // namespace performer::train
