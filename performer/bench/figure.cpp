// SPDX-License-Identifier: Apache-2.0
// The papers' figure (arXiv 2009.14794, figure 3) as SVG. Colours follow the reader's light or dark theme.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "performer/bench/report.h"

namespace performer::bench {
namespace {

constexpr double kPanelWidth = 296, kPanelHeight = 240, kGapX = 66, kGapY = 84, kLeft = 66, kTop = 84;
constexpr double kLegendLine = 22, kLetter = 6.6;  // of 12 pixels, on average

constexpr const char* kStyle = R"(<style>
text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 } .panel { font-size: 13px; font-weight: 600 } .dim { fill: #59636e }
.back { fill: #ffffff } .grid { stroke: #e4e7eb } .frame { fill: none; stroke: #aab2bb } .line { fill: none; stroke-width: 2 }
.c0 { stroke: #0072b2; fill: #0072b2 } .c1 { stroke: #009e73; fill: #009e73 }
.c2 { stroke: #d55e00; fill: #d55e00 } .c3 { stroke: #7f8790; fill: #7f8790 } .c4 { stroke: #cc79a7; fill: #cc79a7 }
.c5 { stroke: #b58900; fill: #b58900 } .c6 { stroke: #2aa1c0; fill: #2aa1c0 } .c7 { stroke: #8250df; fill: #8250df }
.c8 { stroke: #8c564b; fill: #8c564b } .line { fill: none }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .dim { fill: #9198a1 } .back { fill: #0d1117 } .grid { stroke: #262c34 } .frame { stroke: #59636e }
.c0 { stroke: #58a6ff; fill: #58a6ff } .c1 { stroke: #3fcf9b; fill: #3fcf9b } .c2 { stroke: #ff9b5e; fill: #ff9b5e }
.c3 { stroke: #9aa4af; fill: #9aa4af } .c4 { stroke: #f2a6d0; fill: #f2a6d0 } .c5 { stroke: #e3c04b; fill: #e3c04b }
.c6 { stroke: #6cd3ee; fill: #6cd3ee } .c7 { stroke: #bc8cff; fill: #bc8cff } .c8 { stroke: #d3a08f; fill: #d3a08f }
.line { fill: none } }
</style>
)";

std::string escape(const std::string& text) {
  std::string safe;
  for (const char letter : text) {
    if (letter == '&')
      safe += "&amp;";
    else if (letter == '<')
      safe += "&lt;";
    else if (letter == '>')
      safe += "&gt;";
    else
      safe += letter;
  }
  return safe;
}

struct Line {
  std::string kind, dtype;
  std::vector<std::pair<double, double>> points;
};

// How a kind is drawn: its colour, one of c0 to c8 in kStyle, and squares for points instead of circles.
struct Look {
  int colour = 0;
  bool squares = false;
};

struct Panel {
  std::string title, unit;
  std::vector<Line> lines;
};

// A logarithmic axis.
class LogAxis {
 public:
  void cover(double value) {
    if (!(value > 0) || !std::isfinite(value)) return;
    low_ = std::min(low_, std::log10(value));
    high_ = std::max(high_, std::log10(value));
  }
  void settle(double from, double to) {
    if (low_ > high_) low_ = 0, high_ = 1;
    const double margin = std::max(0.05 * (high_ - low_), 0.08);
    low_ -= margin, high_ += margin, from_ = from, to_ = to;
  }
  double place(double value) const {
    return from_ + (std::log10(value) - low_) / (high_ - low_) * (to_ - from_);
  }
  // Powers of ten, with 2 and 5 between them where few would fit.
  std::vector<double> ticks() const {
    std::vector<double> values;
    const bool fine = high_ - low_ < 2.2;
    for (int power = static_cast<int>(std::floor(low_)); power <= high_; ++power) {
      for (const double digit : {1.0, 2.0, 5.0}) {
        if (digit != 1 && !fine) continue;
        const double value = digit * std::pow(10.0, power), scaled = std::log10(value);
        if (scaled >= low_ && scaled <= high_) values.push_back(value);
      }
    }
    return values;
  }

 private:
  double low_ = 1e300, high_ = -1e300, from_ = 0, to_ = 1;
};

std::string length_label(int64_t length) {
  if (length >= 1 << 20 && length % (1 << 20) == 0) return fmt::format("{}M", length >> 20);
  return length >= 1024 && length % 1024 == 0 ? fmt::format("{}k", length >> 10) : fmt::format("{}", length);
}

std::string text_at(double x, double y, const std::string& text, const std::string& attributes) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" {}>{}</text>\n", x, y, attributes, escape(text));
}

std::string line_at(double x1, double y1, double x2, double y2, const std::string& attributes) {
  return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" {}/>\n", x1, y1, x2, y2,
                     attributes);
}

class Figure {
 public:
  explicit Figure(const Report& report) : report_(report) {
    for (const Row& row : report.rows) {
      lengths_.insert(row.length);
      if (std::find(kinds_.begin(), kinds_.end(), row.kind) == kinds_.end()) kinds_.push_back(row.kind);
      if (std::find(directions_.begin(), directions_.end(), row.direction) == directions_.end())
        directions_.push_back(row.direction);
      if (std::find(dtypes_.begin(), dtypes_.end(), row.dtype) == dtypes_.end()) dtypes_.push_back(row.dtype);
    }
  }

  std::string draw() const {
    const auto rows = static_cast<double>(directions_.size());
    std::vector<std::vector<Panel>> panels;
    size_t columns = 2;  // the title needs that much
    for (const std::string& direction : directions_) {
      panels.push_back(panels_of(direction));
      columns = std::max(columns, panels.back().size());
    }
    const double width = kLeft + static_cast<double>(columns) * (kPanelWidth + kGapX) - kGapX + 24;
    const double legend_top = kTop + rows * kPanelHeight + (rows - 1) * kGapY + 62;
    const std::string legend = draw_legend(legend_top, width);
    const double height = legend_top + legend_lines_ * kLegendLine + 10;
    std::string svg = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 "
        "{0:.0f} {1:.0f}\" "
        "role=\"img\">\n<title>{2}</title>\n{3}<rect class=\"back\" width=\"{0:.0f}\" height=\"{1:.0f}\"/>\n",
        width, height, escape(title()), kStyle);
    svg += text_at(kLeft, 28, title(), "class=\"title\"");
    svg += text_at(kLeft, 47, subtitle(), "class=\"dim\"");
    for (size_t r = 0; r < panels.size(); ++r) {
      for (size_t c = 0; c < panels[r].size(); ++c) {
        svg += draw_panel(panels[r][c], kLeft + static_cast<double>(c) * (kPanelWidth + kGapX),
                          kTop + static_cast<double>(r) * (kPanelHeight + kGapY));
      }
    }
    return svg + legend + "</svg>\n";
  }

 private:
  bool training() const { return report_.rows.front().op == "train"; }
  std::string title() const {
    return training() ? "A language model by its attention: time and memory against length"
                      : "Attention: time and memory against length";
  }
  std::string subtitle() const {
    const Row& row = report_.rows.front();
    return fmt::format("{} heads of size {}, batch {}; {}", row.heads, row.head_size, row.batch,
                       report_.machine);
  }

  // One line a kind and dtype, of the first target that it was measured with.
  template <class Value>
  std::vector<Line> lines_of(const std::string& direction, const std::string& pass, Value&& value) const {
    std::vector<Line> lines;
    for (const std::string& kind : kinds_) {
      for (const std::string& dtype : dtypes_) {
        Line line{kind, dtype, {}};
        std::string target;
        for (const Row& row : report_.rows) {
          if (row.kind != kind || row.dtype != dtype || row.direction != direction || row.pass != pass ||
              !row.timed())
            continue;
          if (target.empty()) target = row.target;
          if (row.target == target && value(row) > 0)
            line.points.emplace_back(static_cast<double>(row.length), value(row));
        }
        std::sort(line.points.begin(), line.points.end());
        if (!line.points.empty()) lines.push_back(line);
      }
    }
    return lines;
  }

  // Inputs and outputs count too: they are what grows with the length when nothing else does.
  static double memory_of(const Row& row) {
    double bytes = static_cast<double>(row.extra_bytes);
    if (row.op == "favor") {
      const double tensors = row.kind == "identity"  ? (row.pass == "forward" ? 2 : 4)
                             : row.pass == "forward" ? 4
                                                     : 8;
      bytes += tensors * static_cast<double>(row.batch * row.length * row.heads * row.head_size) *
               (row.dtype == "float32" ? 4 : 2);
    }
    return bytes / (1 << 20);
  }

  std::vector<Panel> panels_of(const std::string& direction) const {
    const auto milliseconds = [](const Row& row) {
      return row.ns * static_cast<double>(row.length * row.heads * row.batch) / 1e6;
    };
    const bool both = std::any_of(report_.rows.begin(), report_.rows.end(),
                                  [](const Row& row) { return row.pass != "forward"; });
    std::vector<Panel> panels = {
        {fmt::format("{}: forward", direction), "time, ms", lines_of(direction, "forward", milliseconds)},
        {fmt::format("{}: {}", direction, training() ? "training step" : "forward + backward"), "time, ms",
         lines_of(direction, "forward_backward", milliseconds)},
        {fmt::format("{}: memory", direction),
         both ? (training() ? "of a training step, MiB" : "of both passes, MiB") : "of the forward pass, MiB",
         lines_of(direction, both ? "forward_backward" : "forward", memory_of)}};
    std::erase_if(panels, [](const Panel& panel) { return panel.lines.empty(); });
    return panels;
  }

  // The kinds that most figures have look the same in all; identity is grey: a bound, not a method.
  Look look(const std::string& kind) const {
    const auto fixed = [](const std::string& name) -> std::optional<Look> {
      if (name == "favor-softmax") return Look{0};
      if (name == "favor-relu") return Look{1};
      if (name == "exact") return Look{2};
      if (name == "identity") return Look{3};
      if (name == "identity+qk") return Look{3, true};
      return std::nullopt;
    };
    if (const auto known = fixed(kind)) return *known;
    constexpr int kOthers[] = {4, 5, 6, 7, 8};
    size_t place = 0;
    for (const std::string& each : kinds_) {
      if (each == kind) break;
      if (!fixed(each)) ++place;
    }
    return {kOthers[place % std::size(kOthers)], place / std::size(kOthers) % 2 == 1};
  }

  static std::string point_at(const Look& look, double x, double y) {
    if (look.squares)
      return fmt::format("<rect class=\"c{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"5\" height=\"5\"/>\n",
                         look.colour, x - 2.5, y - 2.5);
    return fmt::format("<circle class=\"c{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.6\"/>\n", look.colour, x, y);
  }

  // Dashes tell types apart, where there are several.
  std::string dashes(const std::string& dtype) const {
    if (dtypes_.size() < 2 || dtype == "float32") return "";
    return dtype == "bfloat16" ? " stroke-dasharray=\"6 4\"" : " stroke-dasharray=\"2 3\"";
  }

  std::string draw_panel(const Panel& panel, double left, double top) const {
    const double right = left + kPanelWidth, bottom = top + kPanelHeight;
    LogAxis x, y;
    for (const int64_t length : lengths_) x.cover(static_cast<double>(length));
    for (const Line& line : panel.lines) {
      for (const auto& point : line.points) y.cover(point.second);
    }
    x.settle(left, right);
    y.settle(bottom, top);
    std::string svg = text_at(left, top - 10, panel.title, "class=\"panel\"");
    double free_from = -1e9;
    for (const int64_t length : lengths_) {
      const double place = x.place(static_cast<double>(length));
      svg += line_at(place, top, place, bottom, "class=\"grid\"");
      if (place < free_from) continue;
      svg += text_at(place, bottom + 18, length_label(length), "class=\"dim\" text-anchor=\"middle\"");
      free_from = place + 34;
    }
    for (const double tick : y.ticks()) {
      svg += line_at(left, y.place(tick), right, y.place(tick), "class=\"grid\"");
      svg += text_at(left - 7, y.place(tick) + 4, fmt::format("{:g}", tick),
                     "class=\"dim\" text-anchor=\"end\"");
    }
    svg += fmt::format("<rect class=\"frame\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{}\" height=\"{}\"/>\n", left,
                       top, kPanelWidth, kPanelHeight);
    svg += text_at((left + right) / 2, bottom + 36, "length, tokens", "class=\"dim\" text-anchor=\"middle\"");
    svg += fmt::format(
        "<text class=\"dim\" text-anchor=\"middle\" transform=\"translate({:.1f} {:.1f}) "
        "rotate(-90)\">{}</text>\n",
        left - 46, (top + bottom) / 2, escape(panel.unit));
    for (const Line& line : panel.lines) svg += draw_line(line, x, y);
    return svg;
  }

  std::string draw_line(const Line& line, const LogAxis& x, const LogAxis& y) const {
    std::string path, marks;
    for (const auto& [length, value] : line.points) {
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : " L", x.place(length), y.place(value));
      marks += point_at(look(line.kind), x.place(length), y.place(value));
    }
    return fmt::format("<path class=\"c{} line\" d=\"{}\"{}/>\n", look(line.kind).colour, path,
                       dashes(line.dtype)) +
           marks;
  }

  std::string draw_legend(double top, double width) const {
    std::string svg;
    double x = kLeft, y = top;
    legend_lines_ = 1;
    for (const std::string& kind : kinds_) {
      for (const std::string& dtype : dtypes_) {
        const std::string name = (kind == "identity" ? "identity, the bound X (OPT)" : kind) +
                                 (dtypes_.size() > 1 ? ", " + dtype : "");
        const double needed = 36 + kLetter * static_cast<double>(name.size()) + 20;
        if (x > kLeft && x + needed > width - 12) x = kLeft, y += kLegendLine, ++legend_lines_;
        svg += fmt::format("<path class=\"c{} line\" d=\"M{:.1f} {:.1f} h28\"{}/>\n", look(kind).colour, x,
                           y - 4, dashes(dtype));
        svg += point_at(look(kind), x + 14, y - 4);
        svg += text_at(x + 35, y, name, "");
        x += needed;
      }
    }
    return svg;
  }

  const Report& report_;
  std::set<int64_t> lengths_;
  std::vector<std::string> kinds_, directions_, dtypes_;
  mutable double legend_lines_ = 1;
};

}  // namespace

std::string to_svg(const Report& report) {
  if (report.rows.empty() || report.rows.front().op == "decode") return "";
  return Figure(report).draw();
}

}  // namespace performer::bench
