// SPDX-License-Identifier: Apache-2.0
// One page about one or several runs, in one file: nothing is fetched and no script is needed to read it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "performer/studies/experiment.h"

namespace performer::studies {

// All numbers of the page: {"runs": [{"name", "path", "settings", and Experiment::numbers}]}. Names are made
// unique by their paths where two folders have the same name.
nlohmann::ordered_json report_numbers(const std::vector<Experiment>& runs);

// The page. Every number from `numbers` (report_numbers) carries its value and its place there. Texts from
// the folders, names and samples included, are escaped; pictures from them stand in <img>. `footer` is a line
// at the end. Throws UsageError without a run, InputError for results of another form than this program
// writes.
std::string report_html(const std::vector<Experiment>& runs, const nlohmann::ordered_json& numbers,
                        const std::string& title, const std::string& footer);

}  // namespace performer::studies
