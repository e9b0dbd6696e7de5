// SPDX-License-Identifier: Apache-2.0
// The native model folder (docs/formats.md):
//
//   config.json           format version, [model] [attention] [data] sections, provenance
//   tokenizer.json        the vocabulary
//   baselines.json        unigram and bigram counts of the training split
//   model.safetensors     parameters and projections
//   head.safetensors      of fine-tuned models: what is predicted beside tokens (prediction_head.h)
//   training.safetensors  everything a resume needs, parameters included: one file, hence one atomic rename
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>

#include "performer/data/baselines.h"
#include "performer/data/config.h"
#include "performer/data/vocabulary.h"
#include "performer/models/language_model.h"
#include "performer/models/prediction_head.h"
#include "performer/models/safetensors.h"

namespace performer {

inline constexpr int kModelFormat = 2;  // raised when an older program could misread a folder

struct ModelFolder {
  LanguageModel model{nullptr};
  // With the format, the vocabulary's name and the image shape of the training data (data::record_source).
  DataConfig data;
  data::Vocabulary vocabulary = data::Vocabulary::protein();
  data::Baselines baselines{data::Vocabulary::protein().symbols()};  // as many symbols as the vocabulary has
  bool has_baselines = true;   // false: the folder had none, and `baselines` counts nothing
  std::string objective_note;  // for example the corruption mix the model was trained with
  std::string from;            // the model folder that training started from; empty: none
  PredictionHead head{nullptr};
};

// Writes all files but training.safetensors, baselines.json where has_baselines and head.safetensors where
// there is a head. Throws Error when the model's embedding or the baselines are of another size than the
// vocabulary, and when a file cannot be written.
void save_model(const std::string& directory, const ModelFolder& folder);
// The model is in evaluation mode. config.json and the weights must be there; tokenizer.json too unless the
// configuration names a vocabulary that is built in (data::vocabulary_names()). Without baselines.json
// has_baselines is false, and without head.safetensors there is no head. Throws InputError for a missing,
// truncated or foreign folder and for another format.
ModelFolder load_model(const std::string& directory);

// The configuration of a model folder, without its weights. Throws as load_model() does.
struct ModelSettings {
  ModelConfig model;
  AttentionConfig attention;
  DataConfig data;
};
ModelSettings read_model_settings(const std::string& directory);

// The texts of a folder, and a model of them: load_model() reads the files and calls this. `directory` is for
// messages. A configuration that asks for a larger model than the weights are of is refused before memory is
// taken for it (bounds.h).
struct ModelTexts {
  std::string config;
  std::optional<std::string> tokenizer = {}, baselines = {};
};
ModelFolder parse_model(const std::string& directory, const ModelTexts& texts,
                        const std::function<TensorFile()>& read_weights);

// Parameters and buffers by name; set_state checks that names and shapes agree exactly and names the first
// that does not.
std::map<std::string, at::Tensor> model_state(const LanguageModel& model);
void set_model_state(LanguageModel& model, const std::map<std::string, at::Tensor>& state,
                     const std::string& source);

}  // namespace performer
