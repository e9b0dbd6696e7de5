// SPDX-License-Identifier: Apache-2.0
// Pretrained Transformers of other programs as models of ours. docs/conversion.md says which.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "performer/models/convert/source_config.h"
#include "performer/models/convert/source_weights.h"
#include "performer/models/convert/tokens.h"
#include "performer/models/folder.h"

namespace performer::convert {

// What lies at a path, read once.
struct Source {
  std::string path;       // as it was given
  std::string directory;  // where the files beside it are
  SourceConfig config;    // config.json, or the values beside the tensors; empty when there are none
  Tensors tensors;
  std::string format;  // "safetensors", "torch", "flax", "llama2.c", "ctranslate2"
  // What the user says about it, "section.key": value. Some files do not hold all sizes.
  std::map<std::string, std::string> hints = {};

  // A whole number that only the user knows. Throws InputError asking for it.
  int64_t hinted(const std::string& key) const;

  SourceWeights weights() const { return {tensors, path}; }
};
// Throws InputError naming the path and what is wrong with it.
Source read_source(const std::string& path);

// A source in our terms. Tensors have our names; rows of embedding, output.weight and the output's bias stand
// in the order of the source's ids.
struct Imported {
  ModelConfig model;
  AttentionConfig attention;  // what the source computes: exact, unless the source is linear itself
  // Other kinds that the attention weights of the file may be of: they are kept when one of them is chosen.
  std::vector<std::string> kinds = {};
  Tensors tensors = {};
  SourceTokens tokens = {};
  std::vector<std::string> notes = {};  // for the user: what was left out, and why
  bool trained_head = true;             // false: the output layer is not the source's, which has none
};

// A family of models: how it is known and read. `recognises` looks at content alone.
struct Family {
  std::string name;
  std::string summary;  // one line for the help
  std::function<bool(const Source&)> recognises;
  std::function<Imported(const Source&)> import;
};
// Those of this folder, then those that were registered, in this order.
const std::vector<Family>& families();
void register_family(Family family);

struct Request {
  std::string source;
  std::string attention = "";              // a registered kind; empty: what the source computes
  std::vector<std::string> settings = {};  // "section.key=value", of [model], [attention] and [data]
  Tokenizer tokenizer = Tokenizer::automatic;
  std::string tokenizer_files = "";  // a folder, or a file in it, instead of the source's own
};
struct Conversion {
  ModelFolder folder;
  std::string family;
  std::vector<std::string> notes;
  bool trained_head = true;  // as in Imported
};
// Throws InputError for a source that no family recognises, and for missing, unexpected or misshapen tensors
// by name; UsageError for settings and kinds that do not fit.
Conversion convert(const Request& request);

// Copies tensors by our names into a model. Those of the attention kinds may be missing: they keep what they
// were initialised with. Throws InputError naming a tensor that is missing, has no place or another shape.
void load_tensors(LanguageModel& model, const Tensors& tensors, const std::string& source);

}  // namespace performer::convert
