// SPDX-License-Identifier: Apache-2.0
// The files beside a source that say what its tokens are.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/data/json.h"
#include "performer/models/convert/tokens.h"

namespace performer::convert {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr size_t kMostTokenBytes = size_t{96} << 20;

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string line = text.substr(at, end - at);
    if (line.ends_with('\r')) line.pop_back();
    lines.push_back(std::move(line));
    at = end + 1;
  }
  while (!lines.empty() && lines.back().empty()) lines.pop_back();
  return lines;
}

// One id of a table of tokens.
void put(std::vector<std::string>& texts, const std::string& text, const json& id, int64_t size,
         const std::string& path) {
  check<InputError>(id.is_number_integer(), "{}: the id of the token {} is no whole number", path,
                    shown(text));
  const auto number = id.get<int64_t>();
  check<InputError>(number >= 0 && number < size, "{}: token {} has the id {}, but the model has {} tokens",
                    path, shown(text), number, size);
  if (std::ssize(texts) <= number) texts.resize(static_cast<size_t>(number) + 1);
  check<InputError>(texts[number].empty() || texts[number] == text, "{}: {} and {} have the same id {}", path,
                    shown(texts[number]), shown(text), number);
  texts[number] = text;
}

json parse_tokens(const std::string& path) {
  return data::parse_json_object(read_file(path, kMostTokenBytes), path);
}

void put_all(std::vector<std::string>& texts, const json& table, int64_t size, const std::string& path) {
  if (table.is_object()) {
    for (const auto& [text, id] : table.items()) put(texts, text, id, size, path);
    return;
  }
  check<InputError>(table.is_array(), "{}: the table of tokens is neither an object nor a list", path);
  for (size_t i = 0; i < table.size(); ++i) {  // unigram: [text, score]
    check<InputError>(table[i].is_array() && !table[i].empty() && table[i][0].is_string(),
                      "{}: token {} has no text", path, i);
    put(texts, table[i][0].get<std::string>(), i, size, path);
  }
}

std::vector<std::string> tokenizer_json(const std::string& path, int64_t size) {
  const json root = parse_tokens(path);
  check<InputError>(root.contains("model") && root["model"].is_object() && root["model"].contains("vocab"),
                    "{} has no table of tokens (model.vocab)", path);
  std::vector<std::string> texts;
  put_all(texts, root["model"]["vocab"], size, path);
  if (root.contains("added_tokens") && root["added_tokens"].is_array()) {
    for (const json& token : root["added_tokens"]) {
      check<InputError>(token.is_object() && token.contains("id") && token.contains("content") &&
                            token["content"].is_string(),
                        "{}: an entry of added_tokens has no id and content", path);
      put(texts, token["content"].get<std::string>(), token["id"], size, path);
    }
  }
  return texts;
}

// fairseq's dict.txt: a token and its count a line, behind four markers and before MASK.
std::vector<std::string> fairseq_dictionary(const std::string& path, int64_t size) {
  std::vector<std::string> texts = {"<s>", "<pad>", "</s>", "<unk>"};
  for (const std::string& line : lines_of(read_file(path, kMostTokenBytes))) {
    const size_t space = line.rfind(' ');
    check<InputError>(space != std::string::npos && space > 0, "{}: \"{}\" is no token with its count", path,
                      shown(line));
    texts.push_back(line.substr(0, space));
  }
  if (std::ssize(texts) < size) texts.emplace_back("<mask>");
  return texts;
}

}  // namespace

SourceTokens read_tokens(const std::string& directory, int64_t size) {
  const fs::path base(directory.empty() ? "." : directory);
  const auto path_of = [&](const char* name) { return (base / name).string(); };
  std::vector<std::string> texts;
  std::string path;
  if (path = path_of("vocab.txt"); fs::exists(path)) {
    texts = lines_of(read_file(path, kMostTokenBytes));
  } else if (path = path_of("tokenizer.json"); fs::exists(path)) {
    texts = tokenizer_json(path, size);
  } else if (path = path_of("vocab.json"); fs::exists(path)) {
    put_all(texts, parse_tokens(path), size, path);
  } else if (path = path_of("dict.txt"); fs::exists(path)) {
    texts = fairseq_dictionary(path, size);
  } else {
    SourceTokens unknown;
    unknown.size = size;
    return unknown;
  }
  check<InputError>(std::ssize(texts) <= size,
                    "{} has {} tokens, but the model has {}: it belongs to another one", path, texts.size(),
                    size);
  return tokens_of_texts(std::move(texts), size);
}

}  // namespace performer::convert
