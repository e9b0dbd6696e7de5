// SPDX-License-Identifier: Apache-2.0
#include "cli/report.h"

#include <spdlog/spdlog.h>

namespace performer::cli {

void report_changes(const data::ReadReport& report) {
  spdlog::info("{}", data::summary(report));
}

}  // namespace performer::cli
