// SPDX-License-Identifier: Apache-2.0
// performer generate: new sequences as FASTA, text or PNG.
#include "performer/infer/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "cli/commands.h"
#include "cli/inputs.h"
#include "cli/options.h"
#include "cli/samples.h"
#include "performer/base/error.h"
#include "performer/models/folder.h"

namespace performer::cli {

namespace {

struct GenerateOptions {
  CommonOptions common;
  std::string model, output = "-", prompt, prompt_image;
  std::optional<int64_t> prompt_rows;
  const CLI::Option* max_length = nullptr;  // tells whether it was given
  GenerateRequest request;
};

// The first rows of a picture, whose shape is that of the model's images.
std::vector<data::Token> first_rows(const std::string& path, const DataConfig& config,
                                    const data::ImageShape& shape, std::optional<int64_t> rows) {
  const int64_t wanted = rows.value_or(shape.height / 2);
  check<UsageError>(wanted >= 0 && wanted < shape.height,
                    "--prompt-rows must be between 0 and {}, one less than an image has rows, but is {}",
                    shape.height - 1, wanted);
  const auto reader = data::open_reader(path, config, data::Vocabulary::pixels());
  data::Record record;
  check<InputError>(reader->next(record), "{}: there is no image in it", path);
  record.tokens.resize(static_cast<size_t>(wanted * shape.width * shape.channels));
  return record.tokens;
}

// What every sample starts with, and how long samples are.
void complete_request(GenerateRequest& request, const GenerateOptions& options, const ModelFolder& folder) {
  if (const auto shape = sample_shape(folder)) {
    check<UsageError>(options.max_length->empty(),
                      "--max-length is not for images: those of this model have {} ({} values)",
                      folder.data.image_shape, shape->tokens());
    check<UsageError>(options.prompt.empty(),
                      "this model makes images, which cannot begin with text: give --prompt-image FILE");
    request.exact_length = true;
    request.max_length = shape->tokens();
    if (!options.prompt_image.empty()) {
      request.prompt = first_rows(options.prompt_image, folder.data, *shape, options.prompt_rows);
    }
    return;
  }
  check<UsageError>(options.prompt_image.empty() && !options.prompt_rows,
                    "--prompt-image and --prompt-rows are for models of images, but this one was trained on "
                    "{}: give --prompt TEXT",
                    folder.vocabulary.unit());
  request.prompt = encode_prompt(folder.vocabulary, options.prompt);
  const ModelConfig& config = folder.model->model_config();
  if (options.max_length->empty() && limits_length(config)) {
    request.max_length = std::min(request.max_length, config.max_length);
  }
}

void run(const GenerateOptions& options) {
  options.common.apply();
  check<UsageError>(!options.prompt_rows || !options.prompt_image.empty(),
                    "--prompt-rows needs --prompt-image FILE, whose rows it counts");
  std::vector<std::string> inputs;
  if (!options.prompt_image.empty()) inputs.push_back(options.prompt_image);
  if (is_sample_folder(options.output)) {
    refuse_input_as_folder(options.output, inputs, options.model, {".png", ".txt", ".fasta"});
  } else {
    refuse_input_as_output(options.output, inputs, options.model);
  }
  SamplePlace place(options.output);
  ModelFolder folder = load_model_before(options.model, {});
  GenerateRequest request = options.request;
  complete_request(request, options, folder);
  const auto writer = place.writer(folder, request.count);
  generate(folder.model, folder.vocabulary, request,
           [&](const GeneratedSequence& sequence) { writer->write(sequence); });
  writer->finish();
}

constexpr const char* kFooter =
    "What is written depends on what the model was trained on:\n"
    "  FASTA   headers give the length, the mean log-likelihood of what was drawn (natural logarithm, under "
    "the model\n"
    "          itself) and whether the sequence ended by itself or was stopped by --max-length\n"
    "  text    several documents have a blank line between them\n"
    "  images  PNG; exactly as many values are drawn as an image has; several need -o DIR\n"
    "With -o DIR, a folder or a name that ends with '/', each sequence has a file of its own, "
    "generated_1.txt "
    "and so on,\n"
    "byte for byte what was drawn. For text and images the log says what FASTA headers say.";

void add_sampling(CLI::App& app, SamplingOptions& sampling) {
  constexpr WholeRange kCount{.least = 0};
  real_option(app, "--temperature", sampling.temperature,
              "divides the logits; 0: always the most probable token", {.least = 0});
  whole_option(app, "--top-k", sampling.top_k, "draw from the K most probable; 0: from all", kCount);
  real_option(app, "--top-p", sampling.top_p, "draw from the smallest set with at least this probability",
              {.least = 0, .most = 1});
  real_option(app, "--repetition-penalty", sampling.repetition_penalty,
              "for tokens among the last few: positive logits divided by it, others multiplied",
              {.least = 0});
  whole_option(app, "--repetition-window", sampling.repetition_window,
               "how many tokens the penalty looks back", kCount);
}

}  // namespace

Action generate_command(CLI::App& app) {
  auto options = std::make_shared<GenerateOptions>();
  GenerateRequest& request = options->request;
  app.add_option("MODEL", options->model, "model folder (causal)")->required();
  whole_option(app, "-n,--count", request.count, "number of sequences", {.least = 0});
  app.add_option("--prompt", options->prompt, "what every sequence starts with, in the model's vocabulary")
      ->type_name("SEQUENCE");
  app.add_option("--prompt-image", options->prompt_image,
                 "image whose first rows every sample starts with (models of images)")
      ->type_name("FILE");
  whole_option(app, "--prompt-rows", options->prompt_rows, "how many rows of it; default: half of them");
  options->max_length =
      whole_option(app, "--max-length", request.max_length,
                   "tokens at most, prompt included (not for images); by default not more than the model's "
                   "positions cover",
                   {.least = 1});
  add_sampling(app, request.sampling);
  whole_option(app, "--batch-size", request.batch_size, "sequences sampled side by side", {.least = 1});
  seed_option(app, request.seed, "sequence i is drawn from stream (seed, i)");
  app.add_option("-o,--output", options->output, "file, or folder with a file each; - is standard output")
      ->type_name("FILE|DIR")
      ->capture_default_str();
  options->common.add_to(app);
  app.footer(kFooter);
  return [options] { run(*options); };
}

}  // namespace performer::cli
