// SPDX-License-Identifier: Apache-2.0
// The sections of a report; empty where no run has anything for them. Private to report*.cpp.
#pragma once

#include <string>
#include <vector>

#include "performer/studies/chart.h"
#include "performer/studies/experiment.h"
#include "performer/studies/html.h"

namespace performer::studies {

struct ReportInput {
  const std::vector<Experiment>& runs;
  const nlohmann::ordered_json& numbers;

  std::string name(size_t run) const { return numbers["runs"][run]["name"]; }
  const nlohmann::ordered_json& of(size_t run) const { return numbers["runs"][run]; }
  // A pointer into the numbers of a run.
  static std::string at(size_t run, const std::string& rest) { return "/runs/" + std::to_string(run) + rest; }
};

// A part of a pointer: ~ and / are written as RFC 6901 has them.
std::string pointer_part(const std::string& key);

std::string figure(const Chart& chart);
std::string charts(const std::vector<Chart>& all);  // side by side where there is room

std::string learning_curves(const ReportInput& input);  // report_curves.cpp
std::string evaluations(const ReportInput& input);      // report_evaluations.cpp
std::string samples(const ReportInput& input);          // report_pictures.cpp
std::string attention(const ReportInput& input);        // report_pictures.cpp
std::string approximation(const ReportInput& input);    // report_pictures.cpp
std::string variants(const ReportInput& input);
std::string predictions(const ReportInput& input);
std::string other_results(const ReportInput& input);  // report_pictures.cpp

}  // namespace performer::studies
