// SPDX-License-Identifier: Apache-2.0
#include "cli/options.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <optional>

#include "cli/process.h"

namespace performer::cli {

namespace {

// The name of an option in messages: "--count" of "-n,--count".
std::string message_name(const std::string& names) {
  return names.substr(names.rfind(',') + 1);
}

// An option that takes one text and gives it to `parse`.
template <class Parse>
CLI::Option* number_option(CLI::App& app, const std::string& names, const std::string& help, const char* type,
                           Parse parse) {
  const std::string name = message_name(names);
  return app
      .add_option_function<std::string>(
          names, [name, parse](const std::string& text) { parse(name, text); }, help)
      ->type_name(type);
}

template <class Value, class Parse>
CLI::Option* list_option(CLI::App& app, const std::string& names, std::vector<Value>& values,
                         const std::string& help, const char* type, Parse parse) {
  const std::string name = message_name(names);
  const auto set = [name, parse, &values](const std::vector<std::string>& texts) {
    values.clear();
    for (const std::string& text : texts) values.push_back(parse(name, text));
  };
  CLI::Option* option = app.add_option_function<std::vector<std::string>>(names, set, help);
  option->type_name(type)->delimiter(',');
  if (!values.empty()) option->default_str(fmt::format("{}", fmt::join(values, ",")));
  return option;
}

}  // namespace

CLI::Option* whole_option(CLI::App& app, const std::string& names, int64_t& value, const std::string& help,
                          const WholeRange& range) {
  const auto parse = [&value, range](const std::string& name, const std::string& text) {
    value = parse_whole(name, text, range);
  };
  return number_option(app, names, help, "INT", parse)->default_str(fmt::format("{}", value));
}

CLI::Option* whole_option(CLI::App& app, const std::string& names, std::optional<int64_t>& value,
                          const std::string& help, const WholeRange& range) {
  return number_option(app, names, help, "INT",
                       [&value, range](const std::string& name, const std::string& text) {
                         value = parse_whole(name, text, range);
                       });
}

CLI::Option* seed_option(CLI::App& app, uint64_t& value, const std::string& help) {
  const auto parse = [&value](const std::string& name, const std::string& text) {
    value = parse_unsigned(name, text);
  };
  return number_option(app, "--seed", help, "INT", parse)->default_str(fmt::format("{}", value));
}

CLI::Option* real_option(CLI::App& app, const std::string& names, double& value, const std::string& help,
                         const RealRange& range) {
  const auto parse = [&value, range](const std::string& name, const std::string& text) {
    value = parse_real(name, text, range);
  };
  return number_option(app, names, help, "NUMBER", parse)->default_str(fmt::format("{}", value));
}

CLI::Option* whole_list(CLI::App& app, const std::string& names, std::vector<int64_t>& values,
                        const std::string& help, const WholeRange& range) {
  return list_option(app, names, values, help, "INT", [range](const std::string& name, const auto& text) {
    return parse_whole(name, text, range);
  });
}

CLI::Option* real_list(CLI::App& app, const std::string& names, std::vector<double>& values,
                       const std::string& help, const RealRange& range) {
  return list_option(app, names, values, help, "NUMBER", [range](const std::string& name, const auto& text) {
    return parse_real(name, text, range);
  });
}

void CommonOptions::add_to(CLI::App& app) {
  const ThreadChoice choice = default_threads();
  threads = choice.threads;
  threads_from = choice.reason;
  whole_option(
      app, "-t,--threads", threads,
      "threads to compute with; the default follows OMP_NUM_THREADS, else the CPUs that this process "
      "may use",
      {1, kMostThreads})
      ->each([this](const std::string&) { threads_from = "-t"; });
  app.add_flag("--quiet", quiet, "only warnings and errors on standard error");
}

void CommonOptions::apply() const {
  at::set_num_threads(static_cast<int>(threads));
  if (quiet) spdlog::set_level(spdlog::level::warn);
}

}  // namespace performer::cli
