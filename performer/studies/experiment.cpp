// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/experiment.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <sstream>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/data/json.h"
#include "performer/models/safetensors.h"

namespace performer::studies {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostOfAFile = size_t{1} << 30;     // metrics of some million steps
constexpr size_t kMostOfResults = size_t{64} << 20;  // a JSON file, a picture
constexpr size_t kMostOfASample = 4000;              // bytes that are shown
constexpr size_t kMostSamples = 24;

// What a message says of a file whose values are others than this program writes.
constexpr const char* kForeign =
    "not as this program writes it (write it anew, or move it out of the folder)";

Json read_result(const fs::path& path) {
  return data::parse_json_object<Json>(read_file(path.string(), kMostOfResults), path.string());
}

// The files of a folder, sorted.
std::vector<fs::path> files_of(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) files.push_back(entry.path());
  check<InputError>(!error, "cannot read the folder {}: {}", folder.string(), error.message());
  std::sort(files.begin(), files.end());
  return files;
}

void flatten(const Json& json, const std::string& prefix, std::map<std::string, std::string>& settings) {
  for (const auto& [key, value] : json.items()) {
    if (value.is_object()) {
      flatten(value, prefix + key + ".", settings);
    } else {
      settings[prefix + key] = value.is_string() ? value.get<std::string>() : value.dump();
    }
  }
}

// The settings that the checkpoint recorded, those of the training included, else those of the model.
std::map<std::string, std::string> settings_of(const fs::path& folder, const Json& config) {
  const fs::path checkpoint = folder / "training.safetensors";
  if (fs::exists(checkpoint)) {
    const auto metadata = read_safetensors_metadata(checkpoint.string());
    const auto found = metadata.find("settings");
    check<InputError>(found != metadata.end(),
                      "{} holds no settings: it is not a checkpoint of performer train", checkpoint.string());
    return data::read_json(checkpoint.string(), "damaged settings", [&] {
      return nlohmann::json::parse(found->second).get<std::map<std::string, std::string>>();
    });
  }
  std::map<std::string, std::string> settings;
  for (const char* section : {"model", "attention", "data"}) {
    if (config.contains(section)) flatten(config[section], std::string(section) + ".", settings);
  }
  return settings;
}

double number_at(const Json& record, const char* key) {
  const auto found = record.find(key);
  return found != record.end() && found->is_number() ? found->get<double>()
                                                     : std::numeric_limits<double>::quiet_NaN();
}

void add_record(Experiment& experiment, const Json& record) {
  CurvePoint point;
  point.step = number_at(record, "step");
  experiment.numbers["step"] = record.at("step");
  if (record.contains("final")) {
    experiment.numbers["final"] = record["final"];
  } else if (record.contains("valid")) {
    const Json& valid = record["valid"];
    experiment.numbers["valid"] = valid;
    if (!experiment.steps.empty()) {
      point.tokens = experiment.steps.back().tokens;
      point.seconds = experiment.steps.back().seconds;
    }
    if (valid.contains("kind")) experiment.numbers["predictions"]["held out during the training"] = valid;
    if (!valid.contains("model") || !valid["model"].is_object()) return;
    point.loss = std::log(number_at(valid["model"], "perplexity"));
    point.accuracy = number_at(valid["model"], "accuracy");
    experiment.held_out.push_back(point);
  } else {
    point.tokens = number_at(record, "tokens");
    point.seconds = number_at(record, "seconds");
    point.loss = number_at(record, "loss");
    point.accuracy = number_at(record, "accuracy");
    experiment.steps.push_back(point);
  }
}

void read_metrics(Experiment& experiment, const fs::path& path, bool unfinished) {
  check<InputError>(fs::exists(path),
                    "{} has no metrics.jsonl: a report is made of the folder that performer train -o wrote",
                    experiment.path);
  std::istringstream lines(read_file(path.string(), kMostOfAFile));
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    const bool cut = lines.eof();  // a line without its end: the process is writing it, or was killed
    const Json record = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (cut && unfinished && record.is_discarded()) break;
    check<InputError>(
        record.is_object() && record.contains("step") && record["step"].is_number(),
        "{}:{}: expected a JSON object with a step{}", path.string(), number,
        cut ? ", but the line is cut off: the run is not finished (--unfinished shows it so far)" : "");
    add_record(experiment, record);
  }
  check<InputError>(number > 0, "{} is empty: the run has not taken its first step", path.string());
  check<InputError>(
      unfinished || !experiment.numbers["final"].is_null(),
      "{} holds a run that is not finished: its last record is of step {}. Wait for it, continue it with "
      "performer train --resume, or show it so far with --unfinished",
      experiment.path, experiment.numbers["step"].dump());
}

bool is_evaluation(const fs::path& path) {
  return path.filename().string().starts_with("evaluation") && path.extension() == ".json";
}

// evaluation-heldout.json is "heldout"; evaluation.json is "evaluation".
std::string evaluation_name(const fs::path& path) {
  const std::string stem = path.stem().string(), rest = stem.substr(std::string_view("evaluation").size());
  const size_t begin = rest.find_first_not_of("-_.");
  return begin == std::string::npos ? stem : rest.substr(begin);
}

