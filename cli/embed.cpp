// SPDX-License-Identifier: Apache-2.0
// performer embed: embeddings of sequences as one array with an index.
#include "performer/infer/embed.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "cli/chunk_options.h"
#include "cli/commands.h"
#include "cli/heartbeat.h"
#include "cli/inputs.h"
#include "cli/options.h"
#include "cli/ranks.h"
#include "cli/report.h"
#include "performer/base/error.h"
#include "performer/data/inputs.h"
#include "performer/infer/embedding_file.h"
#include "performer/models/folder.h"

namespace performer::cli {

namespace {

struct EmbedOptions {
  CommonOptions common;
  std::string model, output, format, pool = "mean", dtype = "float32";
  std::vector<std::string> files;
  std::vector<int64_t> layers = {-1};
  EmbedRequest request;
  bool resume = false;
  ReadingOptions reading;
};

at::ScalarType stored_type(const std::string& name) {
  return name == "float16" ? at::kHalf : name == "bfloat16" ? at::kBFloat16 : at::kFloat;
}

void check_output(const std::string& path) {
  check<UsageError>(path != "-" && !path.empty(),
                    "embeddings are an array with an index, which need a file: give -o FILE.safetensors");
  struct stat status {};
  const bool other = ::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode);
  check<UsageError>(!other, "-o {} exists and is not a regular file: give the name of a file", path);
}

// The array, opened for a model and its options.
EmbeddingLayout layout_of(const EmbedOptions& options, const ModelFolder& folder) {
  EmbeddingLayout layout;
  layout.format = options.format.empty() ? embedding_format(options.output) : options.format;
  layout.type = stored_type(options.dtype);
  layout.layers = resolve_layers(options.layers, std::ssize(folder.model->blocks()));
  layout.width = folder.model->model_config().width;
  layout.per_token = options.request.pooling == Pooling::tokens;
  validate(layout);
  return layout;
}

// What ranks other than 0 have in the place of the file.
class NoFile final : public EmbeddingSink {
 public:
  explicit NoFile(const EmbeddingLayout& layout) : layers_(layout.layers), width_(layout.width) {}
  const std::vector<int64_t>& layers() const override { return layers_; }
  int64_t width() const override { return width_; }
  void begin(const data::Record&, int64_t) override {}
  void write(int64_t, int64_t, const at::Tensor&) override {}
  void end() override {}

 private:
  std::vector<int64_t> layers_;
  int64_t width_;
};

void embed_into(EmbeddingSink& file, ModelFolder& folder, const EmbedOptions& options) {
  const bool leads = options.request.ranks->leads();
  const int64_t total = leads ? count_tokens(options.files, folder) : 0;
  const auto reader = data::open_reader(options.files, folder.data, folder.vocabulary);
  Heartbeat beat;
  EmbedProgress progress;
  progress.note = [](const std::string& text) { spdlog::info("{}", text); };
  progress.done = [&](int64_t sequences, int64_t tokens) {
    beat.tell(
        tokens, total,
        fmt::format("{} embedded", sequences == 1 ? "1 sequence" : fmt::format("{} sequences", sequences)));
  };
  report_changes(embed(folder.model, *reader, sources_text(options.files), options.request, file, progress));
}

void run_on(const ReadingRanks& ranks, EmbedOptions options) {
  options.request.pooling = parse_pooling(options.pool);
  ModelFolder folder = load_model_before(options.model, options.files);
  check_model_inputs(options.files, folder);
  const EmbeddingLayout layout = layout_of(options, folder);
  options.request.temporary_folder = temporary_folder();
  options.request.batch_tokens = folder.data.batch_tokens;
  options.request.ranks = &ranks;
  ranks.check_slices(folder.model);
  if (!ranks.leads()) {
    NoFile none(layout);
    return embed_into(none, folder, options);
  }
  check_lengths(options.files, folder, embedding_markers(folder.model));
  if (options.request.pooling == Pooling::first && folder.model->model_config().objective == "causal") {
    spdlog::warn(
        "the first marker of a causal model sees nothing but itself, so that all rows are alike: take --pool "
        "mean");
  }
  EmbeddingFile file(options.output, layout,
                     {{"pool", options.pool}, {"weights", weights_fingerprint(folder.model)}},
                     options.resume);
  const size_t before = file.sequences().size();
  if (before > 0) spdlog::info("{} sequences are finished; going on behind them", before);
  embed_into(file, folder, options);
  file.finish();
}

void run(const EmbedOptions& options) {
  check_output(options.output);
  refuse_input_as_output(options.output, options.files, options.model);
  if (options.format.empty()) embedding_format(options.output);
  run_as_ranks(options.reading, options.common, options.files,
               [&](const ReadingRanks& ranks) { run_on(ranks, options); });
}

constexpr const char* kEmbedFooter =
    "One array holds all sequences, [rows, width] or, of several layers, [rows, layers, width]; OUT.tsv says "
    "which\n"
    "rows are whose: row (from 0), id, length, rows. In .safetensors and .npz it is called 'embeddings'; "
    ".csv needs no\n"
    "index. Layers count from 0 (the embedding) to the number of blocks (the last one after the final norm), "
    "or from\n"
    "the end, -1 being the last. mean and max leave markers out. Until all is done, what is finished lies "
    "in\n"
    "OUT.partial and OUT.partial.tsv, from which --resume goes on.\n"
    "Sequences longer than --chunk are read in chunks, in memory that hardly grows with the length, by "
    "causal models\n"
    "whose attention streams and masked ones of kind favor-softmax, favor-relu and their like, exact or "
    "auto.";

}  // namespace

Action embed_command(CLI::App& app) {
  auto options = std::make_shared<EmbedOptions>();
  app.add_option("MODEL", options->model, "model folder")->required();
  app.add_option("FILE", options->files,
                 "what to embed: FASTA, text or images, as the model was trained on; files (plain, gzip or "
                 "zstd) or folders of them; - is standard input")
      ->required();
  app.add_option("-o,--output", options->output, "file for the array: .safetensors, .npy, .npz or .csv")
      ->type_name("FILE")
      ->required();
  app.add_option("--format", options->format, "what to write, whatever the file's name ends in")
      ->check(CLI::IsMember(embedding_formats()));
  app.add_option(
         "--pool", options->pool,
         "mean or max over the tokens, the first marker's row (BOS, elsewhere CLS), or a row for each of the "
         "tokens")
      ->check(CLI::IsMember(pooling_names()))
      ->capture_default_str();
  whole_list(app, "--layers", options->layers, "layers to take, separated by commas")
      ->allow_extra_args(false);
  app.add_option("--dtype", options->dtype, "how values are stored: float32, bfloat16 or float16")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}))
      ->capture_default_str();
  app.add_flag("--resume", options->resume, "go on where an interrupted run stopped");
  add_chunk_options(app, options->request);
  options->reading.add_to(app);
  options->common.add_to(app);
  app.footer(kEmbedFooter);
  return [options] { run(*options); };
}

}  // namespace performer::cli
