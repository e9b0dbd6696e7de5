// SPDX-License-Identifier: Apache-2.0
// The commands of the program. Each adds its options to `app` and returns what to do once they are parsed.
// Commands parse, call and report; they throw errors and never exit.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace performer::cli {

using Action = std::function<void()>;

Action train_command(CLI::App& app);
Action evaluate_command(CLI::App& app);
Action score_command(CLI::App& app);
Action predict_command(CLI::App& app);
Action embed_command(CLI::App& app);
Action variants_command(CLI::App& app);
Action generate_command(CLI::App& app);
Action convert_command(CLI::App& app);
Action export_command(CLI::App& app);
Action approx_command(CLI::App& app);
Action attention_command(CLI::App& app);
Action report_command(CLI::App& app);
Action bench_command(CLI::App& app);
Action info_command(CLI::App& app);

}  // namespace performer::cli
