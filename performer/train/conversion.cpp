// SPDX-License-Identifier: Apache-2.0
#include "performer/train/conversion.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>
#include <utility>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/data/store.h"
#include "performer/nn/attention/kind.h"
#include "performer/train/attention_transfer.h"
#include "performer/train/conversion_cost.h"
#include "performer/train/evaluation.h"
#include "performer/train/language_model_task.h"
#include "performer/train/representations.h"
#include "performer/train/run_folder.h"

namespace performer::train {
namespace {

using nlohmann::ordered_json;

// What a conversion may cost and still be called worth it: of the accuracy, and of the cosine between
// representations where there is no head.
constexpr double kTolerated = 0.02;

// The stages of one conversion on one split of the data.
class Improvement {
 public:
  Improvement(const ModelFolder& original, const ModelFolder& swapped, const ConversionRequest& request,
              const std::string& temporary)
      : request_(request),
        folder_(swapped),
        exact_(original.model),
        train_(request.files, temporary, swapped.data, split(data::HashSplit::Side::train),
               swapped.vocabulary),
        held_out_(request.files, temporary, swapped.data, split(data::HashSplit::Side::held_out),
                  swapped.vocabulary) {}

  ordered_json run() {
    report_["stages"] = ordered_json::object();
    measure("original", exact_);
    measure("swapped", folder_.model);
    const HeadErrors before = head_errors(exact_, folder_.model, held_out_, folder_.data);
    if (request_.transfer_steps > 0) transfer();
    const HeadErrors after = head_errors(exact_, folder_.model, held_out_, folder_.data);
    keep_exact_heads(after);
    if (request_.finetune_steps > 0) {
      finetune();
    } else {
      save_model(request_.output, folder_);
    }
    report_["heads"] = heads(before, after);
    report_["speed"] = measure_speed(folder_.model);
    report_["kept_mib"] = {{"exact", kept_memory(exact_)}, {"converted", kept_memory(folder_.model)}};
    report_["longest_sequence"] = longest_;
    report_["verdict"] = verdict();
    write_file((std::filesystem::path(request_.output) / "conversion.json").string(), report_.dump(2) + "\n");
    return report_;
  }

 private:
  data::HashSplit split(data::HashSplit::Side side) const {
    return {side, folder_.data.holdout, static_cast<uint64_t>(folder_.data.seed)};
  }
  void tell(const std::string& line) const {
    if (request_.tell) request_.tell(line);
  }

  void measure(const std::string& stage, LanguageModel& model) {
    ordered_json record = request_.trained_head ? predictions(stage, model) : ordered_json::object();
    const at::Tensor found = sequence_representations(model, held_out_, folder_.data);
    if (!wanted_.defined()) describe(found);
    similarity_ = similarity(found, wanted_);
    record["cosine_similarity"] = similarity_.cosine;
    record["relative_error"] = similarity_.relative_error;
    report_["stages"][stage] = std::move(record);
    tell(fmt::format(
        "{}: representations of {} held-out sequences have a cosine similarity of {:.4f} with the "
        "original's, relative error {:.4f}",
        stage, found.size(0), similarity_.cosine, similarity_.relative_error));
  }

  ordered_json predictions(const std::string& stage, LanguageModel& model) {
    const Evaluation found = evaluate(model, held_out_, folder_.data, folder_.baselines);
    last_ = found.model.accuracy();
    if (stage == "original") first_ = last_;
    tell(fmt::format("{}: accuracy {:.4f}, perplexity {:.4f} on {} held-out sequences", stage,
                     found.model.accuracy(), found.model.perplexity(), found.sequences));
    return {{"accuracy", found.model.accuracy()},
            {"perplexity", found.model.perplexity()},
            {"tokens", found.model.tokens}};
  }

  // The representations of the original, which all others are compared with.
  void describe(const at::Tensor& original) {
    wanted_ = original;
    report_["representations"] = {{"sequences", original.size(0)},
                                  {"cosine_between_sequences", cosine_between_sequences(original)}};
  }

  void transfer() {
    TransferOptions options;
    options.steps = request_.transfer_steps;
    options.progress = [&](int64_t step, double error) {
      if (step % 50 == 0 || step == options.steps)
        tell(fmt::format("attention transfer, step {} of {}: relative error {:.4f}", step, options.steps,
                         error));
    };
    transfer_attention(exact_, folder_.model, train_, folder_.data, options);
    measure("transferred", folder_.model);
  }

  void keep_exact_heads(const HeadErrors& errors) {
    if (request_.threshold <= 0) return;
    folder_.model = with_exact_heads(folder_.model, errors, request_.threshold);
    if (folder_.model->attention_config().kind == "hybrid") measure("with_exact_heads", folder_.model);
  }

