// SPDX-License-Identifier: Apache-2.0
#include "performer/models/convert/convert.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>

#include "performer/base/error.h"
#include "performer/base/numbers.h"
#include "performer/models/convert/families.h"
#include "performer/nn/attention/kind.h"

namespace performer::convert {
namespace {

constexpr int64_t kLongestPiece = 1024;  // of data.length, which training reads

std::vector<Family>& all_families() {
  static std::vector<Family> all = {
      bert_family(),  roberta_family(),     distilbert_family(),      esm_family(),    gpt2_family(),
      llama_family(), fairseq_esm_family(), fairseq_roberta_family(), llama2c_family()};
  return all;
}

const Family& family_of(const Source& source) {
  std::vector<std::string> known;
  for (const Family& family : families()) {
    if (family.recognises(source)) return family;
    known.push_back(family.summary);
  }
  const std::string type = source.config.text_or("model_type", "");
  check<InputError>(
      source.format != "ctranslate2",
      "{} is an encoder-decoder of CTranslate2; the model folder holds language models alone, so "
      "only the library reads it (performer::convert::import_ctranslate2)",
      source.path);
  throw InputError(fmt::format("{} is of no known family{}; known: {}", source.path,
                               type.empty() ? "" : fmt::format(" (its model_type is {})", type),
                               fmt::join(known, "; ")));
}

std::map<std::string, std::string> hints_of(const std::vector<std::string>& settings) {
  std::map<std::string, std::string> hints;
  for (const std::string& setting : settings) {
    const size_t equals = setting.find('=');
    if (equals != std::string::npos) hints[setting.substr(0, equals)] = setting.substr(equals + 1);
  }
  return hints;
}

void apply(const std::string& setting, Imported& imported, DataConfig& data) {
  const size_t equals = setting.find('='), point = setting.find('.');
  check<UsageError>(equals != std::string::npos && point < equals, "--set {}: expected section.key=value",
                    setting);
  const std::string section = setting.substr(0, point), key = setting.substr(point + 1, equals - point - 1),
                    value = setting.substr(equals + 1);
  if (section == "model") return set_field("model", imported.model, key, value);
  if (section == "attention") return set_field("attention", imported.attention, key, value);
  check<UsageError>(section == "data", "--set {}: the sections are model, attention and data", setting);
  set_field("data", data, key, value);
}

DataConfig data_config(const Imported& imported, const TokenPlan& plan, Tokenizer tokenizer) {
  DataConfig data;
  const bool letters =
      tokenizer == Tokenizer::automatic && imported.tokens.spelling == SourceTokens::Spelling::letters;
  data.format = letters ? "fasta" : "text";
  data.vocabulary = plan.vocabulary.name();
  if (!letters) data.documents = "blank-line";
  data.length =
      std::min(limits_length(imported.model) ? imported.model.max_length : kLongestPiece, kLongestPiece);
  data.batch_tokens = std::max<int64_t>(data.batch_tokens, data.length);
  return data;
}

// Rows of what has one a token, in the order of the vocabulary.
void arrange(Tensors& tensors, const TokenPlan& plan) {
  for (const char* name : {"embedding.weight", "output.weight"}) {
    if (tensors.contains(name)) tensors[name] = plan.rows(tensors[name]);
  }
  for (const char* name : {"output.bias", "output_bias"}) {
    if (tensors.contains(name)) tensors[name] = plan.bias(tensors[name]);
  }
}

SourceTokens tokens_from(const std::string& given, int64_t size) {
  namespace fs = std::filesystem;
  check<InputError>(fs::exists(given), "--tokenizer {}: there is no such file or folder", given);
  return read_tokens(fs::is_directory(given) ? given : fs::path(given).parent_path().string(), size);
}

// What an attention kind keeps: random projections, learned maps.
bool is_of_kind(const std::string& name) {
  return name.find(".attention.kind.") != std::string::npos ||
         name.find(".attention.local.") != std::string::npos;
}

// The kind that the user wants. What belongs to the source's own kind goes with that.
void choose_attention(Imported& imported, const std::string& kind) {
  if (kind.empty() || kind == imported.attention.kind) return;
  set_field("attention", imported.attention, "kind", kind);
  if (std::ranges::find(imported.kinds, kind) != imported.kinds.end()) return;
  std::erase_if(imported.tensors, [](const auto& item) { return is_of_kind(item.first); });
}

}  // namespace

int64_t Source::hinted(const std::string& key) const {
  const auto found = hints.find(key);
  check<InputError>(found != hints.end(), "{} does not say its {}: give --set {}=N", path, key, key);
  return parse_whole(key, found->second, {1, kLargestSize});
}

const std::vector<Family>& families() {
  return all_families();
}

void register_family(Family family) {
  all_families().push_back(std::move(family));
}

void load_tensors(LanguageModel& model, const Tensors& tensors, const std::string& source) {
  auto targets = model_state(model);
  for (const auto& [name, tensor] : tensors) {
    const auto found = targets.find(name);
    check<InputError>(found != targets.end(), "{}: tensor '{}' has no place in this model", source, name);
    // One projection for all heads of a layer stands for one a head.
    const bool shared = is_of_kind(name) && tensor.dim() < found->second.dim() &&
                        found->second.sizes().slice(found->second.dim() - tensor.dim()) == tensor.sizes();
    check<InputError>(shared || found->second.sizes() == tensor.sizes(),
                      "{}: tensor '{}' has shape [{}], expected [{}]", source, name,
                      fmt::join(tensor.sizes(), ", "), fmt::join(found->second.sizes(), ", "));
  }
  for (const auto& [name, target] : targets) {
    const bool of_layer =
        name.ends_with("query_gain") || name.ends_with("key_gain") || name.ends_with("temperature");
    check<InputError>(tensors.contains(name) || is_of_kind(name) || of_layer, "{}: nothing for '{}'", source,
                      name);
  }
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : tensors) targets.at(name).copy_(tensor);
}

Conversion convert(const Request& request) {
  Source source = read_source(request.source);
  source.hints = hints_of(request.settings);
  const Family& family = family_of(source);
  Imported imported = family.import(source);
  if (!request.tokenizer_files.empty())
    imported.tokens = tokens_from(request.tokenizer_files, imported.tokens.size);
  const TokenPlan plan = plan_tokens(imported.tokens, request.tokenizer, family.name);
  DataConfig data = data_config(imported, plan, request.tokenizer);
  choose_attention(imported, request.attention);
  for (const std::string& setting : request.settings) apply(setting, imported, data);
  validate(data);
  arrange(imported.tensors, plan);

  Conversion made;
  made.family = family.name;
  made.trained_head = imported.trained_head;
  made.notes = imported.notes;
  made.notes.insert(made.notes.end(), plan.notes.begin(), plan.notes.end());
  made.folder.vocabulary = plan.vocabulary;
  made.folder.data = data;
  made.folder.baselines = data::Baselines(plan.vocabulary.symbols());
  made.folder.has_baselines = false;
  made.folder.objective_note = fmt::format("imported: {}", family.name);
  made.folder.model = LanguageModel(imported.model, imported.attention, plan.vocabulary.size());
  load_tensors(made.folder.model, imported.tensors, request.source);
  made.folder.model->eval();
  return made;
}

}  // namespace performer::convert
