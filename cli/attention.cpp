// SPDX-License-Identifier: Apache-2.0
// performer attention: the matrices of attention of a trained model, and what they say about amino acids.
#include <ATen/Context.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/heartbeat.h"
#include "cli/inputs.h"
#include "cli/options.h"
#include "cli/output.h"
#include "performer/base/error.h"
#include "performer/data/byte_source.h"
#include "performer/data/reader.h"
#include "performer/models/folder.h"
#include "performer/studies/attention_study.h"
#include "performer/studies/residue_similarity.h"

namespace performer::cli {

namespace {

using Json = nlohmann::ordered_json;

struct AttentionOptions {
  CommonOptions common;
  studies::AttentionStudyOptions study;
  std::string model, input, similarity_input, output, rows;
  std::vector<std::string> ids;
  int64_t records = 1, sequences = 800, max_length = 1024, untrained = 1;
  uint64_t seed = 0;
};

// "FIRST:LAST", either of which may be missing.
void parse_rows(const std::string& text, studies::AttentionStudyOptions& study) {
  if (text.empty()) return;
  const size_t colon = text.find(':');
  check<UsageError>(colon != std::string::npos, "--rows must be FIRST:LAST, such as 1:100, but is '{}'",
                    text);
  const auto number = [&](const std::string& part, int64_t otherwise) {
    return part.empty() ? otherwise : parse_whole("--rows", part, {.least = 0});
  };
  study.first_row = number(text.substr(0, colon), 0);
  study.last_row = number(text.substr(colon + 1), -1);
}

// What was read: the sequences to show, and those to compare amino acids by.
struct Sequences {
  std::vector<data::Record> shown, compared;
  int64_t left_out = 0;  // longer than --max-length
};

void read_sequences(const AttentionOptions& options, const std::string& path, const ModelFolder& model,
                    bool show, bool compare, Sequences& sequences) {
  const auto reader = data::open_reader(path, model.data, model.vocabulary);
  std::vector<std::string> missing = options.ids;
  data::Record record;
  const auto shows = [&] {
    return show && (options.ids.empty() ? std::ssize(sequences.shown) < options.records : !missing.empty());
  };
  const auto compares = [&] { return compare && std::ssize(sequences.compared) < options.sequences; };
  while ((shows() || compares()) && reader->next(record)) {
    const auto found = std::ranges::find(missing, record.id);
    if (shows() && (options.ids.empty() || found != missing.end())) {
      sequences.shown.push_back(record);
      if (found != missing.end()) missing.erase(found);
    }
    if (!compares()) continue;
    if (std::ssize(record.tokens) > options.max_length) {
      ++sequences.left_out;
    } else {
      sequences.compared.push_back(record);
    }
  }
  check<InputError>(!show || missing.empty(), "{} has no sequence {}: --ids are the words behind '>'",
                    data::source_name(path), missing.empty() ? "" : missing.front());
}

// The sequence number `index` (from 1) as files and its part of attention.json.
Json write_sequence(const studies::AttentionStudy& study, int64_t index, OutputFolder& folder) {
  Json json = studies::to_json(study);
  TensorFile matrices;
  json["pictures"] = Json::array();
  for (const studies::LayerAttention& layer : study.layers) {
    const std::string name = fmt::format("sequence_{}_layer_{}.svg", index, layer.layer);
    folder.write(name, studies::to_svg(layer.pictures));
    json["pictures"].push_back(
        {{"layer", layer.layer}, {"file", name}, {"description", layer.pictures.description}});
    if (layer.rows.defined()) matrices.tensors[fmt::format("layer.{}", layer.layer)] = layer.rows;
  }
  json["matrices"] = nullptr;
  if (matrices.tensors.empty()) {
    spdlog::info(
        "{}: {} rows of {} tokens are too many to write (--matrix-tokens); pictures show means of blocks",
        study.id, study.last_row - study.first_row + 1, study.length);
    return json;
  }
  const std::string name = fmt::format("sequence_{}.safetensors", index);
  matrices.metadata = {{"id", study.id},
                       {"tokens", study.tokens},
                       {"first_row", std::to_string(study.first_row)},
                       {"shape", "heads, rows, tokens"}};
  write_safetensors(folder.place(name), matrices);
  json["matrices"] = name;
  return json;
}

Json compare_amino_acids(const AttentionOptions& options, ModelFolder& model, const Sequences& sequences) {
  Heartbeat beat;
  int64_t done = 0;
  const auto total = std::ssize(sequences.compared) * (1 + options.untrained);
  const auto progress = [&](const std::string& text) { beat.tell(++done, total, "amino acids: " + text); };
  const auto trained =
      studies::residue_attention(model.model, model.vocabulary, sequences.compared, progress);
  std::vector<studies::ResidueAttention> untrained;
  for (int64_t draw = 0; draw < options.untrained; ++draw) {
    at::manual_seed(options.seed + static_cast<uint64_t>(draw));
    LanguageModel random(model.model->model_config(), model.model->attention_config(),
                         model.model->vocabulary());
    untrained.push_back(studies::residue_attention(random, model.vocabulary, sequences.compared, progress));
  }
  Json json = studies::similarity_json(trained, untrained);
  json["left_out"] = sequences.left_out;
  json["seed"] = options.seed;
  return json;
}

std::string similarity_text(const Json& similarity) {
  const auto number = [](const Json& value) {
    return value.is_null() ? std::string("-") : fmt::format("{:.3f}", value.get<double>());
  };
  std::string text = fmt::format(
      "\nAmino acids by {} sequences, {} residues: correlation to BLOSUM62 over 190 "
      "pairs\n{:<22}{:>10}{:>12}{:>14}{:>14}\n",
      similarity["sequences"].get<int64_t>(), similarity["residues"].get<int64_t>(), "", "by heads",
      "by partners", "rank of D,E", "rank of F,Y");
  const auto line = [&](const std::string& name, const Json& found) {
    const Json &heads = found["by_heads"], &partners = found["by_partners"];
    const Json &d_e = partners["pairs"]["DE"]["rank"], &f_y = partners["pairs"]["FY"]["rank"];
    text += fmt::format("{:<22}{:>10}{:>12}{:>14}{:>14}\n", name, number(heads["correlation"]),
                        number(partners["correlation"]), d_e.is_null() ? "-" : d_e.dump(),
                        f_y.is_null() ? "-" : f_y.dump());
  };
  line("this model", similarity["model"]);
  for (const Json& random : similarity["untrained"]) line("untrained weights", random);
  return text;
}

void run(AttentionOptions options) {
  options.common.apply();
  parse_rows(options.rows, options.study);
  std::vector<std::string> inputs = {options.input};
  if (!options.similarity_input.empty()) inputs.push_back(options.similarity_input);
  refuse_input_as_folder(options.output, inputs, options.model, {".json", ".svg", ".safetensors"});
  refuse_input_as_output("-", inputs, options.model);
  ModelFolder model = load_model_before(options.model, inputs);
  check_model_inputs(inputs, model);
  OutputFolder folder(options.output);
  Output out("-");

  const bool protein = model.vocabulary == data::Vocabulary::protein();
  const bool compare = protein && options.sequences > 0;
  Sequences sequences;
  read_sequences(options, options.input, model, /*show=*/true, compare && options.similarity_input.empty(),
                 sequences);
  if (compare && !options.similarity_input.empty())
    read_sequences(options, options.similarity_input, model, /*show=*/false, /*compare=*/true, sequences);

  Json json = {{"kind", model.model->attention_config().kind},
               {"objective", model.model->model_config().objective},
               {"layers", model.model->model_config().layers},
               {"heads", model.model->model_config().heads},
               {"near", options.study.near},
               {"threshold", options.study.threshold},
               {"sequences", Json::array()},
               {"similarity", nullptr}};
  for (const data::Record& record : sequences.shown) {
    spdlog::info("sequence {}: {} {}", record.id, record.tokens.size(), model.vocabulary.unit());
    const auto study = studies::attention_study(model.model, model.vocabulary, record, options.study);
    json["sequences"].push_back(write_sequence(study, std::ssize(json["sequences"]) + 1, folder));
    out.write(studies::to_text(study));
  }
  if (compare && !sequences.compared.empty()) {
    json["similarity"] = compare_amino_acids(options, model, sequences);
    out.write(similarity_text(json["similarity"]));
  }
  if (sequences.left_out > 0)
    spdlog::warn("{} sequences longer than --max-length {} were left out of the comparison of amino acids",
                 sequences.left_out, options.max_length);
  folder.write("attention.json", json.dump(2) + "\n");
  out.finish();
}

}  // namespace

Action attention_command(CLI::App& app) {
  auto options = std::make_shared<AttentionOptions>();
  studies::AttentionStudyOptions& study = options->study;
  app.add_option("MODEL", options->model, "model folder")->required();
  app.add_option("FILE", options->input,
                 "sequences of the kind the model was trained on; - is standard input")
      ->required();
  app.add_option("-o,--output", options->output,
                 "folder for attention.json, pictures (SVG) and matrices (safetensors)")
      ->type_name("DIR")
      ->required();
  whole_option(app, "--records", options->records, "sequences to show, from the first on", {.least = 0});
  app.add_option("--ids", options->ids, "or the sequences of these identifiers")->delimiter(',');
  whole_list(app, "--layers", study.layers, "layers to show, from 0 on; default all", {.least = 0});
  whole_list(app, "--heads", study.heads, "heads to show, from 0 on; default all", {.least = 0});
  app.add_option(
         "--rows", options->rows,
         "rows to show: tokens as the model reads them, 0 the begin marker and k the residue k; default all")
      ->type_name("FIRST:LAST");
  whole_option(app, "--matrix-tokens", study.matrix_tokens,
               "write the matrices where they have at most the square of so many weights", {.least = 1});
  whole_option(app, "--cells", study.picture_cells,
               "cells of a picture's side; larger matrices are shown by means", {.least = 1, .most = 4096});
  real_option(app, "--near", study.near,
              "share of the tokens that counts as a diagonal band, and as few columns");
  real_option(app, "--threshold", study.threshold,
              "share of the weight there from which a head is called diagonal or vertical");
  whole_option(app, "--sequences", options->sequences, "sequences that amino acids are compared by; 0: none",
               {.least = 0});
  app.add_option("--similarity-input", options->similarity_input, "take these sequences from another file")
      ->type_name("FILE");
  whole_option(app, "--max-length", options->max_length, "leave longer sequences out of that comparison",
               {.least = 1});
  whole_option(app, "--untrained", options->untrained,
               "models of the same configuration with untrained weights beside it",
               {.least = 0, .most = 100});
  seed_option(app, options->seed, "of the untrained weights");
  options->common.add_to(app);
  app.footer(
      "Rows are computed from features and log-scales in double precision, in blocks. A head is diagonal or "
      "vertical\n"
      "when at least --threshold of its weight lies near the diagonal or in a few columns, and at least "
      "twice what\n"
      "attention to all tokens alike would have there; else it is diffuse.");
  return [options] { run(*options); };
}

}  // namespace performer::cli
