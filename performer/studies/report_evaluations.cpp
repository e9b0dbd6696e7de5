// SPDX-License-Identifier: Apache-2.0
// Evaluations of a report: tables beside the baselines, by length and symbol, calibration.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "performer/studies/report_parts.h"
#include "performer/studies/svg.h"

namespace performer::studies {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostSymbols = 40;  // that are told apart; more do not fit

// The names of all evaluations, each once, in the order in which runs have them.
std::vector<std::string> evaluation_names(const ReportInput& input) {
  std::vector<std::string> names;
  for (size_t run = 0; run < input.runs.size(); ++run) {
    for (const auto& [name, json] : input.of(run)["evaluations"].items()) {
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  }
  return names;
}

// One evaluation of one run.
struct Found {
  size_t run;
  std::string name;     // of the run
  std::string pointer;  // to it in the numbers
  const Json& json;
};

std::vector<Found> found_in(const ReportInput& input, const std::string& evaluation) {
  std::vector<Found> found;
  for (size_t run = 0; run < input.runs.size(); ++run) {
    const Json& all = input.of(run)["evaluations"];
    if (!all.contains(evaluation)) continue;
    found.push_back({run, input.name(run), ReportInput::at(run, "/evaluations/" + pointer_part(evaluation)),
                     all[evaluation]});
  }
  return found;
}

std::string bits_key(const std::vector<Found>& found) {
  for (const char* key : {"bits_per_byte", "bits_per_dimension"}) {
    if (found.front().json["model"].contains(key)) return key;
  }
  return "";
}

std::string scores_table(const ReportInput& input, const std::vector<Found>& found) {
  HtmlTable table(
      "The model beside what the frequencies of tokens and of pairs of tokens in its training data say");
  const std::string bits = bits_key(found);
  std::vector<std::string> columns = {"", "perplexity", "accuracy", "tokens"};
  if (!bits.empty())
    columns.insert(columns.begin() + 2, bits == "bits_per_byte" ? "bits / byte" : "bits / dimension");
  table.columns(columns);
  for (const Found& each : found) {
    for (const char* part : {"model", "bigram", "unigram", "end_marker"}) {
      if (!each.json.contains(part) || !each.json[part].is_object()) continue;
      const std::string at = fmt::format("{}/{}", each.pointer, part);
      std::vector<std::string> cells = {number(input.numbers, at + "/perplexity"),
                                        number(input.numbers, at + "/accuracy", NumberStyle::share),
                                        number(input.numbers, at + "/tokens", NumberStyle::whole)};
      if (!bits.empty()) cells.insert(cells.begin() + 1, number(input.numbers, at + "/" + bits));
      const std::string name = part == std::string("end_marker") ? "end marker" : part;
      table.row(fmt::format("{}: {}", each.name, name), cells, part != std::string("model"));
    }
  }
  return table.html();
}

double value_of(const Json& json, const char* key) {
  return json.is_object() && json.contains(key) && json[key].is_number()
             ? json[key].get<double>()
             : std::numeric_limits<double>::quiet_NaN();
}

// Lists of several runs by what names their entries, in the order of the first run that has them.
template <class NameOf>
std::vector<std::string> entry_names(const std::vector<Found>& found, const char* list,
                                     const NameOf& name_of) {
  std::vector<std::string> names;
  for (const Found& each : found) {
    if (!each.json.contains(list)) continue;
    for (const Json& entry : each.json[list]) {
      const std::string name = name_of(entry);
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  }
  return names;
}

template <class NameOf>
std::vector<ChartPoint> points_of(const Json& list, const std::vector<std::string>& names,
                                  const NameOf& name_of, const std::function<double(const Json&)>& y) {
  std::vector<ChartPoint> points;
  for (size_t place = 0; place < names.size(); ++place) {
    for (const Json& entry : list) {
      if (name_of(entry) == names[place]) points.push_back({static_cast<double>(place), y(entry), 0});
    }
  }
  return points;
}

std::string length_name(const Json& entry) {
  return fmt::format("{}–{}", entry["from"].get<int64_t>(), entry["to"].get<int64_t>());
}

std::string by_length(const ReportInput& input, const std::vector<Found>& found) {
  const auto names = entry_names(found, "by_length", length_name);
  if (names.empty()) return "";
  Chart chart{"Perplexity by the length of the sequence", "length, tokens", "perplexity", false, false, {}};
  chart.x_names = names;
  chart.description = "Perplexity for groups of lengths; the table below has the numbers.";
  HtmlTable table("Perplexity by the length of the sequence");
  table.columns({"length", "sequences", "model", "bigram", "unigram"});
  for (const Found& each : found) {
    if (!each.json.contains("by_length")) continue;
    const Json& list = each.json["by_length"];
    chart.series.push_back({each.name, points_of(list, names, length_name, [](const Json& entry) {
                              return value_of(entry["model"], "perplexity");
                            })});
    for (size_t i = 0; i < list.size(); ++i) {
      const auto cell = [&](const char* part) {
        return number(input.numbers, fmt::format("{}/by_length/{}/{}", each.pointer, i, part));
      };
      table.row((found.size() > 1 ? each.name + ": " : "") + length_name(list[i]),
                {number(input.numbers, fmt::format("{}/by_length/{}/sequences", each.pointer, i),
                        NumberStyle::whole),
                 cell("model/perplexity"), cell("bigram/perplexity"), cell("unigram/perplexity")});
    }
  }
  for (const Found& each : found) {
    if (!each.json.contains("by_length")) continue;
    chart.series.push_back(
        {"unigram",
         points_of(each.json["by_length"], names, length_name,
                   [](const Json& entry) { return value_of(entry["unigram"], "perplexity"); }),
         /*dashed=*/true});
    break;  // the baseline of one run stands for all
  }
  return subsection("By length", figure(chart) + details("Numbers by length", table.html()));
}

std::string symbol_name(const Json& entry) {
  return entry["symbol"];
}

std::string by_symbol(const ReportInput& input, const std::vector<Found>& found) {
  const auto names = entry_names(found, "by_symbol", symbol_name);
  if (names.empty()) return "";
  Chart chart{"Accuracy by symbol", "symbol", "accuracy", false, false, {}};
  chart.x_names = names;
  chart.description = "How often each symbol was predicted where it stood; the table below has the numbers.";
  HtmlTable table("By symbol: how often it stood there, was predicted there, and was predicted anywhere");
  table.columns({"symbol", "tokens", "accuracy", "predicted", "perplexity", "unigram perplexity"});
  for (const Found& each : found) {
    if (!each.json.contains("by_symbol")) continue;
    const Json& list = each.json["by_symbol"];
    chart.series.push_back(
        {each.name,
         points_of(list, names, symbol_name, [](const Json& entry) { return value_of(entry, "accuracy"); }),
         /*dashed=*/false, /*line=*/false});
    for (size_t i = 0; i < list.size(); ++i) {
      const auto cell = [&](const char* key, NumberStyle style) {
        return number(input.numbers, fmt::format("{}/by_symbol/{}/{}", each.pointer, i, key), style);
      };
      table.row((found.size() > 1 ? each.name + ": " : "") + symbol_name(list[i]),
                {cell("tokens", NumberStyle::whole), cell("accuracy", NumberStyle::share),
                 cell("predicted", NumberStyle::whole), cell("perplexity", NumberStyle::plain),
                 cell("unigram_perplexity", NumberStyle::plain)});
    }
  }
  const std::string picture = names.size() <= kMostSymbols ? figure(chart) : "";
  return subsection("By symbol", picture + details("Numbers by symbol", table.html()));
}

std::string calibration(const ReportInput& input, const std::vector<Found>& found) {
  Chart chart{
      "Calibration", "probability of the most probable token", "how often it was right", false, false, {}};
  HtmlTable table("Calibration: how sure the model was, and how often it was right");
  table.columns({"probability", "tokens", "mean probability", "right"});
  std::string errors;
  for (const Found& each : found) {
    if (!each.json.contains("calibration") || !each.json["calibration"].is_array()) continue;
    const Json& bins = each.json["calibration"];
    ChartSeries series{each.name, {}};
    for (size_t i = 0; i < bins.size(); ++i) {
      series.points.push_back({value_of(bins[i], "confidence"), value_of(bins[i], "accuracy"), 0});
      const auto cell = [&](const char* key, NumberStyle style) {
        return number(input.numbers, fmt::format("{}/calibration/{}/{}", each.pointer, i, key), style);
      };
      if (value_of(bins[i], "tokens") > 0) {
        table.row(fmt::format("{}{:.0f}–{:.0f} %", found.size() > 1 ? each.name + ": " : "",
                              100 * value_of(bins[i], "from"), 100 * value_of(bins[i], "to")),
                  {cell("tokens", NumberStyle::whole), cell("confidence", NumberStyle::share),
                   cell("accuracy", NumberStyle::share)});
      }
    }
    chart.series.push_back(series);
    errors += fmt::format("<p>Expected calibration error of {}: {}.</p>\n", escape(each.name),
                          number(input.numbers, each.pointer + "/calibration_error", NumberStyle::share));
  }
  if (table.empty()) return "";
  chart.series.push_back(
      {"perfect", {{0, 0, 0}, {1, 1, 0}}, /*dashed=*/true, /*line=*/true, /*marks=*/false});
  chart.description =
      "How often the most probable token was right, against the probability that it was given. On the dashed "
      "line both "
      "are equal.";
  return subsection("Calibration",
                    errors + figure(chart) + details("Numbers of the calibration", table.html()));
}

}  // namespace

std::string evaluations(const ReportInput& input) {
  std::string text;
  for (const std::string& name : evaluation_names(input)) {
    const std::vector<Found> found = found_in(input, name);
    text += subsection(name, scores_table(input, found));
    text += by_length(input, found) + by_symbol(input, found) + calibration(input, found);
  }
  return text;
}

}  // namespace performer::studies
