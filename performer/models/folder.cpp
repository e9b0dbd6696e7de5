// SPDX-License-Identifier: Apache-2.0
#include "performer/models/folder.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/base/printable.h"
#include "performer/data/json.h"
#include "performer/models/bounds.h"

namespace performer {
namespace {

namespace fs = std::filesystem;
using data::is_int64;
using nlohmann::json;

constexpr const char* kConfigFile = "config.json";
constexpr const char* kTokenizerFile = "tokenizer.json";
constexpr const char* kBaselinesFile = "baselines.json";
constexpr const char* kWeightsFile = "model.safetensors";
constexpr const char* kHeadFile = "head.safetensors";
// More than any file that is written has; a tokenizer has 65,532 symbols of together 16 MiB, of which escapes
// make up to five times as much.
constexpr size_t kMostConfigBytes = size_t{1} << 20, kMostTokenizerBytes = size_t{96} << 20,
                 kMostBaselinesBytes = size_t{32} << 20;

template <class Config>
json write_section(const Config& config) {
  json section = json::object();
  for (const FieldInfo& field : list_fields("", config)) {
    std::visit([&](const auto& value) { section[field.name] = value; }, field.value);
  }
  return section;
}

bool matches(const json& value, const FieldValue& wanted) {
  if (std::holds_alternative<bool>(wanted)) return value.is_boolean();
  if (std::holds_alternative<double>(wanted)) return value.is_number();
  return std::holds_alternative<int64_t>(wanted) ? is_int64(value) : value.is_string();
}

// As set_field() takes it; JSON writes numbers so that they come back as they were.
std::string text_of(const json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

void check_known_keys(const json& object, const std::vector<std::string>& known, const std::string& prefix,
                      const std::string& path) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    const std::string near = nearest(key, known);
    throw InputError(
        fmt::format("{}: unknown key '{}{}'{}", path, prefix, key,
                    near.empty() ? "" : fmt::format("; the nearest known one is '{}{}'", prefix, near)));
  }
}

// Fills `config` from the object at `name`. A key that is absent keeps its default: fields are added between
// formats only when their default means what older programs did.
template <class Config>
void read_section(const json& root, const std::string& name, Config& config, const std::string& path) {
  check<InputError>(root.contains(name) && root[name].is_object(), "{}: the section '{}' is missing", path,
                    name);
  const json& section = root[name];
  try {
    // The first of the fields may decide which others there are (attention.kind).
    const std::string first = list_fields(name, config).front().name;
    if (section.contains(first)) set_field(name, config, first, text_of(section[first]));
    std::vector<std::string> known;
    for (const FieldInfo& field : list_fields(name, config)) {
      known.push_back(field.name);
      if (!section.contains(field.name)) continue;
      const json& value = section[field.name];
      check<InputError>(matches(value, field.value), "{}: {} must be {}, not {}", path, field.key(),
                        type_name(field.value), shown(value.dump()));
      set_field(name, config, field.name, text_of(value));
    }
    check_known_keys(section, known, name + ".", path);
  } catch (const UsageError& error) {  // here it is the file that is wrong, not the request
    throw InputError(fmt::format("{}: {}", path, error.what()));
  }
}

// Reads config.json into everything of the folder but the weights and the baselines.
struct Configuration {
  ModelConfig model;
  AttentionConfig attention;
  DataConfig data;
  std::string objective_note, from;
};

void check_format(const json& root, const std::string& path) {
  check<InputError>(root.contains("format") && is_int64(root["format"]),
                    "{} has no format number: it is not the configuration of a performer model", path);
  const int64_t format = root["format"].get<int64_t>();
  check<InputError>(format <= kModelFormat,
                    "{} has format {}, this program reads formats up to {}: use a newer performer", path,
                    format, kModelFormat);
  check<InputError>(format == kModelFormat,
                    "{} has format {}, which this program no longer reads (it reads format {}): train the "
                    "model again, or use the performer that wrote it",
                    path, format, kModelFormat);
}

Configuration read_configuration(const std::string& text, const std::string& path) {
  const json root = data::parse_json_object(text, path);
  check_format(root, path);
  // The folders that transformers writes (python/performer/integrations/transformers) have its keys, too.
  if (!root.contains("transformers_version")) {
    check_known_keys(
        root,
        {"format", "model", "attention", "data", "provenance", "model_type", "architectures", "vocab_size"},
        "", path);
  }
  Configuration configuration;
  read_section(root, "model", configuration.model, path);
  read_section(root, "attention", configuration.attention, path);
  read_section(root, "data", configuration.data, path);
  if (root.contains("provenance")) {
    const json& provenance = root["provenance"];
    const auto is_text = [&](const char* key) {
      return !provenance.contains(key) || provenance[key].is_string();
    };
    check<InputError>(provenance.is_object() && is_text("objective") && is_text("from"),
                      "{}: provenance must be an object whose 'objective' and 'from' are texts", path);
    configuration.objective_note = provenance.value("objective", "");
    configuration.from = provenance.value("from", "");
  }
  try {
    validate(configuration.model, configuration.attention);
    validate(configuration.data);
  } catch (const UsageError& error) {  // here it is the file that is wrong, not the request
    throw InputError(fmt::format("{}: {}", path, error.what()));
  }
  return configuration;
}

data::Baselines read_baselines(const std::string& text, const std::string& path, int64_t symbols) {
  const json root = data::parse_json_object(text, path);
  auto counts = data::json_field<std::vector<int64_t>>(root, "counts", path);
  try {
    return data::Baselines::from_counts(symbols, std::move(counts));
  } catch (const InputError& error) {
    throw InputError(fmt::format("{}: {}", path, error.what()));
  }
}

// That of tokenizer.json, or without that file the built-in one that the configuration names.
data::Vocabulary read_vocabulary(const std::optional<std::string>& text, const DataConfig& config,
                                 const std::string& directory) {
  if (text) return data::Vocabulary::from_json(*text, (fs::path(directory) / kTokenizerFile).string());
  const std::vector<std::string> known = data::vocabulary_names();
  check<InputError>(
      std::find(known.begin(), known.end(), config.vocabulary) != known.end(),
      "{} is not a complete model folder: it has no {}, which is needed because its vocabulary, "
      "{}, is none of the built-in ones ({})",
      directory, kTokenizerFile, config.vocabulary, fmt::join(known, ", "));
  return data::Vocabulary::named(config.vocabulary);
}

LanguageModel build(const Configuration& configuration, int64_t vocabulary, const TensorFile& weights,
                    const std::string& source, const std::string& directory) {
  const auto& [model, attention, data, note, from] = configuration;
  check_weights_suffice(model, attention, vocabulary, weights.tensors, source);
  try {
    return LanguageModel(model, attention, vocabulary);
  } catch (const UsageError& error) {  // here it is the file that is wrong, not the request
    throw InputError(fmt::format("{}: {}", (fs::path(directory) / kConfigFile).string(), error.what()));
  }
}

std::string shape_text(const at::Tensor& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.sizes(), ", "));
}

}  // namespace

