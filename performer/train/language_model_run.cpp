// SPDX-License-Identifier: Apache-2.0
#include "performer/train/language_model_run.h"

#include <algorithm>
#include <memory>

#include "performer/base/error.h"
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
  const bool from_input = std::ranges::find(request.train_files, "-") != request.train_files.end();
  check<UsageError>(!from_input || !holds_out(request),
                    "standard input (--train -) can be read only once, and holding sequences out takes two "
                    "passes: give --valid files, a training file, or data.holdout = 0");
  check<UsageError>(request.options.time_limit >= 0,
                    "the time limit must be 0 (none) or more seconds, but is {}", request.options.time_limit);
}

data::HashSplit split(const LanguageModelRequest& request, data::HashSplit::Side side) {
  if (!holds_out(request)) return {};
  return {side, request.data.holdout, static_cast<uint64_t>(request.data.seed)};
}

// What is evaluated on; null when that is nothing. Format, vocabulary and image shape are those of the
// training sequences.
std::unique_ptr<data::Corpus> open_held_out(const LanguageModelRequest& request, const data::Corpus& train) {
  DataConfig config = request.data;
  data::record_source(config, train);
  const data::Vocabulary& vocabulary = train.vocabulary();
  if (!request.valid_files.empty()) {
    return std::make_unique<data::SequenceStore>(request.valid_files, request.output, config,
                                                 data::HashSplit{}, vocabulary);
  }
  if (!holds_out(request)) return nullptr;
  try {
    return std::make_unique<data::SequenceStore>(request.train_files, request.output, config,
                                                 split(request, data::HashSplit::Side::held_out), vocabulary);
  } catch (const InputError&) {  // the files themselves were read without complaint just before
    Progress(false).warning(
        fmt::format("none of the {} {} falls into the held-out part (data.holdout = {}): there will be no "
                    "evaluation; give --valid files or raise data.holdout",
                    train.size(), train.report().records_name, request.data.holdout));
    return nullptr;
  }
}

}  // namespace

RunResult run(const LanguageModelRequest& request) {
  validate_request(request);
  const RunFolder folder(request.output, request.resume);
  const data::SequenceStore train(request.train_files, folder.path(), request.data,
                                  split(request, data::HashSplit::Side::train));
  const std::unique_ptr<data::Corpus> valid = open_held_out(request, train);
  LanguageModelTask task(request, train, valid.get());
  return run(task, folder, request.train, request.options);
}

}  // namespace performer::train
