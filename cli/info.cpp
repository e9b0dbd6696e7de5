// SPDX-License-Identifier: Apache-2.0
// performer info: what this build and machine offer, what a model is, and which attention kinds there are.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <fmt/ranges.h>
#include <torch/version.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "cli/kinds.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/process.h"
#include "performer/base/error.h"
#include "performer/kernels/favor.h"
#include "performer/models/folder.h"

namespace performer::cli {

namespace {

using Json = nlohmann::ordered_json;

struct InfoOptions {
  CommonOptions common;
  std::string model;
  std::optional<std::string> kind;  // empty: all kinds
  bool json = false;
};

Json section_json(const std::vector<FieldInfo>& fields) {
  Json json = Json::object();
  for (const auto& field : fields)
    std::visit([&](const auto& value) { json[field.name] = value; }, field.value);
  return json;
}

Json program_json(const std::string& threads_from) {
  Json available = Json::array();
  for (const auto* kernels : kernels::available_favor_kernels()) available.push_back(kernels->name);
  const std::string chosen = kernels::favor_kernels().name;
  Json operations = Json::object();
  for (const char* operation : {"favor_forward", "favor_backward", "favor_step"})
    operations[operation] = chosen;
  return {{"version", PERFORMER_VERSION},
          {"libtorch", TORCH_VERSION},
          {"libtorch_cpu_capability", at::get_cpu_capability()},
          {"cpu_features", cpu_features()},
          {"kernels", operations},
          {"available_targets", available},
          {"threads", at::get_num_threads()},
          {"threads_from", threads_from},
          {"cpus", available_cpus()}};
}

std::string program_text(const Json& json) {
  const auto words = [](const Json& list) {
    return fmt::format("{}", fmt::join(list.get<std::vector<std::string>>(), " "));
  };
  std::string text = fmt::format("performer       {}\n", json["version"].get<std::string>());
  text += fmt::format("LibTorch        {} (CPU capability {})\n", json["libtorch"].get<std::string>(),
                      json["libtorch_cpu_capability"].get<std::string>());
  text += fmt::format("CPU features    {}\n", words(json["cpu_features"]));
  text += fmt::format("threads         {} of {} CPUs (set by {})\n", json["threads"].get<int>(),
                      json["cpus"].get<int>(), json["threads_from"].get<std::string>());
  for (const auto& [operation, target] : json["kernels"].items()) {
    text += fmt::format("{:<16}{}\n", operation, target.get<std::string>());
  }
  return text + fmt::format("targets         {} (PERFORMER_CPU_TARGET=NAME forces one)\n",
                            words(json["available_targets"]));
}

Json head_json(const ModelFolder& folder) {
  if (folder.head.is_empty()) return nullptr;
  const HeadConfig& head = folder.head->config();
  return {{"kind", head.kind}, {"pool", head.pool}, {"classes", head.classes}};
}

Json model_json(const std::string& path, const ModelFolder& folder) {
  const data::Vocabulary& vocabulary = folder.vocabulary;
  return {{"path", path},
          {"parameters", folder.model->parameter_count()},
          {"note", folder.objective_note},
          {"from", folder.from.empty() ? Json() : Json(folder.from)},
          {"head", head_json(folder)},
          {"format", folder.data.format},
          {"vocabulary",
           {{"name", vocabulary.name()}, {"symbols", vocabulary.symbols()}, {"unit", vocabulary.unit()}}},
          {"image_shape", folder.data.image_shape.empty() ? Json() : Json(folder.data.image_shape)},
          {"model", section_json(list_fields("model", folder.model->model_config()))},
          {"attention", section_json(nn::fields_in_use("attention", folder.model->attention_config()))},
          {"data", section_json(list_fields("data", folder.data))}};
}

std::string model_text(const std::string& path, const ModelFolder& folder) {
  const data::Vocabulary& vocabulary = folder.vocabulary;
  std::string text =
      fmt::format("\nmodel           {}\nparameters      {}\n", path, folder.model->parameter_count());
  text += fmt::format("format          {}\n", folder.data.format);
  text += fmt::format("vocabulary      {} ({} symbols, {})\n", vocabulary.name(), vocabulary.symbols(),
                      vocabulary.unit());
  if (!folder.data.image_shape.empty()) text += fmt::format("image shape     {}\n", folder.data.image_shape);
  if (!folder.objective_note.empty()) text += fmt::format("objective       {}\n", folder.objective_note);
  if (!folder.from.empty()) text += fmt::format("fine-tuned      from {}\n", folder.from);
  if (!folder.head.is_empty() && folder.head->config().classifies()) {
    text += fmt::format("classes         {}\n",
                        shown(fmt::format("{}", fmt::join(folder.head->config().classes, ", ")), 200));
  }
  return text + "\n" + section_to_toml("model", folder.model->model_config()) + "\n" +
         fields_to_toml("attention", nn::fields_in_use("attention", folder.model->attention_config())) +
         "\n" + section_to_toml("data", folder.data);
}

void print(const InfoOptions& options, const Json& json, const std::string& text) {
  Output out("-");
  out.write(options.json ? json.dump(2) + "\n" : text);
  out.finish();
}

void run(const InfoOptions& options) {
  options.common.apply();
  if (options.kind) {
    check<UsageError>(options.model.empty(), "--kinds is about all models: leave out the model {}",
                      options.model);
    if (options.kind->empty()) return print(options, {{"kinds", kinds_json()}}, kinds_text());
    const nn::AttentionKind& kind = nn::find_kind(*options.kind);
    return print(options, kind_json(kind), kind_text(kind));
  }
  Json json = program_json(options.common.threads_from);
  std::string text = program_text(json);
  if (!options.model.empty()) {
    const ModelFolder folder = load_model(options.model);
    json["model"] = model_json(options.model, folder);
    text += model_text(options.model, folder);
  }
  print(options, json, text);
}

}  // namespace

Action info_command(CLI::App& app) {
  auto options = std::make_shared<InfoOptions>();
  app.add_option("MODEL", options->model, "model folder");
  app.add_option("--kinds", options->kind,
                 "list the attention kinds by group, or show what one of them can do and its options")
      ->type_name("[NAME]")
      ->expected(0, 1);
  app.add_flag("--json", options->json, "JSON instead of text");
  options->common.add_to(app);
  return [options] { run(*options); };
}

}  // namespace performer::cli
