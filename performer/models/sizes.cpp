// SPDX-License-Identifier: Apache-2.0
#include "performer/models/sizes.h"

#include <fmt/ranges.h>

#include "performer/base/error.h"

namespace performer {
namespace {

Preset make(const char* name, const char* description, int64_t layers, int64_t width, int64_t heads,
            int64_t ffn, int64_t length, int64_t batch_tokens) {
  Preset preset;
  preset.name = name;
  preset.description = description;
  preset.model.layers = layers;
  preset.model.width = width;
  preset.model.heads = heads;
  preset.model.ffn = ffn;
  preset.data.length = length;
  preset.data.batch_tokens = batch_tokens;
  return preset;
}

// Fig. 6 and appendix A of the Performer paper (arXiv 2009.14794): generalised ReLU attention with 256
// orthogonal features, single sequences clipped to 1024 tokens, learned positions; the papers redraw at every
// step.
Preset trembl() {
  Preset preset =
      make("trembl-36", "36 layers, 76.2 M parameters: the deep protein model of the Performer paper", 36,
           512, 8, 1024, 1024, 4096);
  preset.model.positions = "learned";
  preset.model.max_length = 1024;
  preset.attention.kind = "favor-relu";
  preset.attention.set("projection", "orthogonal").set("features", 256);
  preset.data.crop = "start";
  return preset;
}

}  // namespace

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = {
      make("tiny", "2 layers, 0.1 M parameters: for tests and a first look", 2, 64, 2, 256, 256, 4096),
      make("small", "4 layers, 0.8 M parameters: learns on a laptop within minutes", 4, 128, 4, 512, 512,
           8192),
      make("base", "6 layers, 19 M parameters: the default size of protein_lm", 6, 512, 8, 2048, 512, 16384),
      trembl(),
  };
  return all;
}

const Preset& preset(const std::string& name) {
  std::vector<std::string> known;
  for (const Preset& candidate : presets()) {
    if (candidate.name == name) return candidate;
    known.push_back(candidate.name);
  }
  const std::string near = nearest(name, known);
  throw UsageError(fmt::format("there is no preset '{}'{}; known presets: {}", name,
                               near.empty() ? "" : fmt::format("; did you mean '{}'?", near),
                               fmt::join(known, ", ")));
}

}  // namespace performer