std::map<std::string, at::Tensor> model_state(const LanguageModel& model) {
  std::map<std::string, at::Tensor> state;
  for (const auto& item : model->named_parameters()) state[item.key()] = item.value().detach();
  for (const auto& item : model->named_buffers()) state[item.key()] = item.value().detach();
  return state;
}

void set_model_state(LanguageModel& model, const std::map<std::string, at::Tensor>& state,
                     const std::string& source) {
  auto targets = model_state(model);
  for (const auto& [name, target] : targets) {
    const auto found = state.find(name);
    check<InputError>(found != state.end(), "{} is of another architecture: it has no tensor '{}' {}", source,
                      name, shape_text(target));
    check<InputError>(found->second.sizes().equals(target.sizes()),
                      "{} is of another architecture: tensor '{}' is {}, expected {}", source, name,
                      shape_text(found->second), shape_text(target));
    check<InputError>(found->second.is_floating_point() == target.is_floating_point(),
                      "{}: tensor '{}' is of type {}, expected {}", source, name,
                      c10::toString(found->second.scalar_type()), c10::toString(target.scalar_type()));
  }
  for (const auto& [name, tensor] : state) {
    check<InputError>(targets.contains(name),
                      "{} is of another architecture: its tensor '{}' {} has no place in this model", source,
                      name, shape_text(tensor));
  }
  const at::NoGradGuard no_grad;
  for (auto& [name, target] : targets) target.copy_(state.at(name));
}

