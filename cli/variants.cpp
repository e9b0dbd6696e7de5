// SPDX-License-Identifier: Apache-2.0
// performer variants: effects of changes of a sequence as a table and a heat map.
#include "performer/infer/variants.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>

#include "cli/commands.h"
#include "cli/heartbeat.h"
#include "cli/inputs.h"
#include "cli/options.h"
#include "cli/output.h"
#include "performer/base/error.h"
#include "performer/base/ranks.h"
#include "performer/data/inputs.h"
#include "performer/infer/variant_table.h"
#include "performer/models/folder.h"
#include "performer/studies/variant_map.h"

namespace performer::cli {

namespace {

struct VariantsOptions {
  CommonOptions common;
  std::string model, wild_type, table, output = "-", format, score, heat_map;
  bool all_single = false;
  VariantTableOptions read;
};

struct WildType {
  std::string id;
  std::vector<data::Token> tokens;
};

WildType read_wild_type(const std::string& path, const ModelFolder& folder) {
  const auto reader = data::open_reader(path, folder.data, folder.vocabulary);
  data::Record record;
  check<InputError>(reader->next(record), "{} has no sequence: give the wild type", data::source_name(path));
  WildType wild{record.id, record.tokens};
  check<InputError>(!reader->next(record), "{} has several sequences: give the wild type alone",
                    data::source_name(path));
  const std::string changed = data::changes(reader->report());
  if (!changed.empty()) spdlog::info("{}: {}", data::source_name(path), changed);
  return wild;
}

// Cells of the table that is written.
class VariantRows {
 public:
  VariantRows(char mark, const VariantTable& table) : mark_(mark), table_(table) {}

  std::string header() const {
    return line(
        {"variant", "score", "score_kind", "length", "changes", "unnormalized", table_.measured_name});
  }
  std::string row(size_t i, const VariantResult& result) const {
    const Variant& variant = table_.variants[i];
    const double measured = table_.measured.empty() ? 0 : table_.measured[i];
    return line({variant.name, fmt::format("{:.6f}", result.score), to_text(result.kind),
                 std::to_string(variant.tokens.size()), std::to_string(result.changes),
                 fmt::format("{:.6f}", result.unnormalized),
                 std::isnan(measured) ? "" : fmt::format("{}", measured)});
  }

 private:
  // The last cell is left out without a column of measured effects.
  std::string line(std::vector<std::string> cells) const {
    if (table_.measured_name.empty()) cells.pop_back();
    std::string text;
    for (const std::string& cell : cells) text += (text.empty() ? "" : std::string(1, mark_)) + quoted(cell);
    return text + "\n";
  }
  std::string quoted(const std::string& cell) const {
    if (mark_ == '\t') return printable(cell);
    if (cell.find_first_of(",\"\r\n") == std::string::npos) return cell;
    std::string text = "\"";
    for (const char letter : cell) text += letter == '"' ? "\"\"" : std::string(1, letter);
    return text + "\"";
  }

