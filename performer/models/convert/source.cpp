// SPDX-License-Identifier: Apache-2.0
// From a path to a Source: which format the weights have is found out from their first bytes.
#include <algorithm>
#include <filesystem>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/models/convert/convert.h"
#include "performer/models/readers/llama2c.h"
#include "performer/models/readers/msgpack.h"
#include "performer/models/readers/torch_file.h"
#include "performer/models/readers/weights_folder.h"
#include "performer/models/safetensors.h"

namespace performer::convert {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostConfigBytes = size_t{4} << 20;

void read_config(Source& source) {
  const fs::path path = fs::path(source.directory) / "config.json";
  if (!fs::exists(path)) return;
  source.config = SourceConfig::of_json(read_file(path.string(), kMostConfigBytes), path.string());
}

Source read_folder(const std::string& path) {
  Source source{path, path, {}, {}, "safetensors"};
  check<InputError>(
      fs::exists(fs::path(path) / "config.json"),
      "{} has no config.json: a Hugging Face folder has one; give a single file of weights by its "
      "own path",
      path);
  read_config(source);
  check<InputError>(
      !source.config.has("format") || source.config.text_or("model_type", "performer") != "performer",
      "{} is a model of this program already: nothing is left to convert", path);
  const FolderWeights weights = read_weights_folder(path);
  source.tensors = weights.stored.tensors;
  if (!weights.files.empty() && !weights.files.front().ends_with(".safetensors")) source.format = "torch";
  return source;
}

void take(Source& source, StoredModel stored, const char* format) {
  source.tensors = std::move(stored.tensors);
  source.format = format;
  if (!stored.scalars.empty()) source.config = SourceConfig(std::move(stored.scalars), source.path);
}

// Whether a file could be a Flax checkpoint: a map with a text as its first key.
bool is_flax(std::span<const std::byte> bytes) {
  if (bytes.size() < 3) return false;
  const auto first = static_cast<unsigned>(bytes[0]);
  return (first >= 0x81 && first <= 0x8f) || first == 0xde;
}

Source read_file_source(const std::string& path) {
  Source source{path, fs::path(path).parent_path().string(), {}, {}, ""};
  const MappedFile file(path);
  const std::span<const std::byte> bytes(file.data(), file.size());
  check<InputError>(!bytes.empty(), "{} is empty", path);
  if (is_torch_file(bytes)) {
    take(source, parse_torch_file(bytes, path), "torch");
  } else if (path.ends_with(".safetensors")) {
    read_config(source);
    source.tensors = parse_safetensors(bytes, path).tensors;
    source.format = "safetensors";
  } else if (is_llama2c(path)) {
    source.format = "llama2.c";
  } else if (bytes.size() > 24 && std::memcmp(bytes.data() + 6, "Transformer", 11) == 0) {
    source.format = "ctranslate2";
  } else if (is_flax(bytes)) {
    take(source, parse_flax(bytes, path), "flax");
  } else {
    throw InputError(
        fmt::format("{} is no file of weights that is known here: expected a Hugging Face folder, "
                    "safetensors, a file of torch.save(), a Flax checkpoint, or a model of llama2.c",
                    path));
  }
  return source;
}

}  // namespace

Source read_source(const std::string& path) {
  check<InputError>(fs::exists(path), "there is no {}", path);
  return fs::is_directory(path) ? read_folder(path) : read_file_source(path);
}

}  // namespace performer::convert
