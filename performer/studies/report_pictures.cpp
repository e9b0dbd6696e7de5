// SPDX-License-Identifier: Apache-2.0
// Samples, attention, approximation and further results of a report.
#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "performer/studies/report_parts.h"
#include "performer/studies/svg.h"

namespace performer::studies {
namespace {

using Json = nlohmann::ordered_json;

std::string heading(const ReportInput& input, size_t run, const std::string& what) {
  return input.runs.size() > 1 ? fmt::format("{}: {}", input.name(run), what) : what;
}

std::string heads_table(const ReportInput& input, size_t run, size_t index, const Json& sequence) {
  HtmlTable table(
      fmt::format("Heads in {}: shares of the weight within {} tokens of the diagonal and in the {} heaviest "
                  "columns, tokens that a "
                  "token looks at, and distance",
                  sequence["id"].get<std::string>(), sequence["band"].get<int64_t>(),
                  sequence["columns"].get<int64_t>()));
  table.columns({"head", "kind", "diagonal", "vertical", "tokens looked at", "mean distance"});
  const auto row = [&](size_t i, const std::string& name, const std::string& label, const std::string& prefix,
                       bool marked) {
    const auto cell = [&](const std::string& key, NumberStyle style) {
      return number(
          input.numbers,
          ReportInput::at(run, fmt::format("/attention/sequences/{}/heads/{}/{}", index, i, prefix + key)),
          style);
    };
    table.row(name,
              {fmt::format("<span class=\"text\">{}</span>", escape(label)),
               cell("diagonal", NumberStyle::share), cell("vertical", NumberStyle::share),
               cell("attended", NumberStyle::plain), cell("distance", NumberStyle::plain)},
              marked);
  };
  const Json& heads = sequence["heads"];
  for (size_t i = 0; i < heads.size(); ++i) {
    row(i,
        fmt::format("layer {}, head {}", heads[i]["layer"].get<int64_t>(), heads[i]["head"].get<int64_t>()),
        heads[i]["label"], "", false);
  }
  if (!heads.empty()) row(0, "all tokens alike", "", "uniform_", true);
  return table.html();
}

HeatMap similarity_map(const Json& similarity, const std::string& letters, const std::string& caption,
                       double limit) {
  HeatMap map;
  map.caption = caption;
  map.rows = map.columns = std::ssize(letters);
  for (const Json& row : similarity) {
    for (const Json& value : row) {
      map.values.push_back(value.is_number() ? value.get<double>()
                                             : std::numeric_limits<double>::quiet_NaN());
    }
  }
  for (const char letter : letters) map.row_names.emplace_back(1, letter);
  map.column_names = map.row_names;
  map.high = limit;
  map.low = -limit;
  return map;
}

std::string similarity(const ReportInput& input, size_t run) {
  const Json& found = input.of(run)["attention"]["similarity"];
  if (!found.is_object()) return "";
  HtmlTable table(
      fmt::format("Similarity of amino acids by their attention in {} sequences: correlation to BLOSUM62 "
                  "over 190 pairs, and rank of "
                  "two like pairs among them",
                  found["sequences"].get<int64_t>()));
  table.columns({"", "by heads", "by partners", "rank of D, E", "rank of F, Y"});
  const auto row = [&](const std::string& name, const std::string& at, bool marked) {
    const auto cell = [&](const char* key, NumberStyle style = NumberStyle::plain) {
      return number(input.numbers, ReportInput::at(run, "/attention/similarity" + at + key), style);
    };
    table.row(name,
              {cell("/by_heads/correlation"), cell("/by_partners/correlation"),
               cell("/by_partners/pairs/DE/rank", NumberStyle::whole),
               cell("/by_partners/pairs/FY/rank", NumberStyle::whole)},
              marked);
  };
  row("this model", "/model", false);
  for (size_t i = 0; i < found["untrained"].size(); ++i) {
    row("untrained weights", fmt::format("/untrained/{}", i), true);
  }
  const std::string letters = found["amino_acids"];
  HeatMapPage maps;
  maps.title = "Similarity of amino acids";
  maps.size = 260;
  maps.maps = {
      similarity_map(found["model"]["by_partners"]["similarity"], letters, "this model, by partners", 1),
      similarity_map(found["model"]["by_heads"]["similarity"], letters, "this model, by heads", 1),
      similarity_map(found["blosum62"], letters, "BLOSUM62", 6)};
  maps.description =
      "Matrices of 20 x 20 amino acids: the model's similarity by partners and by heads, from -1 (orange) to "
      "1 (blue), "
      "and the scores of BLOSUM62 from -6 to 6.";
  return subsection(heading(input, run, "similarity of amino acids"),
                    table.html() + svg_image(to_svg(maps), maps.description));
}

// The mean error of all heads against the number of features, kind by kind.
Chart error_chart(const Json& errors) {
  std::map<std::string, std::map<double, std::pair<double, int64_t>>> sums;
  std::vector<std::string> order;
  for (const Json& row : errors["rows"]) {
    const std::string kind = row["kind"];
    if (!sums.contains(kind)) order.push_back(kind);
    auto& [sum, count] = sums[kind][row["features"].get<double>()];
    if (!row["output_error"].is_number()) continue;
    sum += row["output_error"].get<double>();
    ++count;
  }
  Chart chart{"Error of the output, mean of all heads", "features", "relative error", true, true, {}};
  chart.description =
      "Relative error of approximations of softmax attention against the number of random features.";
  for (const std::string& kind : order) {
    ChartSeries series{kind, {}};
    for (const auto& [features, sum] : sums[kind])
      series.points.push_back({features, sum.first / static_cast<double>(sum.second), 0});
    chart.series.push_back(series);
  }
  return chart;
}

std::string advice_table(const ReportInput& input, size_t run, const Json& heads) {
  HtmlTable table(heads["title"].get<std::string>());
  table.columns({"head", "mean |x + y|²", "keys attended", "error of uniform", "best error", "advice"});
  const Json& rows = heads["rows"];
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto cell = [&](const char* key) {
      return number(input.numbers,
                    ReportInput::at(run, fmt::format("/approximation/heads/rows/{}/{}", i, key)));
    };
    table.row(
        fmt::format("layer {}, head {}", rows[i]["layer"].get<int64_t>(), rows[i]["head"].get<int64_t>()),
        {cell("squared_norm"), cell("attended"), cell("uniform_error"), cell("best_error"),
         fmt::format("<span class=\"text\">{}</span>", escape(rows[i]["advice"].get<std::string>()))});
  }
  return table.html();
}

// All numbers and texts below a pointer, in rows.
void add_rows(HtmlTable& table, const ReportInput& input, const Json& json, const std::string& pointer,
              const std::string& name) {
  if (json.is_structured()) {
    for (const auto& [key, value] : json.items()) {
      add_rows(table, input, value, pointer + "/" + pointer_part(key),
               name.empty() ? key : name + " · " + key);
    }
  } else if (json.is_number()) {
    table.row(name, {number(input.numbers, pointer)});
  } else if (!json.is_null()) {
    table.row(name, {escape(json.is_string() ? json.get<std::string>() : json.dump())});
  }
}

}  // namespace