  char mark_;
  const VariantTable& table_;
};

char mark_of(const VariantsOptions& options) {
  const std::string ending = std::filesystem::path(options.output).extension().string();
  return options.format == "csv" || (options.format.empty() && ending == ".csv") ? ',' : '\t';
}

// Of the variants that have a measured effect, as a line of its own.
void tell_spearman(const VariantTable& table, const std::vector<VariantResult>& results,
                   bool table_on_stdout) {
  std::vector<double> scores, measured;
  for (size_t i = 0; i < results.size(); ++i) {
    if (std::isnan(table.measured[i])) continue;
    scores.push_back(results[i].score);
    measured.push_back(table.measured[i]);
  }
  if (scores.size() < results.size()) {
    spdlog::info("{} of {} variants have no {} and count in no correlation", results.size() - scores.size(),
                 results.size(), table.measured_name);
  }
  const double value = spearman(scores, measured);
  if (std::isnan(value)) {
    spdlog::warn("there is no rank correlation with {}: it needs two variants or more that differ in both",
                 table.measured_name);
    return;
  }
  const std::string line = fmt::format("Spearman {:.3f}\n", value);
  if (table_on_stdout) {
    std::fputs(line.c_str(), stderr);
    return;
  }
  Output out("-");
  out.write(line);
  out.finish();
}

// Single substitutions by position and residue; what was scored twice has its last score.
studies::VariantMap heat_map_of(const VariantTable& table, const std::vector<VariantResult>& results,
                                const WildType& wild, const ModelFolder& folder, int64_t offset) {
  studies::VariantMap map;
  map.title = fmt::format("{}: predicted effects of substitutions", wild.id);
  map.rows = replacing_letters(folder.vocabulary);
  map.sequence = folder.vocabulary.decode(wild.tokens);
  map.first_position = 1 + offset;
  map.values.assign(map.rows.size(),
                    std::vector(wild.tokens.size(), std::numeric_limits<double>::quiet_NaN()));
  for (size_t i = 0; i < results.size(); ++i) {
    const Variant& variant = table.variants[i];
    if (!variant.aligned || results[i].changes != 1) continue;
    map.legend = fmt::format("score ({}), 0: as the wild type", to_text(results[i].kind));
    const auto place = std::ranges::mismatch(variant.tokens, wild.tokens).in1 - variant.tokens.begin();
    const std::string letter = folder.vocabulary.symbol_text(variant.tokens[static_cast<size_t>(place)]);
    const auto row = std::ranges::find(map.rows, letter[0]) - map.rows.begin();
    if (row < std::ssize(map.rows))
      map.values[static_cast<size_t>(row)][static_cast<size_t>(place)] = results[i].score;
  }
  return map;
}

void tell_what_is_special(const VariantTable& table, const std::vector<VariantResult>& results,
                          const WildType& wild, const ModelFolder& folder, VariantScore asked) {
  const auto other =
      std::ranges::count_if(results, [&](const VariantResult& one) { return one.kind != asked; });
  if (other > 0) {
    spdlog::info(
        "{} of {} variants insert or delete {}, for which {} means nothing; their score is {} (column "
        "score_kind)",
        other, table.variants.size(), folder.vocabulary.unit(), to_text(asked),
        to_text(VariantScore::one_pass));
  }
  if (std::ssize(wild.tokens) > variant_window(folder.model)) {
    spdlog::info(
        "the wild type has {} {}, but the model's positions cover {}: each change was seen in a window "
        "around it",
        wild.tokens.size(), folder.vocabulary.unit(), variant_window(folder.model));
  }
}

VariantTable table_of(const VariantsOptions& options, const WildType& wild, const ModelFolder& folder) {
  if (!options.table.empty())
    return read_variants(options.table, wild.tokens, folder.vocabulary, options.read);
  VariantTable table;
  table.variants = all_single_variants(wild.tokens, folder.vocabulary, options.read.offset);
  return table;
}

void check_options(const VariantsOptions& options) {
  check<UsageError>(options.table.empty() || !options.all_single,
                    "--table and --all-single exclude each other: give one of them");
  check<UsageError>(
      !options.table.empty() || (options.read.column.empty() && options.read.variant_column.empty()),
      "--column and --variant-column name columns of a --table, which is missing");
  std::vector<std::string> inputs = {options.wild_type};
  if (!options.table.empty()) inputs.push_back(options.table);
  refuse_input_as_output(options.output, inputs, options.model);
  if (options.heat_map.empty()) return;
  refuse_input_as_output(options.heat_map, inputs, options.model);
  check<UsageError>(options.heat_map != "-" && options.heat_map != options.output,
                    "--heatmap needs a file of its own, such as effects.svg");
}

void run(const VariantsOptions& options) {
  options.common.apply();
  check_options(options);
  Output out(options.output);
  std::optional<Output> picture;
  if (!options.heat_map.empty()) picture.emplace(options.heat_map);
  ModelFolder folder = load_model_before(options.model, {options.wild_type});
  check_model_inputs({options.wild_type}, folder);
  VariantRequest request;
  request.kind = parse_variant_score(options.score, folder.model);
  request.batch_tokens = folder.data.batch_tokens;
  replacing_letters(folder.vocabulary);  // refuses vocabularies without letters
  const WildType wild = read_wild_type(options.wild_type, folder);
  const VariantTable table = table_of(options, wild, folder);
  spdlog::info("{} variants of '{}' ({} {}), score {}", table.variants.size(), shown(wild.id),
               wild.tokens.size(), folder.vocabulary.unit(), to_text(request.kind));
  Heartbeat beat;
  constexpr int64_t kParts = 10000;
  request.progress = [&](double share) {
    beat.tell(static_cast<int64_t>(share * kParts), kParts, fmt::format("{:.0f} % scored", 100 * share));
  };
  const std::vector<VariantResult> results =
      score_variants(folder.model, folder.vocabulary, wild.tokens, table.variants, request);
  const VariantRows rows(mark_of(options), table);
  out.write(rows.header());
  for (size_t i = 0; i < results.size(); ++i) out.write(rows.row(i, results[i]));
  if (picture) {
    picture->write(to_svg(heat_map_of(table, results, wild, folder, options.read.offset)));
    picture->finish();
  }
  out.finish();
  tell_what_is_special(table, results, wild, folder, request.kind);
  if (!table.measured_name.empty()) tell_spearman(table, results, options.output == "-");
}

constexpr const char* kVariantsFooter =
    "Variants: A24P, A24P:G30D, A24del, K23_L24insR, A3_S5dup, C28_L30delinsWV, W24* and the same as HGVS "
    "has it,\n"
    "p.Ala24Pro, p.(Ala24Pro), p.Gly30del, p.Lys23_Leu24insArg; or the whole changed sequence "
    "(mutated_sequence).\n"
    "Scores are natural logarithms, above 0 where the variant is more probable than the wild type:\n"
    "  masked-marginal     log p(new) - log p(old) with the position hidden, summed over the changed "
    "positions\n"
    "  wild-type-marginal  the same from one pass that hides nothing\n"
    "  pseudo-likelihood   of the whole sequence, each token hidden alone: a pass for each token of each "
    "variant\n"
    "  log-ratio           log p(variant) - log p(wild type) of causal models\n"
    "Sums over sequences favour short ones, so that a truncated protein would win. Scores of whole sequences "
    "are L\n"
    "times the difference of the means a token, L the length of the wild type; column unnormalized has the\n"
    "difference of the sums. Variants that insert or delete have no marginal score and get the "
    "pseudo-likelihood of one\n"
    "pass that hides nothing; column score_kind says so. With measured effects a line such as 'Spearman "
    "0.123' goes to\n"
    "standard output, or to standard error where the table goes there.";

}  // namespace

Action variants_command(CLI::App& app) {
  auto options = std::make_shared<VariantsOptions>();
  app.add_option("MODEL", options->model, "model folder")->required();
  app.add_option("WILD_TYPE", options->wild_type, "the sequence that is changed: FASTA with one record")
      ->required();
  app.add_option("--table", options->table,
                 "variants: CSV or TSV with a column mutant, variant, hgvs_pro or mutated_sequence, or one a "
                 "line; plain, "
                 "gzip or zstd")
      ->type_name("FILE");
  app.add_flag("--all-single", options->all_single, "all single substitutions; what is done without --table");
  app.add_option("-o,--output", options->output,
                 "table, CSV where the name ends in .csv, else TSV; - is standard output")
      ->type_name("FILE")
      ->capture_default_str();
  app.add_option("--format", options->format, "tsv or csv, whatever the file's name ends in")
      ->check(CLI::IsMember({"tsv", "csv"}));
  app.add_option(
         "--score", options->score,
         "masked-marginal, wild-type-marginal, pseudo-likelihood or log-ratio; default: log-ratio for causal "
         "models, masked-marginal for masked ones")
      ->check(CLI::IsMember(variant_score_names()));
  app.add_option("--column", options->read.column,
                 "measured effects to compare with; default DMS_score where there is one")
      ->type_name("NAME");
  app.add_option("--variant-column", options->read.variant_column, "where the variants are")
      ->type_name("NAME");
  whole_option(app, "--offset", options->read.offset,
               "subtracted from the positions of variants: 24 where the wild type begins with residue 25",
               {.least = -(int64_t{1} << 40), .most = int64_t{1} << 40});
  app.add_option("--heatmap", options->heat_map, "picture of positions by residues (SVG)")->type_name("FILE");
  options->common.add_to(app);
  app.footer(kVariantsFooter);
  return [options] { run(*options); };
}

}  // namespace performer::cli
