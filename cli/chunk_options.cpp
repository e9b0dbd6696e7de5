// SPDX-License-Identifier: Apache-2.0
#include "cli/chunk_options.h"

#include "cli/options.h"

namespace performer::cli {

void add_chunk_options(CLI::App& app, EmbedRequest& request) {
  whole_option(app, "--chunk", request.chunk, "tokens of a long sequence that are handled at a time",
               {.least = 1, .most = 1 << 24});
  whole_option(app, "--most-whole", request.most_whole,
               "longest sequence, in tokens, for models that cannot read in chunks: memory grows with it",
               {.least = 1});
}

}  // namespace performer::cli
