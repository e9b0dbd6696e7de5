// SPDX-License-Identifier: Apache-2.0
#include "cli/inputs.h"

#include <spdlog/spdlog.h>

#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "cli/heartbeat.h"
#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/data/inputs.h"
#include "performer/data/reader.h"
#include "performer/nn/attention/kind.h"
#include "performer/studies/experiment.h"

namespace performer::cli {
namespace fs = std::filesystem;

namespace {

bool is_folder(const std::string& path) {
  std::error_code ignored;
  return path != "-" && fs::is_directory(path, ignored);
}

bool is_model(const std::string& path) {
  std::error_code ignored;
  return is_folder(path) && fs::exists(fs::path(path) / "config.json", ignored);
}

// Whether `path` is `folder` or lies in it, at any depth, links resolved; it need not exist.
bool lies_in(const std::string& path, const std::string& folder) {
  std::error_code error;
  const fs::path inner = fs::weakly_canonical(fs::absolute(path, error), error);
  if (error) return false;
  const fs::path outer = fs::canonical(folder, error);
  if (error) return false;
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

// Whether data that go to standard output would end in a file that is read.
bool standard_output_is(const std::string& input) {
  struct stat out {
  }, in{};
  const bool regular = ::fstat(STDOUT_FILENO, &out) == 0 && S_ISREG(out.st_mode);
  const bool known = (input == "-" ? ::fstat(STDIN_FILENO, &in) : ::stat(input.c_str(), &in)) == 0;
  return regular && known && out.st_dev == in.st_dev && out.st_ino == in.st_ino;
}

void refuse(const std::string& output, const std::string& input) {
  throw UsageError(fmt::format("{} is also an input ({}), which would be lost: write to another place",
                               output, data::source_name(input)));
}

}  // namespace

void refuse_input_as_output(const std::string& output, const std::vector<std::string>& inputs,
                            const std::string& model) {
  const bool to_standard_output = output.empty() || output == "-";
  const std::string name = to_standard_output ? "standard output" : "-o " + output;
  struct stat status {};
  // A pipe or a device may well be both, such as a terminal.
  const bool device = !to_standard_output && ::stat(output.c_str(), &status) == 0 && !S_ISREG(status.st_mode);
  if (device) return;
  const auto is_output = [&](const std::string& path) {
    return to_standard_output ? standard_output_is(path) : same_file(output, path);
  };
  for (const std::string& input : inputs) {
    if (is_folder(input)) {
      if (!to_standard_output && lies_in(output, input)) refuse(name, input);
      std::error_code error;
      for (fs::recursive_directory_iterator entry(input, error), end; !error && entry != end;
           entry.increment(error)) {
        if (is_output(entry->path().string())) refuse(name, entry->path().string());
      }
    } else if (is_output(input)) {
      refuse(name, input);
    }
  }
  std::error_code error;
  if (!is_folder(model)) return;
  for (const auto& entry : fs::directory_iterator(model, error)) {
    if (studies::is_result_file(entry.path().filename().string())) continue;
    if (is_output(entry.path().string())) refuse(name, entry.path().string());
  }
}

void refuse_input_as_folder(const std::string& output, const std::vector<std::string>& inputs,
                            const std::string& model, const std::vector<std::string>& endings) {
  if (output.empty()) return;
  const std::string name = "-o " + output;
  check<UsageError>(model.empty() || !same_file(output, model),
                    "{} is the model folder that is read: choose another folder", name);
  for (const std::string& input : inputs) {
    if (is_folder(input)) {
      check<UsageError>(!lies_in(output, input),
                        "{} lies in the folder {}, which is read: choose a folder outside it", name, input);
    } else if (input != "-") {
      const fs::path path(input), folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
      const bool alike = std::ranges::find(endings, path.extension().string()) != endings.end();
      if (alike && same_file(output, folder.string())) refuse(name, input);
    }
  }
}

ModelFolder load_model_before(const std::string& model, const std::vector<std::string>& inputs) {
  std::error_code ignored;
  if (fs::exists(model, ignored) && !is_folder(model)) {
    const auto other = std::ranges::find_if(inputs, is_model);
    check<UsageError>(other == inputs.end(),
                      "{} is a file, but the first argument must be the model folder: {} is one, so write {} "
                      "first",
                      model, other == inputs.end() ? "" : *other, other == inputs.end() ? "" : *other);
    const fs::path folder = fs::path(model).parent_path();
    check<UsageError>(!is_model(folder.string()), "{} is a file of a model folder: give the folder, {}",
                      model, folder.string());
    throw InputError(
        fmt::format("{} is a file, but a model is a folder, as performer train -o DIR makes it", model));
  }
  ModelFolder folder = load_model(model);
  const std::string notice = nn::notice_of(folder.model->model_config(), folder.model->attention_config());
  if (!notice.empty()) spdlog::info("{}", notice);
  return folder;
}

void check_model_inputs(const std::vector<std::string>& inputs, const ModelFolder& folder) {
  for (const std::string& input : inputs) {
    check<InputError>(!is_model(input), "{} is a model folder, but data are expected here", input);
  }
  data::check_inputs(inputs, folder.data, folder.vocabulary);
  data::list_inputs(inputs);  // one that can be read only once is not given twice
}

int64_t scoring_markers(const ModelFolder& folder) {
  return folder.model->model_config().objective == "causal" ? 0 : 2;
}

void check_lengths(const std::vector<std::string>& inputs, const ModelFolder& folder, int64_t markers) {
  const ModelConfig& config = folder.model->model_config();
  if (!limits_length(config)) return;
  const data::ReadProgress progress = tell_reading();
  for (const std::string& input : inputs) {
    if (!data::can_be_read_twice(input)) continue;
    const auto reader = data::open_reader(std::vector{input}, folder.data, folder.vocabulary, progress);
    for (data::Record record; reader->next(record);) {
      const int64_t length = std::ssize(record.tokens);
      check<InputError>(
          length + markers <= config.max_length,
          "{}: record {} ('{}'{}) has {} {}, but this model's positions cover {}: leave it out, or use a "
          "model with rotary or sinusoidal positions",
          input, record.number, shown(record.id),
          record.line > 0 ? fmt::format(", line {}", record.line) : "", length, folder.vocabulary.unit(),
          config.max_length - markers);
    }
  }
}

void check_lengths(const data::Corpus& corpus, const ModelFolder& folder) {
  const ModelConfig& config = folder.model->model_config();
  if (!limits_length(config)) return;
  const int64_t markers = config.objective == "causal" ? 1 : 2;
  for (int64_t i = 0; i < corpus.size(); ++i) {
    const int64_t length = std::ssize(corpus.tokens(i));
    check<InputError>(
        length + markers <= config.max_length,
        "sequence {} has {} {}, but this model's positions cover {}, markers not counted: leave "
        "it out, or use a model with rotary or sinusoidal positions",
        i + 1, length, folder.vocabulary.unit(), config.max_length - markers);
  }
}

int64_t count_tokens(const std::vector<std::string>& files, const ModelFolder& folder) {
  if (!std::ranges::all_of(files, data::can_be_read_twice)) return 0;
  const auto reader = data::open_reader(files, folder.data, folder.vocabulary, tell_reading());
  for (data::Record record; reader->next(record);) {
  }
  return reader->report().tokens;
}

std::string sources_text(const std::vector<std::string>& files) {
  return files.size() == 1 ? data::source_name(files[0]) : fmt::format("{}", fmt::join(files, ", "));
}

std::string temporary_folder() {
  const char* variable = std::getenv("TMPDIR");
  const bool given = variable != nullptr && *variable != '\0';
  const std::string folder = given ? variable : "/tmp";
  struct stat status {};
  std::string reason;
  if (::stat(folder.c_str(), &status) != 0) {
    reason = std::strerror(errno);
  } else if (!S_ISDIR(status.st_mode)) {
    reason = "it is no folder";
  } else if (::access(folder.c_str(), W_OK | X_OK) != 0) {
    reason = std::strerror(errno);
  }
  check(reason.empty(),
        "cannot keep temporary files in {}{}: {}; set TMPDIR to a folder that can be written to", folder,
        given ? ", which the variable TMPDIR names" : "", reason);
  return folder;
}

}  // namespace performer::cli
