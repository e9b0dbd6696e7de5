// SPDX-License-Identifier: Apache-2.0
#include "performer/models/readers/llama2c.h"

#include <optional>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/models/readers/byte_cursor.h"

namespace performer {
namespace {

constexpr size_t kLlama2cHeader = 7 * sizeof(int32_t);
constexpr int64_t kLargestLlama2cSize = int64_t{1} << 20;  // of any size in the header

std::optional<Llama2cSizes> read_llama2c_sizes(std::span<const std::byte> bytes, const std::string& source) {
  if (bytes.size() < kLlama2cHeader) return std::nullopt;
  ByteCursor cursor(bytes, source);
  int64_t values[7];
  for (int64_t& value : values) value = cursor.number<int32_t>("the header");
  Llama2cSizes sizes{values[0], values[1],           values[2], values[3],
                     values[4], std::abs(values[5]), values[6], values[5] > 0};
  for (const int64_t size : {sizes.width, sizes.ffn, sizes.layers, sizes.heads, sizes.kv_heads,
                             sizes.vocabulary, sizes.max_length}) {
    if (size < 1 || size > kLargestLlama2cSize) return std::nullopt;
  }
  if (sizes.width % sizes.heads != 0 || sizes.heads % sizes.kv_heads != 0 ||
      sizes.width / sizes.heads % 2 != 0)
    return std::nullopt;
  return sizes;
}

struct Llama2cPart {
  const char* name;
  std::vector<int64_t> shape;
};
std::vector<Llama2cPart> parts_of(const Llama2cSizes& s) {
  const int64_t head = s.width / s.heads, keys = s.kv_heads * head;
  std::vector<Llama2cPart> parts = {{"tok_embeddings", {s.vocabulary, s.width}},
                                    {"attention_norm", {s.layers, s.width}},
                                    {"wq", {s.layers, s.width, s.width}},
                                    {"wk", {s.layers, keys, s.width}},
                                    {"wv", {s.layers, keys, s.width}},
                                    {"wo", {s.layers, s.width, s.width}},
                                    {"ffn_norm", {s.layers, s.width}},
                                    {"w1", {s.layers, s.ffn, s.width}},
                                    {"w2", {s.layers, s.width, s.ffn}},
                                    {"w3", {s.layers, s.ffn, s.width}},
                                    {"norm", {s.width}},
                                    {"freq_cis_real", {s.max_length, head / 2}},
                                    {"freq_cis_imag", {s.max_length, head / 2}}};
  if (!s.tied) parts.push_back({"output", {s.vocabulary, s.width}});
  return parts;
}

double bytes_of(const Llama2cPart& part) {
  double bytes = sizeof(float);
  for (const int64_t extent : part.shape) bytes *= static_cast<double>(extent);
  return bytes;
}

bool fits_llama2c(const Llama2cSizes& sizes, size_t bytes) {
  double wanted = kLlama2cHeader;
  for (const Llama2cPart& part : parts_of(sizes)) wanted += bytes_of(part);
  return wanted == static_cast<double>(bytes);
}

}  // namespace

bool is_llama2c(const std::string& path) {
  const MappedFile file(path);
  const auto sizes = read_llama2c_sizes({file.data(), file.size()}, path);
  return sizes && fits_llama2c(*sizes, file.size());
}

Llama2cModel read_llama2c(const std::string& path) {
  const MappedFile file(path);
  const std::span<const std::byte> bytes(file.data(), file.size());
  const auto sizes = read_llama2c_sizes(bytes, path);
  check<InputError>(sizes && fits_llama2c(*sizes, file.size()),
                    "{} is no model of llama2.c, or truncated: its {} bytes are not what seven sizes at its "
                    "beginning ask for",
                    path, file.size());
  Llama2cModel model{*sizes, {}};
  ByteCursor cursor(bytes, path);
  cursor.take(kLlama2cHeader, "the header");
  for (const Llama2cPart& part : parts_of(*sizes)) {
    const auto data = cursor.take(static_cast<uint64_t>(bytes_of(part)), part.name);
    model.stored.tensors[part.name] = tensor_of_bytes(data, part.shape, at::kFloat, part.name, path);
  }
  return model;
}

std::vector<std::string> read_llama2c_tokens(const std::string& path, int64_t count) {
  const MappedFile file(path);
  ByteCursor cursor({file.data(), file.size()}, path);
  cursor.number<int32_t>("the longest token");
  std::vector<std::string> tokens;
  for (int64_t i = 0; i < count; ++i) {
    cursor.number<float>("the score of a token");
    const auto size = cursor.number<int32_t>("the size of a token");
    check<InputError>(size >= 0, "{} is damaged: token {} has {} bytes", path, i, size);
    tokens.emplace_back(cursor.text(static_cast<uint64_t>(size), "a token"));
  }
  check<InputError>(cursor.left() == 0, "{} has {} bytes behind its {} tokens: it belongs to another model",
                    path, cursor.left(), count);
  return tokens;
}

}  // namespace performer
