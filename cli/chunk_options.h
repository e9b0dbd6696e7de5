// SPDX-License-Identifier: Apache-2.0
// How sequences of any length are read: options that `embed` and `predict` share.
#pragma once

#include <CLI/CLI.hpp>

#include "performer/infer/embed.h"

namespace performer::cli {

// --chunk and --most-whole.
void add_chunk_options(CLI::App& app, EmbedRequest& request);

}  // namespace performer::cli
