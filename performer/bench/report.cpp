// SPDX-License-Identifier: Apache-2.0
#include "performer/bench/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "performer/studies/table.h"

namespace performer::bench {
namespace {

using Json = nlohmann::ordered_json;
constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

const BreakEven* find(const std::vector<BreakEven>& all, const Row& row) {
  for (const BreakEven& each : all) {
    if (each.kind == row.kind && each.direction == row.direction && each.pass == row.pass &&
        each.dtype == row.dtype && each.target == row.target)
      return &each;
  }
  return nullptr;
}

// Three or four digits are enough for people.
studies::Cell rounded(double value) {
  if (!std::isfinite(value) || value == 0) return value;
  const double unit = std::pow(10.0, std::floor(std::log10(std::abs(value))) - (value >= 1000 ? 3 : 2));
  const double near = std::round(value / unit) * unit;
  if (near >= 1000) return static_cast<int64_t>(std::llround(near));
  return near;
}

double mebibytes(int64_t bytes) {
  return static_cast<double>(bytes) / (1 << 20);
}

std::string percent(double share) {
  return std::isfinite(share) ? fmt::format("{:.0f} %", 100 * share) : "";
}

std::string limits_text(const Report& report) {
  std::string text = report.machine + ".\n";
  for (const auto& [dtype, limit] : report.limits)
    text += fmt::format("Limit in {}: {:.0f} GFLOP/s ({}).\n", dtype, limit.flops / 1e9, limit.name);
  return text;
}

std::string pass_text(const std::string& pass) {
  return pass == "forward" ? "forward" : "forward and backward";
}

std::string failures_text(const Report& report) {
  std::string text;
  for (const Row& row : report.rows) {
    if (row.failure.empty()) continue;
    text += fmt::format("Not timed: {} {}, {}, {}, {} tokens, {}: {}.\n", row.kind, row.target, row.direction,
                        pass_text(row.pass), row.length, row.dtype, row.failure);
  }
  return text;
}

// ns per token and head by length, and more about the longest.
std::string favor_table(const Report& report, const std::string& direction, const std::string& pass) {
  std::set<int64_t> lengths;
  std::vector<std::tuple<std::string, std::string, std::string>> lines;  // kind, target, dtype
  for (const Row& row : report.rows) {
    if (row.direction != direction || row.pass != pass) continue;
    lengths.insert(row.length);
    const auto line = std::make_tuple(row.kind, row.target, row.dtype);
    if (std::find(lines.begin(), lines.end(), line) == lines.end()) lines.push_back(line);
  }
  if (lines.empty()) return "";
  studies::Table table;
  table.title = fmt::format(
      "{}, {}: ns per token and head by length; GFLOP/s, share of the limit and memory beside "
      "inputs and outputs of the longest",
      direction, pass_text(pass));
  table.columns = {"kind", "target", "dtype"};
  for (const int64_t length : lengths) table.columns.push_back(fmt::format("{}", length));
  for (const char* name : {"GFLOP/s", "of limit", "MiB"}) table.columns.emplace_back(name);
  for (const auto& [kind, target, dtype] : lines) {
    std::vector<studies::Cell> cells = {kind, target, dtype};
    const Row* last = nullptr;
    for (const int64_t length : lengths) {
      studies::Cell ns = kMissing;
      for (const Row& row : report.rows) {
        if (row.direction != direction || row.pass != pass || row.length != length || row.kind != kind ||
            row.target != target || row.dtype != dtype)
          continue;
        ns = rounded(row.ns);
        if (row.timed()) last = &row;
      }
      cells.push_back(ns);
    }
    cells.push_back(rounded(last != nullptr ? last->per_second() / 1e9 : kMissing));
    cells.emplace_back(last != nullptr ? percent(last->share_of_limit()) : "");
    cells.push_back(rounded(last != nullptr ? mebibytes(last->extra_bytes) : kMissing));
    table.add(cells);
  }
  return studies::to_text(table) + "\n";
}

std::string break_even_text(const Report& report) {
  std::string text;
  for (const BreakEven& each : report.break_even) {
    const char* relation = each.relation == '<' ? "below " : each.relation == '>' ? "above " : "";
    text += fmt::format("  {} {}, {}, {}, {}: {}{:.0f} tokens\n", each.kind, each.target, each.direction,
                        pass_text(each.pass), each.dtype, relation, each.length);
  }
  return text.empty()
             ? text
             : "Faster than exact softmax attention of the same precision from this length on:\n" + text;
}

std::string decode_table(const Report& report) {
  studies::Table table;
  table.title =
      "one token of each sequence: ns per token and head, and the share of what passes over as much memory "
      "reach";
  table.columns = {"kind", "target", "dtype", "batch", "ns", "GB/s", "limit GB/s", "of limit", "state MiB"};
  for (const Row& row : report.rows) {
    table.add({row.kind, row.target, row.dtype, row.batch, rounded(row.ns), rounded(row.per_second() / 1e9),
               rounded(row.limit / 1e9), percent(row.timed() ? row.share_of_limit() : kMissing),
               rounded(mebibytes(row.extra_bytes))});
  }
  return studies::to_text(table) + "\n";
}

// Tokens a second, also as a share of those of the two bounds.
std::string train_table(const Report& report) {
  studies::Table table;
  table.title =
      "tokens a second of the whole model (forward_backward: a training step), also as a share of identity's "
      "and of identity's with queries and keys";
  table.columns = {"kind",     "direction",   "pass",           "dtype",    "length",
                   "tokens/s", "of identity", "of identity+qk", "of limit", "MiB"};
  const auto bound = [&](const Row& row, const char* kind) {
    for (const Row& other : report.rows) {
      if (other.kind == kind && other.length == row.length && other.direction == row.direction &&
          other.pass == row.pass && other.dtype == row.dtype)
        return other.ns / row.ns;
    }
    return kMissing;
  };
  for (const Row& row : report.rows) {
    table.add({row.kind, row.direction, row.pass, row.dtype, row.length, rounded(row.tokens_per_second()),
               rounded(bound(row, "identity")), rounded(bound(row, "identity+qk")),
               percent(row.timed() ? row.share_of_limit() : kMissing), rounded(mebibytes(row.extra_bytes))});
  }
  return studies::to_text(table) + "\n";
}

}  // namespace

Json to_json(const Report& report) {
  Json rows = Json::array();
  for (const Row& row : report.rows) {
    Json object = {{"op", row.op},
                   {"kind", row.kind},
                   {"direction", row.direction},
                   {"pass", row.pass},
                   {"dtype", row.dtype},
                   {"target", row.target},
                   {"length", row.length},
                   {"heads", row.heads},
                   {"head_size", row.head_size},
                   {"features", row.features},
                   {"ns", number(row.ns)},
                   {"share_of_limit", number(row.timed() ? row.share_of_limit() : kMissing)},
                   {"batch", row.batch},
                   {"threads", row.threads},
                   {"ns_median", number(row.ns_median)},
                   {"repetitions", row.repetitions},
                   {row.op == "decode" ? "gbytes_per_second" : "gflops", number(row.per_second() / 1e9)},
                   {row.op == "decode" ? "limit_gbytes_per_second" : "limit_gflops", number(row.limit / 1e9)},
                   {"extra_bytes", row.extra_bytes},
                   {"verified_tokens", row.verified_tokens},
                   {"error", number(row.error)}};
    if (row.op == "train") object["tokens_per_second"] = number(row.tokens_per_second());
    if (!row.failure.empty()) object["failure"] = row.failure;
    if (const BreakEven* crossing = find(report.break_even, row)) {
      object["break_even"] = {{"length", std::round(crossing->length)},
                              {"relation", std::string(1, crossing->relation)}};
    }
    object["machine"] = report.machine;
    rows.push_back(object);
  }
  return rows;
}

std::string to_text(const Report& report) {
  std::string text =
      limits_text(report) +
      "Each row agrees with the definition; times are the fastest of repetitions that took turns.\n\n";
  if (report.rows.empty()) return text;
  const std::string& op = report.rows.front().op;
  if (op == "decode") text += decode_table(report);
  if (op == "train") text += train_table(report);
  if (op == "favor") {
    for (const char* direction : {"bidirectional", "causal"}) {
      for (const char* pass : {"forward", "forward_backward"}) text += favor_table(report, direction, pass);
    }
    text += break_even_text(report);
  }
  return text + failures_text(report);
}

}  // namespace performer::bench
