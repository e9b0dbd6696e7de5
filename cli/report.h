// SPDX-License-Identifier: Apache-2.0
// What several commands say about their inputs.
#pragma once

#include "performer/data/fasta.h"

namespace performer::cli {

// Logs what the reader changed (docs/formats.md), if anything: nothing is altered silently.
void report_changes(const data::FastaCounts& counts);

}  // namespace performer::cli
