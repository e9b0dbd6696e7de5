// SPDX-License-Identifier: Apache-2.0
// What a run left in its folder: settings, metrics, and results that were put beside them (docs/formats.md).
#pragma once

#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "performer/studies/heat_map.h"

namespace performer::studies {

// A step of training, or an evaluation on held-out data. NaN: not there.
struct CurvePoint {
  double step = 0, tokens = 0, seconds = 0;
  double loss = std::numeric_limits<double>::quiet_NaN();  // mean of a target, natural logarithm
  double accuracy = std::numeric_limits<double>::quiet_NaN();
};

struct WrittenSample {
  std::string file;  // name in the folder
  std::string text;  // its beginning; empty for pictures
  std::string png;   // bytes; empty for texts
  bool cut = false;  // the file is longer than the text
};

struct Experiment {
  std::string path;
  std::string name;  // the folder's own name
  std::map<std::string, std::string> settings;
  std::vector<CurvePoint> steps, held_out;
  // {"final": of metrics.jsonl or null, "step": of its last record, "valid": the last evaluation of the
  // training or null, "evaluations": {NAME: of evaluation-NAME.json}, "predictions": those of them, and of
  // the training, that are about labels, "results": results.json or null, "attention": attention.json or
  // null, "approximation": {"heads", "errors"} of performer approx --model or null, "provenance"}
  nlohmann::ordered_json numbers;
  // Pictures of attention, as files in the folder of attention.json, and maps of variants: text and what it
  // shows.
  struct Picture {
    std::string file, svg, description;
  };
  std::vector<Picture> attention_pictures, variant_maps;
  std::vector<WrittenSample> samples;
};

// Reads a folder that `performer train` made. Beside what training writes there, these are read where they
// lie in the folder: evaluation*.json of `performer evaluate --json`, results.json, variants*.svg, samples*.*
// and generated*.* (FASTA, text and PNG), and there or in a folder in it attention.json with its pictures and
// the tables of `performer approx
// --model`. Throws InputError, naming the folder, for one that is no run, for results that cannot be read,
// and for a run that did not reach its end unless `unfinished` allows it.
Experiment read_experiment(const std::string& path, bool unfinished);

// Whether a name is that of results that lie beside a model and may be replaced: evaluation*.json,
// results.json, report*.html.
bool is_result_file(const std::string& name);

}  // namespace performer::studies
