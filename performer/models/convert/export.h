// SPDX-License-Identifier: Apache-2.0
// Models of ours as Hugging Face folders that transformers loads unchanged.
#pragma once

#include <string>
#include <vector>

#include "performer/models/folder.h"

namespace performer::convert {

// The shape that a model has there: bert, roberta, esm, gpt2 or llama. Throws UsageError naming every reason
// why none of them computes what this model computes: another attention kind than exact, for example.
std::string export_shape(const ModelFolder& folder);

// Writes config.json, model.safetensors and, for vocabularies of letters, vocab.txt. Tokens get the ids that
// they had in the source, or else ours. Returns sentences for the user. Throws as export_shape() does, and
// Error where a file cannot be written.
std::vector<std::string> export_model(const std::string& directory, const ModelFolder& folder);

}  // namespace performer::convert
