// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "performer/data/reader.h"

namespace performer {

// A sequence of the index of embeddings.
struct EmbeddedSequence {
  std::string id;
  int64_t length = 0;               // in tokens, markers not counted
  int64_t first_row = 0, rows = 0;  // in the array, from 0
};

// Where embed() puts what it makes, sequence by sequence in the order of the input.
class EmbeddingSink {
 public:
  virtual ~EmbeddingSink() = default;

  virtual const std::vector<int64_t>& layers() const = 0;  // that are wanted, ascending
  virtual int64_t width() const = 0;
  // What an interrupted run has finished already, the first sequences of the input.
  virtual std::span<const EmbeddedSequence> finished() const { return {}; }

  // The next sequence, of which `rows` rows come by write(), in any order: values [C, width] for the rows
  // first .. first + C - 1 and the layer at place `place` of layers(). end() says that all have come.
  virtual void begin(const data::Record& record, int64_t rows) = 0;
  virtual void write(int64_t first, int64_t place, const at::Tensor& values) = 0;
  virtual void end() = 0;
  // Brings what is finished to where it outlives the process.
  virtual void flush() {}
};

}  // namespace performer
