// SPDX-License-Identifier: Apache-2.0
#include "cli/report.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <string>
#include <utility>

namespace performer::cli {

void report_changes(const data::FastaCounts& counts) {
  std::string changes;
  for (const auto& [count, what] :
       {std::pair{counts.lower_case, "lower-case letters read as upper case"},
        std::pair{counts.stops, "'*' at the end of a record dropped"}, std::pair{counts.gaps, "gaps dropped"},
        std::pair{counts.j_to_x, "J read as X"}, std::pair{counts.duplicate_names, "duplicate names kept"}}) {
    if (count > 0) changes += fmt::format("; {} {}", count, what);
  }
  spdlog::info("{} sequences, {} residues{}", counts.records, counts.residues, changes);
}

}  // namespace performer::cli
