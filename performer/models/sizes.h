// SPDX-License-Identifier: Apache-2.0
// Named configurations: tiny, small, base, and the paper's trembl-36.
#pragma once

#include <string>
#include <vector>

#include "performer/data/batches.h"
#include "performer/nn/config.h"

namespace performer {

struct Preset {
  std::string name, description;
  ModelConfig model;
  AttentionConfig attention;
  DataConfig data;
};

const std::vector<Preset>& presets();
const Preset& preset(const std::string& name);  // throws UsageError with the known names

}  // namespace performer
