// SPDX-License-Identifier: Apache-2.0
// Our tensors under the names of Hugging Face. Private to convert/.
#pragma once

#include <optional>
#include <string>

#include "performer/models/convert/source_weights.h"
#include "performer/models/folder.h"

namespace performer::convert {

// Where our rows of tokens go: to the ids of the source, or, for models that were not imported, nowhere else.
class ExportRows {
 public:
  explicit ExportRows(const data::Vocabulary& vocabulary);

  int64_t size() const { return static_cast<int64_t>(from_.size()); }
  at::Tensor order(const at::Tensor& ours) const;  // rows [size of the vocabulary, ...] -> [size(), ...]
  std::optional<int64_t> id_of(int64_t ours) const;

 private:
  std::vector<int64_t> ids_;   // of each of ours, -1: none
  std::vector<int64_t> from_;  // of each of theirs
};

// The row of positions that the first token of a sequence has.
int64_t first_position(const ModelFolder& folder, const std::string& shape);
// `shape` as export_shape() names it.
Tensors export_tensors(const std::string& shape, const ModelFolder& folder, const Tensors& state);

}  // namespace performer::convert