  void finetune() {
    LanguageModelConfig config{folder_.model->model_config(), folder_.model->attention_config(), folder_.data,
                               request_.train};
    config.train.steps = request_.finetune_steps;
    const RunFolder run_folder(request_.output, /*resume=*/false);
    LanguageModelTask task(config, train_, &held_out_);
    task.start_from(folder_.model);
    const RunResult result = train::run(task, run_folder, config.train, request_.options);
    report_["finetune"] = {{"steps", result.steps}, {"tokens", result.tokens}, {"seconds", result.seconds}};
    folder_.model = config.train.patience > 0 ? load_model(request_.output).model : task.folder().model;
    folder_.model->eval();
    measure("finetuned", folder_.model);
  }

  ordered_json heads(const HeadErrors& before, const HeadErrors& after) {
    ordered_json rows = ordered_json::array();
    int64_t exact = 0;
    for (size_t layer = 0; layer < after.size(); ++layer) {
      for (size_t head = 0; head < after[layer].size(); ++head) {
        const bool stays = request_.threshold > 0 && !(after[layer][head] <= request_.threshold);
        exact += stays ? 1 : 0;
        rows.push_back({{"layer", layer},
                        {"head", head},
                        {"error_swapped", before[layer][head]},
                        {"error_transferred", after[layer][head]},
                        {"exact", stays}});
      }
    }
    report_["exact_heads"] = exact;
    return rows;
  }

  // In plain words, and plainly when it was not worth it.
  std::string verdict() {
    for (int64_t i = 0; i < held_out_.size(); ++i)
      longest_ = std::max(longest_, static_cast<int64_t>(held_out_.tokens(i).size()));
    for (int64_t i = 0; i < train_.size(); ++i)
      longest_ = std::max(longest_, static_cast<int64_t>(train_.tokens(i).size()));
    report_["longest_sequence"] = longest_;
    if (report_["exact_heads"] == std::ssize(report_["heads"]))
      return "Not worth it: with this threshold all heads stay exact, so that nothing is faster.";
    const ordered_json& faster = report_["speed"]["faster_from"];
    const double lost = request_.trained_head ? first_ - last_ : 1 - similarity_.cosine;
    const std::string price = this->price();
    if (faster.is_null())
      return "Not worth it: on this machine no measured length was faster than exact attention; " + price +
             ".";
    const auto from = faster.get<int64_t>();
    if (from > longest_) {
      return fmt::format(
          "Not worth it for these sequences: they have up to {} tokens, and it is faster from {} on; {}.",
          longest_, from, price);
    }
    if (!(lost <= kTolerated)) {
      return fmt::format(
          "Not worth it yet: faster from {} tokens on, but {}; {}, or keep more heads exact "
          "(--exact-threshold).",
          from, price,
          request_.trained_head ? "train it further" : "transfer it for longer (--transfer-steps)");
    }
    return fmt::format("Worth it for sequences of {} tokens and more: it is faster from there on, and {}.",
                       from, price);
  }

  std::string price() const {
    if (request_.trained_head) return fmt::format("accuracy went from {:.4f} to {:.4f}", first_, last_);
    return fmt::format(
        "its representations have a cosine similarity of {:.4f} with the original's (relative error {:.4f})",
        similarity_.cosine, similarity_.relative_error);
  }

  const ConversionRequest& request_;
  ModelFolder folder_;
  LanguageModel exact_;
  data::SequenceStore train_, held_out_;
  ordered_json report_ = ordered_json::object();
  double first_ = 0, last_ = 0;  // accuracy of the original and of the last stage
  at::Tensor wanted_;            // the original's representations
  Similarity similarity_;        // of the last stage
  int64_t longest_ = 0;
};

void check_request(const ModelFolder& swapped, const ConversionRequest& request) {
  const std::string& kind = swapped.model->attention_config().kind;
  check<UsageError>(!request.files.empty(), "attention transfer needs sequences: --transfer FILE");
  check<UsageError>(
      kind != "exact" && kind != "hybrid" && kind != "auto",
      "attention transfer trains another kind in exact attention's place: choose one with --attention, "
      "favor-hedgehog for example, not {}",
      kind);
  check<UsageError>(swapped.data.holdout > 0, "data.holdout = 0 leaves no sequences to measure on");
  check<UsageError>(request.transfer_steps >= 0 && request.finetune_steps >= 0 && request.threshold >= 0,
                    "steps and threshold of a conversion must be 0 or more");
  check<UsageError>(request.trained_head || request.finetune_steps == 0,
                    "{} has no language-model head, so that --finetune, which trains what is predicted of "
                    "tokens, would train an untrained one: leave it out, and train the converted model with "
                    "labels (performer train --from MODEL --task KIND --labels TABLE)",
                    request.source);
}

}  // namespace

ordered_json improve_conversion(const ModelFolder& original, const ModelFolder& swapped,
                                const ConversionRequest& request) {
  check_request(swapped, request);
  make_directories(request.output);
  const std::string temporary = std::filesystem::temp_directory_path().string();
  return Improvement(original, swapped, request, temporary).run();
}

}  // namespace performer::train
