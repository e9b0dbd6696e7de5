// SPDX-License-Identifier: Apache-2.0
#include "performer/models/readers/weights_folder.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/data/json.h"
#include "performer/models/readers/torch_file.h"
#include "performer/models/safetensors.h"

namespace performer {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostIndexBytes = size_t{64} << 20;

StoredModel read_one(const std::string& path) {
  if (path.ends_with(".safetensors")) return {read_safetensors(path).tensors, {}};
  return read_torch_file(path);
}

// {"weight_map": {tensor: file}}
FolderWeights read_indexed(const fs::path& directory, const std::string& index) {
  const std::string path = (directory / index).string();
  const auto root = data::parse_json_object(read_file(path, kMostIndexBytes), path);
  check<InputError>(root.contains("weight_map") && root["weight_map"].is_object(),
                    "{} is no index of weights: it has no weight_map", path);
  std::map<std::string, std::set<std::string>> tensors_of;  // of each file
  for (const auto& [tensor, file] : root["weight_map"].items()) {
    check<InputError>(file.is_string(), "{}: the file of tensor '{}' is no text", path, tensor);
    const auto name = file.get<std::string>();
    check<InputError>(!name.empty() && fs::path(name).filename() == name && name != "..",
                      "{}: tensor '{}' lies in '{}', which is no file of this folder", path, tensor, name);
    tensors_of[name].insert(tensor);
  }
  FolderWeights weights;
  for (const auto& [name, tensors] : tensors_of) {
    const std::string file = (directory / name).string();
    check<InputError>(fs::exists(file), "{} names {}, which is not there: the download is incomplete", path,
                      file);
    StoredModel part = read_one(file);
    for (const std::string& tensor : tensors) {
      check<InputError>(part.tensors.contains(tensor), "{}: tensor '{}' is not in {}", path, tensor, name);
    }
    for (const auto& [tensor, value] : part.tensors) {
      check<InputError>(tensors.contains(tensor), "{} has the tensor '{}', which {} does not name", file,
                        tensor, path);
    }
    weights.stored.tensors.merge(part.tensors);
    weights.files.push_back(file);
  }
  return weights;
}

}  // namespace

FolderWeights read_weights_folder(const std::string& directory) {
  const fs::path base(directory);
  for (const char* stem : {"model.safetensors", "pytorch_model.bin"}) {
    const std::string whole = (base / stem).string();
    if (fs::exists(whole)) return {read_one(whole), {whole}};
    const std::string index = std::string(stem) + ".index.json";
    if (fs::exists(base / index)) return read_indexed(base, index);
  }
  throw InputError(fmt::format(
      "{} has no weights: expected model.safetensors, pytorch_model.bin, or an index of several such files",
      directory));
}

}  // namespace performer
