// SPDX-License-Identifier: Apache-2.0
// The weights of a Hugging Face folder: model.safetensors, several files named by
// model.safetensors.index.json, or the same as pytorch_model.bin.
#pragma once

#include <string>
#include <vector>

#include "performer/models/readers/stored.h"

namespace performer {

struct FolderWeights {
  StoredModel stored;
  std::vector<std::string> files;  // that were read
};

// safetensors before pytorch_model.bin. Throws InputError naming the folder when it has no weights, and for
// an index that names a file outside the folder, a tensor that its file does not have, or leaves one out.
FolderWeights read_weights_folder(const std::string& directory);

}  // namespace performer
