// SPDX-License-Identifier: Apache-2.0
// Fuzz entry of tables of labels: what is read has names that can be printed and values that fit them
// (libFuzzer: clang++ -fsanitize=fuzzer,address,undefined).
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "performer/base/error.h"
#include "performer/data/labels.h"

namespace performer::labels_fuzz {

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "labels: %s\n", what);
  std::abort();
}

inline void try_form(const data::TextTable& rows, const data::LabelForm& form) {
  try {
    const data::LabelTable table(rows, "table", form);
    for (const std::string& name : table.classes())
      require(printable(name) == name, "a class cannot be printed");
    for (const auto& [id, row] : table.rows()) {
      require(!id.empty() && !row.values.empty(), "a row is empty");
      require(row.weight >= 0, "a weight is negative");
      for (const float value : row.values) {
        const auto classes = static_cast<float>(table.classes().size());
        require(!std::isinf(value), "a value is infinite");
        require(!form.classes || std::isnan(value) || (value >= 0 && value < classes), "a class has no name");
      }
    }
  } catch (const InputError&) {  // a table that is none
    return;
  }
}

}  // namespace performer::labels_fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace performer;
  const auto source = data::memory_bytes({reinterpret_cast<const char*>(data), size});
  data::TextTable rows;
  try {
    rows = data::read_table(*source, "table", /*header=*/false);
  } catch (const InputError&) {
    return 0;
  }
  for (const bool classes : {true, false}) {
    for (const bool per_token : {true, false}) labels_fuzz::try_form(rows, {classes, per_token});
  }
  return 0;
}
