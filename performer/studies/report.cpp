// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include "performer/base/error.h"
#include "performer/data/json.h"
#include "performer/studies/report_parts.h"
#include "performer/studies/svg.h"

namespace performer::studies {
namespace {

using Json = nlohmann::ordered_json;

// The place with the smallest number among `pointers`, if at least two have one.
std::optional<size_t> smallest(const Json& numbers, const std::vector<std::string>& pointers) {
  std::optional<size_t> best;
  double least = 0;
  size_t count = 0;
  for (size_t i = 0; i < pointers.size(); ++i) {
    const Json::json_pointer at(pointers[i]);
    if (!numbers.contains(at) || !numbers.at(at).is_number()) continue;
    ++count;
    const double value = numbers.at(at).get<double>();
    if (!best || value < least) best = i, least = value;
  }
  return count >= 2 ? best : std::nullopt;
}

std::string overview_table(const ReportInput& input) {
  HtmlTable table("Training, and the held-out data of the training at its end");
  table.columns({"run", "parameters", "steps", "tokens", "time", "tokens / s", "memory, MiB", "training loss",
                 "held-out perplexity", "accuracy"});
  std::vector<std::string> perplexities;
  for (size_t run = 0; run < input.runs.size(); ++run)
    perplexities.push_back(ReportInput::at(run, "/valid/model/perplexity"));
  const auto best = smallest(input.numbers, perplexities);
  for (size_t run = 0; run < input.runs.size(); ++run) {
    const auto cell = [&](const char* key, NumberStyle style = NumberStyle::plain) {
      return number(input.numbers, ReportInput::at(run, key), style);
    };
    std::string perplexity = cell("/valid/model/perplexity");
    if (best == run) perplexity = fmt::format("<strong class=\"best\">{}</strong>", perplexity);
    table.row(input.name(run),
              {cell("/provenance/parameters", NumberStyle::whole), cell("/step", NumberStyle::whole),
               cell("/final/tokens", NumberStyle::whole), cell("/final/seconds", NumberStyle::duration),
               cell("/final/tokens_per_second", NumberStyle::whole),
               cell("/final/peak_memory_mib", NumberStyle::whole), cell("/last_loss"), perplexity,
               cell("/valid/model/accuracy", NumberStyle::share)});
  }
  for (const char* baseline : {"bigram", "unigram"}) {  // of the first run, where it has one
    const std::string at = ReportInput::at(0, fmt::format("/valid/{}", baseline));
    if (!input.numbers.contains(Json::json_pointer(at + "/perplexity"))) continue;
    std::vector<std::string> cells(7);
    cells.push_back(number(input.numbers, at + "/perplexity"));
    cells.push_back(number(input.numbers, at + "/accuracy", NumberStyle::share));
    table.row(baseline, cells, /*marked=*/true);
  }
  return table.html();
}

std::string overview(const ReportInput& input) {
  std::string text;
  for (size_t run = 0; run < input.runs.size(); ++run) {
    if (!input.of(run)["final"].is_null()) continue;
    text += paragraph(fmt::format("{} is not finished: this is how far it was at step {}.", input.name(run),
                                  input.of(run)["step"].dump()));
  }
  text += overview_table(input);
  text += paragraph(
      "Perplexity is the exponential of the mean loss of a token: the smaller, the better. A model has "
      "learned nothing "
      "that the frequencies of tokens, or of pairs of tokens, do not say as well unless it is below unigram "
      "and bigram.");
  return text;
}

std::string settings_table(const ReportInput& input, const std::vector<std::string>& keys,
                           const std::string& caption) {
  HtmlTable table(caption);
  std::vector<std::string> columns = {"setting"};
  for (size_t run = 0; run < input.runs.size(); ++run) columns.push_back(input.name(run));
  table.columns(columns);
  for (const std::string& key : keys) {
    std::vector<std::string> cells;
    for (const Experiment& run : input.runs) {
      const auto found = run.settings.find(key);
      cells.push_back(
          found == run.settings.end() ? "–" : escape(found->second.empty() ? "(empty)" : found->second));
    }
    table.row(key, cells);
  }
  return table.html();
}

std::string settings(const ReportInput& input) {
  std::set<std::string> keys;
  for (const Experiment& run : input.runs) {
    for (const auto& [key, value] : run.settings) keys.insert(key);
  }
  std::vector<std::string> different, same;
  for (const std::string& key : keys) {
    std::set<std::string> values;
    for (const Experiment& run : input.runs) {
      const auto found = run.settings.find(key);
      values.insert(found == run.settings.end() ? "" : "=" + found->second);
    }
    (values.size() > 1 ? different : same).push_back(key);
  }
  if (input.runs.size() == 1)
    return details("All settings", settings_table(input, same, "Settings of the run"));
  std::string text = different.empty()
                         ? paragraph("All settings are the same.")
                         : settings_table(input, different, "Settings that differ between the runs");
  if (!same.empty())
    text += details("Settings that are the same", settings_table(input, same, "Common settings"));
  return text;
}

std::vector<std::string> names_of(const std::vector<Experiment>& runs) {
  std::map<std::string, int64_t> count;
  for (const Experiment& run : runs) ++count[run.name];
  std::vector<std::string> names;
  for (const Experiment& run : runs) names.push_back(count[run.name] > 1 ? run.path : run.name);
  return names;
}

}  // namespace

std::string pointer_part(const std::string& key) {
  std::string part;
  for (const char letter : key) part += letter == '~' ? "~0" : letter == '/' ? "~1" : std::string(1, letter);
  return part;
}

std::string figure(const Chart& chart) {
  return "<figure>" + to_svg(chart) + "</figure>\n";
}

std::string charts(const std::vector<Chart>& all) {
  std::string text;
  for (const Chart& chart : all) text += figure(chart);
  return text.empty() ? "" : "<div class=\"charts\">\n" + text + "</div>\n";
}

Json report_numbers(const std::vector<Experiment>& runs) {
  const std::vector<std::string> names = names_of(runs);
  Json numbers = {{"runs", Json::array()}};
  for (size_t i = 0; i < runs.size(); ++i) {
    Json run = {
        {"name", names[i]}, {"path", runs[i].path}, {"settings", runs[i].settings}, {"last_loss", nullptr}};
    if (!runs[i].steps.empty() && std::isfinite(runs[i].steps.back().loss))
      run["last_loss"] = runs[i].steps.back().loss;
    run.update(runs[i].numbers);
    numbers["runs"].push_back(std::move(run));
  }
  return numbers;
}

std::string report_html(const std::vector<Experiment>& runs, const Json& numbers, const std::string& title,
                        const std::string& footer) {
  check<UsageError>(!runs.empty(), "a report needs at least one run");
  const ReportInput input{runs, numbers};
  std::vector<PagePart> parts;
  const auto add = [&](const char* id, const char* heading, std::string (*write)(const ReportInput&)) {
    std::string body = data::read_json(fmt::format("the results for the part '{}'", heading),
                                       "not as this program writes them (write those files anew, or move "
                                       "them out of the folders of the runs)",
                                       [&] { return write(input); });
    if (!body.empty()) parts.push_back({id, heading, std::move(body)});
  };
  add("overview", "Overview", overview);
  add("settings", "Settings", settings);
  add("curves", "Learning curves", learning_curves);
  add("evaluations", "Evaluations", evaluations);
  add("predictions", "Predictions", predictions);
  add("variants", "Variants", variants);
  add("samples", "Samples", samples);
  add("attention", "Attention", attention);
  add("approximation", "Approximation of softmax attention", approximation);
  add("results", "Further results", other_results);
  return page(title, footer, parts);
}

}  // namespace performer::studies
