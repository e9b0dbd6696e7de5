// SPDX-License-Identifier: Apache-2.0
// What run() measures, made from a request. Private to this layer.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "performer/bench/bench.h"
#include "performer/nn/config.h"
#include "performer/ops/feature_maps.h"

namespace performer::bench {

// A row to come. `verify` fills in what was compared and, where the result is wrong, Row::failure. `work` is
// what is timed. Both keep what they need alive.
struct Case {
  Row row;
  std::function<void(Row&)> verify;
  std::function<void()> work;
};

// For rows that need them: all targets by name, and what a target is called.
struct Machine {
  std::vector<const kernels::FavorKernels*> targets;  // that rows are made for
  std::vector<std::pair<std::string, Limit>> limits;  // by dtype
  double limit(const std::string& dtype) const;
};

std::vector<Case> favor_cases(const Request& request, const Machine& machine);
// Their limit is that of passes over as much memory as the states, by the same threads.
std::vector<Case> decode_cases(const Request& request, const Machine& machine);
// Sequences of one length; a model takes much memory, so lengths are measured one after the other.
std::vector<Case> train_cases(const Request& request, const Machine& machine, int64_t length);

// Used by more than one of them.
at::ScalarType scalar_type(const std::string& dtype);
kernels::DataType data_type(const std::string& dtype);
// The kind of KIND[:PROJECTION[:ROW_NORM]] (studies/estimator.h) and of `identity+qk`.
std::string kind_name(const std::string& kind);
// The configuration of a row's kind: features where the kind has them, and `identity+qk` spelled out.
AttentionConfig attention_of(const std::string& kind, int64_t features, int64_t length = 1);
// The feature map of a kind as the kernels take it: tensors that own the memory, and pointers into them.
// Throws UsageError naming the kind when it is not linear attention that the kernels compute alone.
struct KernelMap {
  ops::PreparedMap prepared;
  kernels::FeatureMap map;
  at::Tensor factors;    // of the projection, undefined where it has none
  int64_t features = 0;  // of a query or key
  int64_t rows = 0;      // the kernels' M: features, or frequencies of cosines and sines
  bool projected = false;
};
KernelMap kernel_map(const std::string& kind, int64_t heads, int64_t head_size, int64_t features);

// Compares one result with what it should be: by the Euclidean norm of the difference, relative to that of
// the expected. Notes the largest error in the row, and a failure when it exceeds the bound of the row's
// dtype or a number is not finite.
void compare(Row& row, const at::Tensor& found, const at::Tensor& expected, const std::string& what);

}  // namespace performer::bench