void save_model(const std::string& directory, const ModelFolder& folder) {
  const int64_t symbols = folder.vocabulary.symbols();
  check(folder.model->vocabulary() == folder.vocabulary.size() && folder.baselines.symbols() == symbols,
        "a model of {} tokens with baselines of {} symbols cannot be saved with the vocabulary {}, which has "
        "{} symbols and 4 markers",
        folder.model->vocabulary(), folder.baselines.symbols(), folder.vocabulary.name(), symbols);
  make_directories(directory);
  const fs::path base(directory);
  write_safetensors((base / kWeightsFile).string(), {model_state(folder.model), {{"format", "performer"}}});
  write_file((base / kTokenizerFile).string(), folder.vocabulary.to_json());
  if (folder.has_baselines) {
    write_file((base / kBaselinesFile).string(), json{{"counts", folder.baselines.counts()}}.dump() + "\n");
  }
  if (!folder.head.is_empty()) write_safetensors((base / kHeadFile).string(), head_file(folder.head));
  const bool causal = folder.model->model_config().objective == "causal";
  json config = {
      // What transformers asks of a configuration.
      {"model_type", "performer"},
      {"architectures", {causal ? "PerformerForCausalLM" : "PerformerForMaskedLM"}},
      {"vocab_size", folder.vocabulary.size()},
      {"format", kModelFormat},
      {"model", write_section(folder.model->model_config())},
      {"attention", write_section(folder.model->attention_config())},
      {"data", write_section(folder.data)},
      {"provenance", {{"objective", folder.objective_note}, {"parameters", folder.model->parameter_count()}}},
  };
  if (!folder.from.empty()) config["provenance"]["from"] = printable(folder.from);
  write_file((base / kConfigFile).string(), config.dump(2) + "\n");  // last: a folder with it is complete
}

ModelFolder parse_model(const std::string& directory, const ModelTexts& texts,
                        const std::function<TensorFile()>& read_weights) {
  const fs::path base(directory);
  const Configuration configuration = read_configuration(texts.config, (base / kConfigFile).string());
  ModelFolder folder;
  folder.vocabulary = read_vocabulary(texts.tokenizer, configuration.data, directory);
  folder.data = configuration.data;
  folder.objective_note = configuration.objective_note;
  folder.from = configuration.from;
  const int64_t symbols = folder.vocabulary.symbols();
  folder.has_baselines = texts.baselines.has_value();
  folder.baselines = folder.has_baselines
                         ? read_baselines(*texts.baselines, (base / kBaselinesFile).string(), symbols)
                         : data::Baselines(symbols);
  const TensorFile weights = read_weights();
  const std::string source = (base / kWeightsFile).string();
  folder.model = build(configuration, folder.vocabulary.size(), weights, source, directory);
  set_model_state(folder.model, weights.tensors, source);
  folder.model->eval();
  return folder;
}

namespace {

void check_complete(const fs::path& base) {
  check<InputError>(fs::is_directory(base), "there is no model folder {}", base.string());
  for (const char* file : {kConfigFile, kWeightsFile}) {
    check<InputError>(fs::exists(base / file), "{} is not a complete model folder: it has no {}",
                      base.string(), file);
  }
}

}  // namespace

ModelSettings read_model_settings(const std::string& directory) {
  const fs::path base(directory);
  check_complete(base);
  const std::string path = (base / kConfigFile).string();
  const Configuration found = read_configuration(read_file(path, kMostConfigBytes), path);
  return {found.model, found.attention, found.data};
}

ModelFolder load_model(const std::string& directory) {
  const fs::path base(directory);
  check_complete(base);
  const auto text_of_file = [&](const char* file, size_t most) {
    return read_file((base / file).string(), most);
  };
  ModelTexts texts{text_of_file(kConfigFile, kMostConfigBytes)};
  if (fs::exists(base / kTokenizerFile)) texts.tokenizer = text_of_file(kTokenizerFile, kMostTokenizerBytes);
  if (fs::exists(base / kBaselinesFile)) texts.baselines = text_of_file(kBaselinesFile, kMostBaselinesBytes);
  ModelFolder folder =
      parse_model(directory, texts, [&] { return read_safetensors((base / kWeightsFile).string()); });
  if (const std::string head = (base / kHeadFile).string(); fs::exists(head))
    folder.head = parse_head(read_safetensors(head), folder.model->model_config().width, head);
  return folder;
}

}  // namespace performer