std::string samples(const ReportInput& input) {
  std::string text;
  for (size_t run = 0; run < input.runs.size(); ++run) {
    std::string body;
    for (const WrittenSample& sample : input.runs[run].samples) {
      if (!sample.png.empty()) {
        body += png_image(sample.png, "picture that the model drew: " + sample.file);
        continue;
      }
      body += fmt::format("<p>{}{}</p>\n<pre tabindex=\"0\" aria-label=\"{}\">{}{}</pre>\n",
                          escape(sample.file), sample.cut ? ", its beginning" : "", escape(sample.file),
                          escape(sample.text), sample.cut ? "\n…" : "");
    }
    if (!body.empty()) text += subsection(heading(input, run, "what the model wrote"), body);
  }
  return text;
}

std::string attention(const ReportInput& input) {
  std::string text;
  for (size_t run = 0; run < input.runs.size(); ++run) {
    const Json& found = input.of(run)["attention"];
    if (!found.is_object()) continue;
    std::string body;
    for (const auto& picture : input.runs[run].attention_pictures)
      body += svg_image(picture.svg, picture.description);
    const Json& sequences = found["sequences"];
    for (size_t i = 0; i < sequences.size(); ++i) body += heads_table(input, run, i, sequences[i]);
    if (!body.empty()) text += subsection(heading(input, run, "matrices of attention"), body);
    text += similarity(input, run);
  }
  return text;
}

std::string approximation(const ReportInput& input) {
  std::string text;
  for (size_t run = 0; run < input.runs.size(); ++run) {
    const Json& found = input.of(run)["approximation"];
    if (!found.is_object()) continue;
    std::string body = advice_table(input, run, found["heads"]);
    if (found["errors"].is_object()) body += figure(error_chart(found["errors"]));
    text += subsection(heading(input, run, "which attention to choose, head by head"), body);
  }
  return text;
}

std::string variants(const ReportInput& input) {
  std::string text;
  for (size_t run = 0; run < input.runs.size(); ++run) {
    for (const auto& picture : input.runs[run].variant_maps)
      text += subsection(heading(input, run, picture.file), svg_image(picture.svg, picture.description));
  }
  return text;
}

std::string predictions(const ReportInput& input) {
  std::string text;
  for (size_t run = 0; run < input.runs.size(); ++run) {
    for (const auto& [name, found] : input.of(run)["predictions"].items()) {
      HtmlTable table(fmt::format("What {} predicts of labels: {}", input.name(run), name));
      table.columns({"what", "value"});
      add_rows(table, input, found, ReportInput::at(run, "/predictions/" + pointer_part(name)), "");
      text += subsection(heading(input, run, name), table.html());
    }
  }
  return text;
}

std::string other_results(const ReportInput& input) {
  std::string text;
  for (size_t run = 0; run < input.runs.size(); ++run) {
    const Json& found = input.of(run)["results"];
    if (!found.is_object()) continue;
    HtmlTable table("results.json of " + input.name(run));
    table.columns({"what", "value"});
    add_rows(table, input, found, ReportInput::at(run, "/results"), "");
    if (!table.empty()) text += subsection(heading(input, run, "results.json"), table.html());
  }
  return text;
}

}  // namespace performer::studies