void read_evaluation(Experiment& experiment, const fs::path& path) {
  const Json json = read_result(path);
  if (json.contains("kind") && json.contains("labels")) {
    experiment.numbers["predictions"][evaluation_name(path)] = json;
    return;
  }
  check<InputError>(
      json.contains("model") && json["model"].is_object() && json["model"].contains("perplexity"),
      "{} does not hold results of performer evaluate --json", path.string());
  experiment.numbers["evaluations"][evaluation_name(path)] = json;
}

void read_sample(Experiment& experiment, const fs::path& path) {
  const std::string name = path.filename().string(), ending = path.extension().string();
  if (!name.starts_with("samples") && !name.starts_with("generated")) return;
  if (experiment.samples.size() >= kMostSamples || fs::is_directory(path)) return;
  WrittenSample sample{name, "", "", false};
  if (ending == ".png") {
    sample.png = read_file(path.string(), kMostOfResults);
  } else if (ending == ".fasta" || ending == ".fa" || ending == ".txt") {
    sample.text = read_file(path.string(), kMostOfAFile);
    sample.cut = sample.text.size() > kMostOfASample;
    sample.text.resize(std::min(sample.text.size(), kMostOfASample));
  } else {
    return;
  }
  experiment.samples.push_back(std::move(sample));
}

bool is_of_variants(const fs::path& path) {
  return path.filename().string().starts_with("variants");
}

void read_variant_map(Experiment& experiment, const fs::path& path) {
  if (!is_of_variants(path) || path.extension() != ".svg" || fs::is_directory(path)) return;
  const std::string name = path.filename().string();
  experiment.variant_maps.push_back(
      {name, read_file(path.string(), kMostOfResults), "Effects of variants: " + name});
}

void read_attention(Experiment& experiment, const fs::path& folder) {
  if (!experiment.numbers["attention"].is_null() || !fs::exists(folder / "attention.json")) return;
  const std::string path = (folder / "attention.json").string();
  experiment.numbers["attention"] = read_result(path);
  data::read_json(path, kForeign, [&] {
    for (const Json& sequence : experiment.numbers["attention"].at("sequences")) {
      for (const Json& picture : sequence.at("pictures")) {
        const auto name = data::json_field<std::string>(picture, "file", path);
        check<InputError>(fs::path(name).filename() == name, "{}: the picture {} does not lie beside it",
                          path, name);
        experiment.attention_pictures.push_back(
            {name, read_file((folder / name).string(), kMostOfResults),
             data::json_field<std::string>(picture, "description", path)});
      }
    }
  });
}

void read_approximation(Experiment& experiment, const fs::path& folder) {
  if (!experiment.numbers["approximation"].is_null() || !fs::exists(folder / "model_heads.json")) return;
  experiment.numbers["approximation"] = {{"heads", read_result(folder / "model_heads.json")},
                                         {"errors", nullptr}};
  if (fs::exists(folder / "model_errors.json"))
    experiment.numbers["approximation"]["errors"] = read_result(folder / "model_errors.json");
}

void read_results(Experiment& experiment, const fs::path& folder) {
  const std::vector<fs::path> files = files_of(folder);
  for (const fs::path& path : files) {
    if (is_evaluation(path)) read_evaluation(experiment, path);
    if (path.filename() == "results.json") experiment.numbers["results"] = read_result(path);
    read_sample(experiment, path);
    read_variant_map(experiment, path);
  }
  std::vector<fs::path> places = {folder};
  std::copy_if(files.begin(), files.end(), std::back_inserter(places),
               [](const fs::path& path) { return fs::is_directory(path); });
  for (const fs::path& place : places) {
    read_attention(experiment, place);
    read_approximation(experiment, place);
  }
}

}  // namespace

Experiment read_experiment(const std::string& path, bool unfinished) {
  const fs::path folder(path);
  check<InputError>(fs::exists(folder), "{} does not exist: give the folders that performer train -o wrote",
                    path);
  check<InputError>(fs::is_directory(folder), "{} is a file: give the folders that performer train -o wrote",
                    path);
  check<InputError>(
      fs::exists(folder / "config.json"),
      "{} is not the folder of a run: it has no config.json. Give the folders that performer train -o "
      "wrote; a run writes it with its first checkpoint",
      path);
  Experiment experiment;
  experiment.path = path;
  const fs::path absolute = fs::weakly_canonical(folder);
  experiment.name = absolute.filename().string();
  const Json config = read_result(folder / "config.json");
  experiment.settings = settings_of(folder, config);
  experiment.numbers = {{"step", nullptr},
                        {"final", nullptr},
                        {"valid", nullptr},
                        {"evaluations", Json::object()},
                        {"predictions", Json::object()},
                        {"results", nullptr},
                        {"attention", nullptr},
                        {"approximation", nullptr},
                        {"provenance", config.value("provenance", Json())}};
  const fs::path metrics = folder / "metrics.jsonl";
  data::read_json(metrics.string(), kForeign, [&] { read_metrics(experiment, metrics, unfinished); });
  read_results(experiment, folder);
  return experiment;
}

bool is_result_file(const std::string& name) {
  const fs::path path(name);
  return is_evaluation(path) || name == "results.json" || is_of_variants(path) ||
         (name.starts_with("report") && path.extension() == ".html");
}

}  // namespace performer::studies
