// SPDX-License-Identifier: Apache-2.0
// Learning curves of a report.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "performer/studies/report_parts.h"

namespace performer::studies {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostPoints = 160;  // of a curve; more steps are shown by means

struct Curve {
  double CurvePoint::*x;
  double CurvePoint::*y;
};

// Means of consecutive steps, at the end of each group.
std::vector<ChartPoint> thinned(const std::vector<CurvePoint>& steps, const Curve& curve) {
  const size_t group = (steps.size() + kMostPoints - 1) / std::max<size_t>(1, kMostPoints);
  std::vector<ChartPoint> points;
  for (size_t begin = 0; begin < steps.size(); begin += group) {
    const size_t end = std::min(begin + group, steps.size());
    double sum = 0;
    for (size_t i = begin; i < end; ++i) sum += steps[i].*curve.y;
    points.push_back({steps[end - 1].*curve.x, sum / static_cast<double>(end - begin), 0});
  }
  return points;
}

std::vector<ChartPoint> all_points(const std::vector<CurvePoint>& evaluations, const Curve& curve) {
  std::vector<ChartPoint> points;
  for (const CurvePoint& point : evaluations) points.push_back({point.*curve.x, point.*curve.y, 0});
  return points;
}

// What the baselines reach on the held-out data of the first run: level lines.
void add_baselines(Chart& chart, const ReportInput& input, const Curve& curve) {
  const Json& valid = input.of(0)["valid"];
  double last = 0;
  for (const Experiment& run : input.runs) {
    if (!run.steps.empty()) last = std::max(last, run.steps.back().*curve.x);
  }
  for (const char* name : {"unigram", "bigram"}) {
    if (!valid.is_object() || !valid.contains(name) || !valid[name].contains("perplexity")) continue;
    if (!valid[name]["perplexity"].is_number()) continue;
    const bool loss = curve.y == &CurvePoint::loss;
    const double level =
        loss ? std::log(valid[name]["perplexity"].get<double>()) : valid[name]["accuracy"].get<double>();
    chart.series.push_back(
        {name, {{0, level, 0}, {last, level, 0}}, /*dashed=*/true, /*line=*/true, /*marks=*/false});
  }
}

Chart curve_chart(const ReportInput& input, const Curve& curve, const std::string& what,
                  const std::string& against) {
  Chart chart;
  chart.width = 600;
  chart.height = 400;
  chart.title = fmt::format("{} against {}", what, against);
  chart.x_label = against;
  chart.y_label = what;
  chart.description = fmt::format("{}. ", chart.title);
  for (size_t run = 0; run < input.runs.size(); ++run) {
    const Experiment& of = input.runs[run];
    const auto points = thinned(of.steps, curve);
    if (!points.empty() && std::isfinite(points.back().y)) {
      chart.description += fmt::format("Training of {} goes from {:.4g} to {:.4g}. ", input.name(run),
                                       points.front().y, points.back().y);
    }
    chart.series.push_back({input.name(run), points, /*dashed=*/false, /*line=*/true, /*marks=*/false});
  }
  for (size_t run = 0; run < input.runs.size(); ++run) {  // in the colour of the run
    const auto points = all_points(input.runs[run].held_out, curve);
    if (points.empty()) continue;
    chart.series.push_back({input.name(run) + ", held out", points, /*dashed=*/false,
                            /*line=*/points.size() > 1,
                            /*marks=*/true, static_cast<int>(run)});
  }
  add_baselines(chart, input, curve);
  return chart;
}

std::string held_out_table(const ReportInput& input) {
  HtmlTable table(
      "Held-out data during the training: last evaluation of each run, with the baselines on the same "
      "tokens");
  table.columns({"", "perplexity", "accuracy", "tokens"});
  for (size_t run = 0; run < input.runs.size(); ++run) {
    for (const char* part : {"model", "bigram", "unigram", "end_marker"}) {
      const std::string at = ReportInput::at(run, fmt::format("/valid/{}", part));
      if (!input.numbers.contains(Json::json_pointer(at + "/perplexity"))) continue;
      const std::string name = part == std::string("end_marker") ? "end marker" : part;
      table.row(fmt::format("{}: {}", input.name(run), name),
                {number(input.numbers, at + "/perplexity"),
                 number(input.numbers, at + "/accuracy", NumberStyle::share),
                 number(input.numbers, at + "/tokens", NumberStyle::whole)},
                part != std::string("model"));
    }
  }
  return table.empty() ? "" : table.html();
}

}  // namespace

std::string learning_curves(const ReportInput& input) {
  std::vector<Chart> all;
  bool accuracy = false;
  size_t most = 0;
  for (const Experiment& run : input.runs) {
    accuracy = accuracy || std::any_of(run.steps.begin(), run.steps.end(),
                                       [](const CurvePoint& point) { return std::isfinite(point.accuracy); });
    most = std::max(most, run.steps.size());
  }
  all.push_back(curve_chart(input, {&CurvePoint::tokens, &CurvePoint::loss}, "loss of a token", "tokens"));
  all.push_back(curve_chart(input, {&CurvePoint::seconds, &CurvePoint::loss}, "loss of a token", "seconds"));
  if (accuracy) {
    all.push_back(curve_chart(input, {&CurvePoint::tokens, &CurvePoint::accuracy}, "accuracy", "tokens"));
    all.push_back(curve_chart(input, {&CurvePoint::seconds, &CurvePoint::accuracy}, "accuracy", "seconds"));
  }
  std::string text = paragraph(
      most > kMostPoints
          ? fmt::format(
                "Lines are the training, means of up to {} steps; dots are evaluations on held-out data, and "
                "dashed lines the baselines on them.",
                (most + kMostPoints - 1) / kMostPoints)
          : std::string("Lines are the training, step by step; dots are evaluations on held-out data, and "
                        "dashed lines "
                        "the baselines on them."));
  return text + charts(all) + held_out_table(input);
}

}  // namespace performer::studies
