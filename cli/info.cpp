// SPDX-License-Identifier: Apache-2.0
// performer info: what this build and machine offer, and what a model is.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <fmt/format.h>
#include <torch/version.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/process.h"
#include "performer/kernels/favor.h"
#include "performer/models/folder.h"

namespace performer::cli {

namespace {

using Json = nlohmann::ordered_json;

struct InfoOptions {
  CommonOptions common;
  std::string model;
  bool json = false;
};

Json section_json(const std::vector<FieldInfo>& fields) {
  Json json = Json::object();
  for (const auto& field : fields)
    std::visit([&](const auto& value) { json[field.name] = value; }, field.value);
  return json;
}

Json program_json() {
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
  text += fmt::format("threads         {} of {} CPUs\n", json["threads"].get<int>(), json["cpus"].get<int>());
  for (const auto& [operation, target] : json["kernels"].items()) {
    text += fmt::format("{:<16}{}\n", operation, target.get<std::string>());
  }
  return text + fmt::format("targets         {} (PERFORMER_CPU_TARGET=NAME forces one)\n",
                            words(json["available_targets"]));
}

void run(const InfoOptions& options) {
  options.common.apply();
  Output out("-");
  Json json = program_json();
  std::string text = program_text(json);
  if (!options.model.empty()) {
    const ModelFolder folder = load_model(options.model);
    const ModelConfig& model = folder.model->model_config();
    const AttentionConfig& attention = folder.model->attention_config();
    const int64_t parameters = folder.model->parameter_count();
    json["model"] = {{"path", options.model},
                     {"parameters", parameters},
                     {"note", folder.objective_note},
                     {"model", section_json(list_fields("model", model))},
                     {"attention", section_json(list_fields("attention", attention))},
                     {"data", section_json(list_fields("data", folder.data))}};
    text += fmt::format("\nmodel           {}\nparameters      {}\n", options.model, parameters);
    if (!folder.objective_note.empty()) text += fmt::format("objective       {}\n", folder.objective_note);
    text += "\n" + section_to_toml("model", model) + "\n" + section_to_toml("attention", attention) + "\n" +
            section_to_toml("data", folder.data);
  }
  out.write(options.json ? json.dump(2) + "\n" : text);
  out.finish();
}

}  // namespace

Action info_command(CLI::App& app) {
  auto options = std::make_shared<InfoOptions>();
  app.add_option("MODEL", options->model, "model folder");
  app.add_flag("--json", options->json, "JSON instead of text");
  options->common.add_to(app);
  return [options] { run(*options); };
}

}  // namespace performer::cli
