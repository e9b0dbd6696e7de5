// SPDX-License-Identifier: Apache-2.0
// Measurements of the attention kernels, of decoding and of training steps on this machine: each row is
// compared with the definition before it is timed, and a row that is wrong has no time.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "performer/bench/limits.h"
#include "performer/bench/timing.h"
#include "performer/kernels/favor.h"

namespace performer::bench {

struct Request {
  std::string op = "favor";        // favor, decode or train
  std::vector<std::string> kinds;  // empty: those of default_kinds()
  std::vector<int64_t> lengths;    // tokens of a sequence; empty: those of default_lengths()
  std::vector<std::string>
      dtypes;  // float32, bfloat16, float16; empty: float32 and, not for decode, bfloat16
  std::vector<std::string>
      directions;  // bidirectional, causal; empty: both, of train and decode causal alone
  std::vector<std::string> passes = {"forward", "forward_backward"};
  std::vector<std::string> targets;  // names of kernels::available_favor_kernels(), or "all"; empty: the best
  int64_t heads = 8, head_size = 64, features = 256;
  int64_t batch = 0;                                        // sequences; 0: 1, of decode 64
  std::string preset = "base";                              // size of the model that is trained
  TimingOptions timing = {.repetitions = 0, .seconds = 0};  // 0: 7 and 0.4, of train 3 and 60
};

// One measurement. Training steps too are divided by tokens and heads, though they hold the whole model.
struct Row {
  std::string op, kind, direction, pass, dtype, target;
  int64_t length = 0, heads = 0, head_size = 0, features = 0, batch = 1;
  int threads = 1;
  std::string failure;  // why there is no time: the row differs from the definition
  double ns = std::numeric_limits<double>::quiet_NaN();         // per token and head, fastest sample
  double ns_median = std::numeric_limits<double>::quiet_NaN();  // the same, median of the samples
  int64_t repetitions = 0;                                      // samples
  double work =
      std::numeric_limits<double>::quiet_NaN();  // useful operations (decode: bytes) per token and head
  double limit = std::numeric_limits<double>::quiet_NaN();  // operations (decode: bytes) a second
  int64_t extra_bytes = 0;                                  // beside inputs and outputs
  int64_t verified_tokens = 0;  // length of the sequence that was compared with the reference
  double error = 0;             // largest relative error found, Euclidean norm

  bool timed() const { return failure.empty() && std::isfinite(ns); }
  double per_second() const { return work / ns * 1e9; }  // operations (decode: bytes)
  double share_of_limit() const { return per_second() / limit; }
  double tokens_per_second() const { return 1e9 / (ns * static_cast<double>(heads)); }  // of train
};

// Where the linear kind becomes faster than exact softmax attention of the same direction, pass and dtype.
struct BreakEven {
  std::string kind, direction, pass, dtype, target;
  double length = 0;    // between two measured lengths, or the bound that `relation` says
  char relation = '=';  // '=': at; '<': below `length`, the shortest; '>': above it, the longest
};

struct Report {
  std::vector<Row> rows;
  std::vector<BreakEven> break_even;
  std::vector<std::pair<std::string, Limit>> limits;  // by dtype
  std::string machine;                                // processor and threads, one line

  bool all_right() const;  // no row failed
};

std::vector<std::string> default_kinds(const std::string& op);
std::vector<int64_t> default_lengths(const std::string& op);

// Throws UsageError naming the option for what cannot be measured, before anything is.
void validate(const Request& request);
// With LibTorch's threads as they are set. Throws as validate() does.
Report run(const Request& request, const Progress& progress = {});

// The lengths at which pairs of rows of `exact` and another kind cross, by interpolation on logarithmic axes.
std::vector<BreakEven> break_even(const std::vector<Row>& rows);

}  // namespace performer::bench
