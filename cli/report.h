// SPDX-License-Identifier: Apache-2.0
// What several commands say about their inputs.
#pragma once

#include "performer/data/reader.h"

namespace performer::cli {

// Logs how much was read and what the reader changed (docs/formats.md): nothing is altered silently.
void report_changes(const data::ReadReport& report);

}  // namespace performer::cli
