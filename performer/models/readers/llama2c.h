// SPDX-License-Identifier: Apache-2.0
// Models of llama2.c (karpathy/llama2.c, run.c): seven sizes, then float32 numbers; and its tokenizers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "performer/models/readers/stored.h"

namespace performer {

struct Llama2cSizes {
  int64_t width = 0, ffn = 0, layers = 0, heads = 0, kv_heads = 0, vocabulary = 0, max_length = 0;
  bool tied = true;
};
struct Llama2cModel {
  Llama2cSizes sizes;
  StoredModel stored;  // tok_embeddings, wq [L, H D, width], ... norm, freq_cis_real, and output unless tied
};

// Whether a file has exactly the bytes that its first seven numbers ask for.
bool is_llama2c(const std::string& path);
// Throws InputError naming the file for impossible sizes and when its bytes are more or fewer than they ask
// for.
Llama2cModel read_llama2c(const std::string& path);
// The texts of `count` tokens of a tokenizer.bin. Throws InputError naming the file when it is truncated, or
// has more or fewer.
std::vector<std::string> read_llama2c_tokens(const std::string& path, int64_t count);

}  // namespace performer
