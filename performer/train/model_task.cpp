// SPDX-License-Identifier: Apache-2.0
#include "performer/train/model_task.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/base/printable.h"
#include "performer/distributed/states.h"
#include "performer/nn/attention/kind.h"
#include "performer/train/evaluation.h"
#include "performer/train/out_of_memory.h"
#include "performer/train/progress.h"
#include "performer/train/run_folder.h"
#include "performer/train/slices.h"

namespace performer::train {
namespace {

int64_t longest_sequence(const data::Corpus& corpus) {
  size_t longest = 0;
  for (int64_t i = 0; i < corpus.size(); ++i) longest = std::max(longest, corpus.tokens(i).size());
  return static_cast<int64_t>(longest);
}

data::CropCounts sum(const data::CropCounts& a, const data::CropCounts& b) {
  return {a.sequences + b.sequences, a.cropped + b.cropped, a.tokens_dropped + b.tokens_dropped,
          a.pieces + b.pieces};
}

}  // namespace

// Numbers are those of the whole batch.
ModelTask::TokenBatch::TokenBatch(const data::Batch& whole, const data::Share& share)
    : part(data::share_of(whole, share)) {
  tokens = whole.tokens_read();
  targets = whole.targets_counted();
  for (const float each : whole.weights) weight += each;
}

std::string ModelTask::TokenBatch::description() const {
  return fmt::format("a batch of {} x {} tokens", part.batch.rows, part.batch.width);
}

ModelTask::ModelTask(const LanguageModelConfig& config, const data::Corpus& train, const data::Corpus* valid,
                     const std::string& objective, std::span<const float> weights)
    : config_(config), train_(train), valid_(valid), objective_(objective), weights_(weights) {
  validate(config);
  check_corpora();
  folder_.data = config.data;
  data::record_source(folder_.data, train);
  folder_.vocabulary = train.vocabulary();
  folder_.baselines = data::Baselines(folder_.vocabulary.symbols());
  for (int64_t i = 0; i < train.size(); ++i) folder_.baselines.add(train.tokens(i));
  folder_.from = config.train.from;
  at::manual_seed(static_cast<uint64_t>(config.train.seed));
  or_out_of_memory(
      [&] { folder_.model = LanguageModel(config.model, config.attention, folder_.vocabulary.size()); },
      [] { return std::string("while making the model"); }, [&] { return memory_advice(Work::preparation); });
  folder_.model->set_checkpoint_activations(config.train.checkpoint_activations);
  folder_.model->train();
}

void ModelTask::start_from(const LanguageModel& model) {
  set_model_state(folder_.model, model_state(model), "the model to start from");
  trained_.reset();
}

TrainedParameters& ModelTask::trained() {
  if (!trained_) trained_.emplace(folder_.model, config_.train, /*whole_model=*/!config_.task.has_head());
  return *trained_;
}

// Learned positions end somewhere; better to know before the first step than in the first evaluation.
void ModelTask::check_corpora() const {
  check<InputError>(valid_ == nullptr || valid_->vocabulary() == train_.vocabulary(),
                    "the held-out sequences are of the vocabulary {}, but the training sequences are of {}: "
                    "both must be the same",
                    valid_ != nullptr ? valid_->vocabulary().name() : "", train_.vocabulary().name());
  const ModelConfig& model = config_.model;
  // Throws for a sequence that must not be cropped.
  data::BatchStream(train_, data::for_ranks(config_.data, 1, config_.train.sequence_parallel),
                    model.objective);
  check_attended_length();
  if (!limits_length(model)) return;
  const int64_t markers = model.objective == "masked" ? 2 : 1;
  check<UsageError>(config_.data.length <= model.max_length,
                    "data.length is {}, but model.positions = {} covers model.max_length = {} tokens: "
                    "raise it, or use model.positions = rotary",
                    config_.data.length, model.positions, model.max_length);
  // Pieces and windows keep their places in the sequence, and an evaluation reads sequences whole.
  const std::string& crop = config_.data.crop;
  const bool keeps_places = config_.data.layout != "concatenated" && (crop == "split" || crop == "random");
  int64_t longest = keeps_places ? longest_sequence(train_) : 0;
  if (valid_ != nullptr) longest = std::max(longest, longest_sequence(*valid_));
  check<UsageError>(longest + markers <= model.max_length,
                    "the longest sequence takes {} tokens, but model.positions = {} covers "
                    "model.max_length = {}: raise it, or use model.positions = rotary",
                    longest + markers, model.positions, model.max_length);
}

// The same of kinds that take sequences up to a length; an evaluation reads sequences whole.
void ModelTask::check_attended_length() const {
  const std::optional<int64_t> longest = nn::longest_of(config_.attention);
  if (!longest) return;
  const auto check_length = [&](const char* what, int64_t tokens) {
    check<UsageError>(
        tokens <= *longest,
        "{} takes {} tokens, but attention.kind = {} takes at most {}: raise attention.length, or "
        "choose another kind",
        what, tokens, config_.attention.kind, *longest);
  };
  check_length("a row of data.length", config_.data.length);
  const int64_t markers = config_.model.objective == "masked" ? 2 : 1;
  if (valid_ != nullptr) check_length("the longest held-out sequence", longest_sequence(*valid_) + markers);
}

std::vector<NamedParameter> ModelTask::parameters() {
  return trained().parameters();
}

std::unique_ptr<Batch> ModelTask::next() {
  return std::make_unique<TokenBatch>(next_whole(), share_);
}

data::Batch ModelTask::next_whole() {
  if (!queue_) {
    const DataConfig all = data::for_ranks(config_.data, share_.parts, config_.train.sequence_parallel);
    // Of batches as long as genomes one ahead will do: each takes 28 bytes a token.
    const size_t ahead = all.batch_tokens > (int64_t{1} << 20) ? 1 : 4;
    queue_.emplace(data::training_batches(train_, all, objective_, cursor_, weights_), ahead);
  }
  data::QueuedBatch queued = queue_->next();
  cursor_ = queued.cursor;
  crops_ = sum(crops_before_, queued.crops);
  return std::move(queued.batch);
}

// Projections hold for `redraw_every` steps; drawn at the start of a step, so that an evaluation or a saved
// model uses those that the weights were trained with.
void ModelTask::before_step(int64_t steps) {
  const int64_t every = config_.attention.redraw_every;
  if (every > 0 && steps / every != folder_.model->redraw_index()) folder_.model->redraw(steps / every);
}

// Gradients of adapters are made from those of the merged weights, when these are whole.
bool ModelTask::one_backward_pass() const {
  return config_.train.slim_chunk == 0 && config_.train.lora_rank == 0;
}

void ModelTask::after_step() {
  trained().after_step();
  folder_.model->after_step();
  if (ranks_ != nullptr) share_statistics();
}

void ModelTask::divide(distributed::Communicator& ranks) {
  const int64_t slices = config_.train.sequence_parallel;
  check<UsageError>(
      ranks.size() % slices == 0,
      "train.sequence_parallel is {}, but there are {} ranks: their number must be a multiple of it", slices,
      ranks.size());
  check<UsageError>(
      config_.data.length >= slices,
      "train.sequence_parallel is {}, which leaves ranks without a token of rows of data.length = {}", slices,
      config_.data.length);
  ranks_ = ranks.size() > 1 ? &ranks : nullptr;
  share_ = {ranks.rank() / slices, ranks.size() / slices, ranks.rank() % slices, slices};
  if (slices == 1) return;
  // Neighbours, which most often are on one machine: they talk in every layer.
  group_ = ranks.group("sequence", static_cast<int>(share_.part * slices), 1, static_cast<int>(slices));
  if (config_.train.slim_chunk == 0) {
    exchange_ = distributed::state_exchange(group_);
  } else {  // each has the tokens of all, of which it takes some chunks
    share_.slice = 0;
    share_.slices = 1;
  }
}

void ModelTask::count_sequences(const data::Batch& part) {
  sequences_ = part.cu_seqlens.empty() ? part.rows : std::ssize(part.cu_seqlens) - 1;
}

SequenceBatch ModelTask::tensors_of(const data::SharedBatch& part) const {
  SequenceBatch tensors = to_tensors(part.batch);
  tensors.window = {part.row * part.length + part.begin, part.length};
  if (exchange_) tensors.slices = slices_of(part, share_.slices, exchange_);
  return tensors;
}

// What the kinds measured is a mean over the sequences of a batch, of which each rank saw its own.
void ModelTask::share_statistics() {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> statistics = folder_.model->statistics();
  if (statistics.empty()) return;
  const auto weight = static_cast<double>(sequences_);
  std::vector<at::Tensor> flat = {at::full({1}, weight, at::kDouble)};
  for (const at::Tensor& each : statistics) flat.push_back(each.reshape({-1}).to(at::kDouble) * weight);
  const at::Tensor sums = at::cat(flat);
  ranks_->sum(sums);
  int64_t begin = 1;
  for (at::Tensor each : statistics) {
    each.copy_((sums.narrow(0, begin, each.numel()) / sums[0]).view(each.sizes()));
    begin += each.numel();
  }
}

std::function<void(int64_t done, int64_t total)> ModelTask::evaluation_progress() const {
  static constexpr auto kSilence = std::chrono::seconds(10);
  const auto begun = std::chrono::steady_clock::now();
  return [this, begun, said = begun](int64_t done, int64_t total) mutable {
    const auto now = std::chrono::steady_clock::now();
    const bool silent = ranks_ != nullptr && ranks_->rank() > 0;
    if (silent || now - said < kSilence || done == 0 || done >= total) return;
    said = now;
    const double seconds = std::chrono::duration<double>(now - begun).count();
    const double left = seconds / static_cast<double>(done) * static_cast<double>(total - done);
    Progress(false).message(fmt::format("evaluation: {} of {} {}, {} left", done, total,
                                        valid_->report().records_name, format_duration(left)));
  };
}

Settings ModelTask::settings() const {
  return task_settings(config_);
}

nlohmann::json ModelTask::fingerprints() const {
  return {{"vocabulary", train_.vocabulary().fingerprint()},
          {"train", train_.fingerprint()},
          {"valid", valid_ != nullptr ? valid_->fingerprint() : 0},
          {"weights", stable_hash({reinterpret_cast<const char*>(weights_.data()), weights_.size_bytes()})}};
}

TaskState ModelTask::state() const {
  TaskState state;
  state.values = {
      {"redraw", folder_.model->redraw_index()},
      {"cursor", {cursor_.epoch, cursor_.sequence, cursor_.offset}},
      {"crops", {crops_.sequences, crops_.cropped, crops_.tokens_dropped, crops_.pieces}},
      {"fingerprints", fingerprints()},
  };
  state.tensors = model_state(folder_.model);
  if (trained_) trained_->add_state(state.tensors);
  add_state(state.tensors);
  return state;
}

void ModelTask::check_same_data(const nlohmann::json& then, const std::string& folder) const {
  const nlohmann::json now = fingerprints();
  check<UsageError>(then.at("vocabulary") == now["vocabulary"],
                    "--train: the training sequences are of another vocabulary than those the run in {} was "
                    "started with: give the same files and the same data.vocabulary, or train into another "
                    "folder",
                    folder);
  check<UsageError>(then.at("train") == now["train"],
                    "--train: the training sequences are not those the run in {} was started with (or not in "
                    "the same order): give the same files, or train into another folder",
                    folder);
  check<UsageError>(then.at("valid") == now["valid"],
                    "--valid: the held-out sequences are not those the run in {} was started with: give the "
                    "same files, or train into another folder",
                    folder);
  for (const auto& [key, value] : now.items()) {
    check<UsageError>(
        then.contains(key) && then[key] == value,
        "{}: the {} of the sequences are not those the run in {} was started with: give the same "
        "table, or train into another folder",
        key == "weights" ? "task.weights" : "task.labels", key, folder);
  }
}

void ModelTask::set_state(const TaskState& state, const std::string& folder) {
  const nlohmann::json& values = state.values;
  check_same_data(values.at("fingerprints"), folder);
  const auto& cursor = values.at("cursor");
  const auto& crops = values.at("crops");
  folder_.model->redraw(values.at("redraw").get<int64_t>());
  std::map<std::string, at::Tensor> tensors = state.tensors;
  take_state(tensors, training_file(folder));
  std::map<std::string, at::Tensor> adapters;
  std::erase_if(tensors, [&](const auto& each) {
    return each.first.starts_with("lora.") && adapters.insert(each).second;
  });
  set_model_state(folder_.model, tensors, training_file(folder));
  trained().set_state(adapters, training_file(folder));
  queue_.reset();
  cursor_ = {cursor.at(0), cursor.at(1), cursor.at(2)};
  crops_ = crops_before_ = {crops.at(0), crops.at(1), crops.at(2), crops.at(3)};
}

void ModelTask::save(const std::string& folder) const {
  save_model(folder, folder_);
}

std::string ModelTask::memory_advice(Work work) const {
  const DataConfig& data = config_.data;
  switch (work) {
    case Work::preparation:
      return "lower model.layers, model.width, model.ffn or model.max_length";
    case Work::evaluation:
      return fmt::format("lower data.batch_tokens ({}); the longest held-out sequence has {} {}",
                         data.batch_tokens, valid_ != nullptr ? longest_sequence(*valid_) : 0,
                         train_.vocabulary().unit());
    case Work::step:
      break;
  }
  return fmt::format(
      "lower data.batch_tokens ({}; raise train.accumulate to make up for it), data.length ({}), "
      "model.layers or model.width, or {}",
      data.batch_tokens, data.length, saving_advice(config_));
}

std::vector<std::string> ModelTask::begin_lines() const {
  std::vector<std::string> lines;
  const data::ReadReport& read = train_.report();
  const std::string changed = data::changes(read);
  if (!changed.empty()) lines.push_back("reading the training files: " + changed);
  if (!config_.train.from.empty())
    lines.push_back(fmt::format("starting from {}", shown(config_.train.from)));
  if (trained_ && !trained_->adapters().empty()) {
    lines.push_back(
        fmt::format("the model is frozen but for adapters of rank {} at {} projections: {} numbers",
                    config_.train.lora_rank, trained_->adapters().size(), trained_->count()));
  } else if (trained_ && trained_->count() < folder_.model->parameter_count()) {
    lines.push_back(fmt::format("{} of the model's {} parameters are trained", trained_->count(),
                                folder_.model->parameter_count()));
  }
  lines.push_back(fmt::format("{} parameters, {} training {} ({} {}), {} held out, {} threads",
                              folder_.model->parameter_count(), train_.size(), read.records_name,
                              train_.total_tokens(), train_.vocabulary().unit(),
                              valid_ != nullptr ? valid_->size() : 0, at::get_num_threads()));
  const std::string notice = nn::notice_of(config_.model, config_.attention);
  if (!notice.empty()) lines.push_back(notice);
  return lines;
}

std::vector<std::string> ModelTask::end_lines() const {
  std::vector<std::string> lines;
  if (group_) {
    const distributed::Traffic sent = group_->traffic();
    lines.push_back(
        fmt::format("{} ranks a sequence: each handed {:.3f} MB of states and of their gradients to the "
                    "others, in {} exchanges",
                    group_->size(), static_cast<double>(sent.bytes) / 1e6, sent.exchanges));
  }
  if (crops_.cropped == 0) return lines;
  lines.push_back(
      fmt::format("{} of {} sequences seen were longer than data.length = {} (data.crop = {}): {} pieces, "
                  "{} {} dropped",
                  crops_.cropped, crops_.sequences, config_.data.length, config_.data.crop, crops_.pieces,
                  crops_.tokens_dropped, train_.vocabulary().unit()));
  return lines;
}

nlohmann::ordered_json ModelTask::totals() const {
  return {{"sequences", crops_.sequences},
          {"cropped", crops_.cropped},
          {"tokens_dropped", crops_.tokens_dropped},
          {"pieces", crops_.pieces}};
}

}  // namespace performer::train
