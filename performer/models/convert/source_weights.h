// SPDX-License-Identifier: Apache-2.0
// The tensors of a source, each of which must find its place.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace performer::convert {

using Tensors = std::map<std::string, at::Tensor>;

// Tensors are taken by name, as float32. What is missing is noted, what nobody takes is left over; finish()
// says all of it at once. `source` names the weights in messages.
class SourceWeights {
 public:
  SourceWeights(Tensors tensors, std::string source)
      : tensors_(std::move(tensors)), source_(std::move(source)) {}

  bool has(const std::string& name) const { return tensors_.contains(name); }
  // The size of a dimension of a tensor that must be there. Throws InputError naming it otherwise.
  int64_t size(const std::string& name, int64_t dimension) const;
  // Throws InputError for another shape than `shape`; zeros where the tensor is missing, which finish()
  // tells.
  at::Tensor take(const std::string& name, const std::vector<int64_t>& shape);
  at::Tensor take_or_zeros(const std::string& name, const std::vector<int64_t>& shape);
  // How many numbered parts there are: names that begin with PREFIX0., PREFIX1. ...
  int64_t count(const std::string& prefix) const;

  // All names without this beginning, where at least one has it; the others stay as they are.
  void strip(const std::string& prefix);
  // Names in which `from` stands, with `to` in its place.
  void rename(const std::string& from, const std::string& to);
  // Leaves out tensors whose name contains `part`, which a language model does not need; report() names them.
  void leave_out(const std::string& part, const std::string& why);
  // Drops `name` where it holds what `same` does, as a tied weight stored twice; otherwise it stays.
  bool drop_if_equal(const std::string& name, const std::string& same);

  // Throws InputError naming what was missing and what nobody took.
  void finish() const;
  // A sentence for each reason of leave_out().
  std::vector<std::string> report() const;
  const std::string& source() const { return source_; }

 private:
  Tensors tensors_;
  std::string source_;
  std::vector<std::string> missing_;
  std::map<std::string, std::vector<std::string>> left_out_;  // reason: names
};

}  // namespace performer::convert
