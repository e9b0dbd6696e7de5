// SPDX-License-Identifier: Apache-2.0
#include "performer/train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>

#include "performer/base/error.h"
#include "performer/train/adam.h"
#include "performer/train/autocast.h"
#include "performer/train/batch_queue.h"
#include "performer/train/evaluation.h"
#include "performer/train/loss.h"
#include "performer/train/metrics_log.h"
#include "performer/train/out_of_memory.h"
#include "performer/train/progress.h"
#include "performer/train/run_folder.h"
#include "performer/train/slim.h"

namespace performer {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

template <class Config>
void add_settings(Settings& settings, const std::string& section, const Config& config) {
  for (const FieldInfo& field : list_fields(section, config)) settings[field.key()] = to_text(field.value);
}

Settings settings_of(const TrainRequest& request) {
  Settings settings;
  add_settings(settings, "model", request.model);
  add_settings(settings, "attention", request.attention);
  add_settings(settings, "data", request.data);
  add_settings(settings, "train", request.train);
  return settings;
}

bool holds_out(const TrainRequest& request) {
  return request.valid_files.empty() && request.data.holdout > 0;
}

// Tokens of a batch whose activations are kept at a time.
int64_t kept_tokens(const TrainRequest& request) {
  const DataConfig& data = request.data;
  if (request.train.slim_chunk == 0) return data.batch_tokens;
  const int64_t rows = data.layout == "packed" ? 1 : data.batch_tokens / data.length;
  return request.train.slim_chunk < data.batch_tokens / rows ? rows * request.train.slim_chunk
                                                             : data.batch_tokens;
}

// What still trades time for memory.
std::string memory_advice(const TrainRequest& request) {
  const TrainConfig& train = request.train;
  if (train.slim_chunk > 0) return fmt::format("lower train.slim_chunk ({})", train.slim_chunk);
  const bool slim =
      request.model.objective == "causal" && nn::find_kind(request.attention.kind).capabilities.chunks;
  return slim ? "set train.slim_chunk (1024, say)" : "set train.checkpoint_activations = true";
}

// Linux grants memory that it does not have and kills the process once it is used, without a word. What
// surely cannot fit is therefore refused beforehand, by what the blocks must keep for the backward pass:
// their inputs, and without recomputation norms, projections, attention and both sides of the activation too.
void check_memory(const TrainRequest& request) {
  const ModelConfig& model = request.model;
  const int64_t inside = request.train.checkpoint_activations ? 0 : 4 * model.width + 2 * model.ffn;
  const double bytes = request.train.precision == "bfloat16" ? 2 : 4;
  const double needed = static_cast<double>(kept_tokens(request)) * static_cast<double>(model.layers) *
                        static_cast<double>(model.width + inside) * bytes;
  constexpr double kGiB = 1 << 30;
  check(needed < physical_memory(),
        "out of memory: batches of data.batch_tokens = {} tokens take more than {:.0f} GiB with this model, "
        "and this machine has {:.0f} GiB: lower data.batch_tokens and raise train.accumulate to make up for "
        "it, lower data.length ({}), model.layers or model.width, or {}",
        request.data.batch_tokens, needed / kGiB, physical_memory() / kGiB, request.data.length,
        memory_advice(request));
}

void validate(const TrainRequest& request) {
  validate(request.model, request.attention);
  validate(request.data);
  validate(request.train);
  validate_slim(request.model, request.attention, request.train);
  check<UsageError>(!request.train_files.empty(), "no training sequences given (--train FILE...)");
  const bool from_input =
      std::find(request.train_files.begin(), request.train_files.end(), "-") != request.train_files.end();
  check<UsageError>(!from_input || !holds_out(request),
                    "standard input (--train -) can be read only once, and holding sequences out takes two "
                    "passes: give --valid files, a training file, or data.holdout = 0");
  check<UsageError>(request.time_limit >= 0, "the time limit must be 0 (none) or more seconds, but is {}",
                    request.time_limit);
  check_memory(request);
}

// Norm gains, biases and temperatures are exempt: shrinking them is no regularisation.
bool decays(const std::string& name, const at::Tensor& value, const TrainConfig& train) {
  return train.decay == "all" || (value.dim() >= 2 && !name.ends_with("_gain"));
}

std::vector<NamedParameter> optimizer_parameters(const LanguageModel& model, const TrainConfig& train) {
  std::vector<NamedParameter> parameters;
  for (const auto& item : model->named_parameters()) {
    parameters.push_back({item.key(), item.value(), decays(item.key(), item.value(), train)});
  }
  return parameters;
}

std::string objective_note(const TrainRequest& request) {
  if (request.model.objective != "masked") return "causal: next residue";
  const data::Corruption mix = data::corruption_from_name(request.data.corruption);
  return fmt::format("masked: {} of the residues chosen, of these {} masked, {} random, the rest kept ({})",
                     request.data.mask_rate, mix.mask, mix.random, request.data.corruption);
}

// LibTorch's default generator: it gave the first weights and gives every dropout mask.
at::Generator dropout_generator() {
  return at::globalContext().defaultGenerator(at::kCPU);
}

data::HashSplit split(const DataConfig& config, data::HashSplit::Side side) {
  return {side, config.holdout, static_cast<uint64_t>(config.seed)};
}

int64_t longest_sequence(const data::SequenceStore& store) {
  size_t longest = 0;
  for (int64_t i = 0; i < store.size(); ++i) longest = std::max(longest, store.tokens(i).size());
  return static_cast<int64_t>(longest);
}

// One run from its first to its last step. Members are in the order of construction: folder, data, model,
// optimizer.
class Run {
 public:
  explicit Run(const TrainRequest& request);
  TrainResult go();

 private:
  struct Group {  // the batches of one optimizer step
    std::vector<QueuedBatch> batches;
    int64_t tokens = 0;
    double weight = 0;
  };

  void load_held_out();
  void check_lengths() const;
  void report_data();
  void restore();
  void save();
  void evaluate_now();
  Group next_group();
  void step();
  BatchSums backward(const data::Batch& batch, double weight);
  StepMetrics optimize(const Group& group);
  void report(const StepMetrics& metrics, double duration);
  TrainResult finish();

  bool stopping() const { return request_.stop != nullptr && request_.stop->load(); }
  bool out_of_time() const {
    return request_.time_limit > 0 && seconds_since(started_) >= request_.time_limit;
  }
  bool due(int64_t every, int64_t last) const {
    return every > 0 && state_.step > 0 && state_.step % every == 0 && state_.step != last;
  }
  void update_seconds() { state_.seconds = seconds_before_ + seconds_since(started_); }
  std::string checkpoint_note() const;
  std::string describe_batch(const Group& group) const;

  const TrainRequest& request_;
  Progress progress_;
  RunFolder folder_;
  std::unique_ptr<data::SequenceStore> train_store_;
  std::unique_ptr<data::SequenceStore> valid_store_;  // absent when nothing is held out
  ModelFolder saved_;  // model, baselines and what else goes into the model folder
  Schedule schedule_;
  std::optional<Adam> adam_;
  RunState state_;
  data::CropCounts crops_before_;  // of the runs that this one continues
  std::optional<BatchQueue> queue_;
  std::optional<MetricsLog> log_;
  Clock::time_point started_{};
  double seconds_before_ = 0;
  int64_t saved_step_ = -1;
  double step_seconds_ = 0;  // spent in steps by this call
  int64_t step_tokens_ = 0;  // trained on by this call
  double pace_ = 0;          // smoothed seconds a step
};

Run::Run(const TrainRequest& request)
    : request_(request),
      progress_(request.progress),
      folder_(request.output, request.resume),
      schedule_(make_schedule(request.train)) {
  train_store_ = std::make_unique<data::SequenceStore>(
      request.train_files, folder_.path(),
      holds_out(request) ? split(request.data, data::HashSplit::Side::train) : data::HashSplit{});
  load_held_out();
  check_lengths();
  for (int64_t i = 0; i < train_store_->size(); ++i) saved_.baselines.add(train_store_->tokens(i));

  at::manual_seed(static_cast<uint64_t>(request.train.seed));
  or_out_of_memory(
      [&] {
        saved_.model = LanguageModel(request.model, request.attention, data::kVocabularySize);
        adam_.emplace(optimizer_parameters(saved_.model, request.train),
                      AdamOptions{request.train.adam_beta1, request.train.adam_beta2,
                                  request.train.adam_epsilon, request.train.weight_decay});
      },
      [] { return std::string("while making the model"); },
      [] { return std::string("lower model.layers, model.width, model.ffn or model.max_length"); });
  saved_.model->set_checkpoint_activations(request.train.checkpoint_activations);
  saved_.data = request.data;
  saved_.objective_note = objective_note(request);
  state_.train_fingerprint = train_store_->fingerprint();
  state_.valid_fingerprint = valid_store_ != nullptr ? valid_store_->fingerprint() : 0;
  state_.threads = at::get_num_threads();
  if (request.resume) restore();
  report_data();
  queue_.emplace(training_batches(*train_store_, request.data, request.model.objective, state_.cursor));
}

void Run::load_held_out() {
  if (!request_.valid_files.empty()) {
    valid_store_ = std::make_unique<data::SequenceStore>(request_.valid_files, folder_.path());
  } else if (holds_out(request_)) {
    try {
      valid_store_ = std::make_unique<data::SequenceStore>(
          request_.train_files, folder_.path(), split(request_.data, data::HashSplit::Side::held_out));
    } catch (const InputError&) {  // the files themselves were read without complaint just before
      progress_.warning(
          fmt::format("none of the {} sequences falls into the held-out part (data.holdout = {}): there will "
                      "be no evaluation; give --valid files or raise data.holdout",
                      train_store_->size(), request_.data.holdout));
    }
  }
}

// Learned positions end somewhere; better to know before the first step than in the first evaluation.
void Run::check_lengths() const {
  if (!limits_length(request_.model)) return;
  const int64_t markers = request_.model.objective == "masked" ? 2 : 1;
  check<UsageError>(request_.data.length <= request_.model.max_length,
                    "data.length is {}, but model.positions = {} covers model.max_length = {} tokens: "
                    "raise it, or use model.positions = rotary",
                    request_.data.length, request_.model.positions, request_.model.max_length);
  // Pieces and windows keep their places in the sequence, and an evaluation reads sequences whole.
  const std::string& crop = request_.data.crop;
  const bool keeps_places = request_.data.layout != "concatenated" && (crop == "split" || crop == "random");
  int64_t longest = keeps_places ? longest_sequence(*train_store_) : 0;
  if (valid_store_ != nullptr) longest = std::max(longest, longest_sequence(*valid_store_));
  check<UsageError>(longest + markers <= request_.model.max_length,
                    "the longest sequence takes {} tokens, but model.positions = {} covers "
                    "model.max_length = {}: raise it, or use model.positions = rotary",
                    longest + markers, request_.model.positions, request_.model.max_length);
}

void Run::report_data() {
  const data::FastaCounts& read = train_store_->counts();
  const bool changed = read.lower_case + read.stops + read.gaps + read.j_to_x + read.duplicate_names > 0;
  if (changed) {
    progress_.message(
        fmt::format("reading the training files: {} letters upper-cased, {} end '*' and {} gaps dropped, {} "
                    "J read as X, {} names seen before",
                    read.lower_case, read.stops, read.gaps, read.j_to_x, read.duplicate_names));
  }
  progress_.message(fmt::format("{} parameters, {} training sequences ({} residues), {} held out, {} threads",
                                saved_.model->parameter_count(), train_store_->size(),
                                train_store_->residues(), valid_store_ != nullptr ? valid_store_->size() : 0,
                                state_.threads));
}

void Run::restore() {
  const std::string& path = folder_.path();
  TrainingCheckpoint checkpoint = load_training(path);
  check_same_settings(path, checkpoint.settings, settings_of(request_));
  const RunState& then = checkpoint.state;
  check<UsageError>(then.train_fingerprint == state_.train_fingerprint,
                    "--train: the training sequences are not those the run in {} was started with (or not in "
                    "the same order): give the same files, or train into another folder",
                    path);
  check<UsageError>(then.valid_fingerprint == state_.valid_fingerprint,
                    "--valid: the held-out sequences are not those the run in {} was started with: give the "
                    "same files, or train into another folder",
                    path);
  if (then.threads != state_.threads) {
    progress_.warning(
        fmt::format("the run used {} threads so far and now uses {}: results may differ by rounding from "
                    "those of a run that never stopped",
                    then.threads, state_.threads));
  }
  std::map<std::string, at::Tensor> model, adam;
  for (const auto& [name, tensor] : checkpoint.tensors) {
    if (name.starts_with("model.")) model[name.substr(6)] = tensor;
    if (name.starts_with("adam.")) adam[name.substr(5)] = tensor;
  }
  const std::string source = path + "/training.safetensors";
  const auto generator = checkpoint.tensors.find("generator");
  check<InputError>(generator != checkpoint.tensors.end(), "{}: the state of the random generator is missing",
                    source);
  saved_.model->redraw(then.redraw);
  set_model_state(saved_.model, model, source);
  adam_->set_state(adam, source);
  dropout_generator().set_state(generator->second);
  const int threads = state_.threads;
  state_ = then;
  state_.threads = threads;
  crops_before_ = then.crops;
  seconds_before_ = then.seconds;
  saved_step_ = then.step;
  progress_.message(fmt::format("continuing the run in {} after step {}", path, then.step));
}

void Run::save() {
  TrainingCheckpoint checkpoint{state_, settings_of(request_), {}};
  for (const auto& [name, tensor] : model_state(saved_.model)) checkpoint.tensors["model." + name] = tensor;
  for (const auto& [name, tensor] : adam_->state()) checkpoint.tensors["adam." + name] = tensor;
  checkpoint.tensors["generator"] = dropout_generator().get_state();
  save_training(folder_.path(), checkpoint);
  save_model(folder_.path(), saved_);
  saved_step_ = state_.step;
}

std::string Run::checkpoint_note() const {
  return fmt::format("the checkpoint of step {} in {} is kept", saved_step_, folder_.path());
}

void Run::evaluate_now() {
  if (valid_store_ == nullptr) return;
  const Evaluation result = or_out_of_memory(
      [&] { return evaluate(saved_.model, *valid_store_, request_.data, saved_.baselines); },
      [&] { return fmt::format("in the evaluation after step {}", state_.step); },
      [&] {
        return fmt::format("lower data.batch_tokens ({}); the longest held-out sequence has {} residues; {}",
                           request_.data.batch_tokens, longest_sequence(*valid_store_), checkpoint_note());
      });
  state_.evaluated = state_.step;
  log_->add(state_.step, result);
  progress_.message(
      fmt::format("step {}: held-out perplexity {:.3f} (unigram {:.3f}, bigram {:.3f}), accuracy {:.3f}",
                  state_.step, result.model.perplexity(), result.unigram.perplexity(),
                  result.bigram.perplexity(), result.model.accuracy()));
}

Run::Group Run::next_group() {
  Group group;
  for (int64_t i = 0; i < request_.train.accumulate; ++i) {
    group.batches.push_back(queue_->next());
    const data::Batch& batch = group.batches.back().batch;
    group.tokens += batch.tokens();
    for (const float weight : batch.weights) group.weight += weight;
  }
  return group;
}

std::string Run::describe_batch(const Group& group) const {
  if (group.batches.empty()) return "while making a batch";
  const auto larger = [](const QueuedBatch& a, const QueuedBatch& b) {
    return a.batch.inputs.size() < b.batch.inputs.size();
  };
  const data::Batch& batch = std::max_element(group.batches.begin(), group.batches.end(), larger)->batch;
  return fmt::format("with a batch of {} x {} tokens", batch.rows, batch.width);
}

void Run::step() {
  const auto begin = Clock::now();
  const int64_t number = state_.step + 1;
  Group group;
  StepMetrics metrics = or_out_of_memory(
      [&] {
        group = next_group();
        return optimize(group);
      },
      [&] { return fmt::format("in step {} {}", number, describe_batch(group)); },
      [&] {
        return fmt::format(
            "lower data.batch_tokens ({}; raise train.accumulate to make up for it), data.length ({}), "
            "model.layers or model.width, or {}; {}",
            request_.data.batch_tokens, request_.data.length, memory_advice(request_), checkpoint_note());
      });
  const QueuedBatch& last = group.batches.back();
  state_.step = number;
  state_.tokens += group.tokens;
  state_.loss = metrics.loss;
  state_.redraw = saved_.model->redraw_index();
  state_.cursor = last.cursor;
  state_.crops = {crops_before_.sequences + last.crops.sequences, crops_before_.cropped + last.crops.cropped,
                  crops_before_.residues_dropped + last.crops.residues_dropped,
                  crops_before_.pieces + last.crops.pieces};
  update_seconds();
  const double duration = seconds_since(begin);
  step_seconds_ += duration;
  step_tokens_ += group.tokens;
  metrics.tokens = state_.tokens;
  metrics.seconds = state_.seconds;
  metrics.tokens_per_second = static_cast<double>(group.tokens) / duration;
  report(metrics, duration);
}

// Adds to the gradients what a batch contributes to a mean over `weight` targets.
BatchSums Run::backward(const data::Batch& batch, double weight) {
  const TrainConfig& train = request_.train;
  const bool bfloat16 = train.precision == "bfloat16";
  const at::Tensor targets = target_tensor(batch), weights = weight_tensor(batch);
  if (train.slim_chunk > 0) {
    return slim_backward(saved_.model, to_tensors(batch), targets, weights,
                         {train.slim_chunk, weight, bfloat16});
  }
  const at::Tensor logits = [&] {
    const AutocastScope autocast(bfloat16);
    return saved_.model->forward(to_tensors(batch));
  }();
  const at::Tensor loss = weighted_cross_entropy(logits, targets, weights) / weight;
  loss.backward();
  return {loss.item<double>(), weighted_correct(logits, targets, weights).item<double>()};
}

// Gradients of the mean over the whole group, then one step of the optimizer.
StepMetrics Run::optimize(const Group& group) {
  StepMetrics metrics;
  metrics.step = state_.step + 1;
  const TrainConfig& train = request_.train;
  const int64_t redraw_every = request_.attention.redraw_every;
  // Projections hold for `redraw_every` steps; drawn here, at the start of a step, so that an evaluation or a
  // saved model uses those that the weights were trained with.
  if (redraw_every > 0 && state_.step / redraw_every != saved_.model->redraw_index()) {
    saved_.model->redraw(state_.step / redraw_every);
  }
  const double weight = std::max(group.weight, 1e-9);
  adam_->zero_gradients();
  for (const QueuedBatch& queued : group.batches) {
    const BatchSums sums = backward(queued.batch, weight);
    check(std::isfinite(sums.loss),
          "the loss is {} in step {}: lower train.learning_rate ({}) or train.clip ({}), lengthen "
          "train.warmup, or use train.precision = float32; {}",
          sums.loss, metrics.step, train.learning_rate, train.clip, checkpoint_note());
    metrics.loss += sums.loss;
    metrics.accuracy += sums.correct / weight;
  }
  metrics.gradient_norm = clip_gradients(adam_->gradients(), train.clip);
  check(std::isfinite(metrics.gradient_norm),
        "the gradient norm is {} in step {}: lower train.learning_rate ({}), lengthen train.warmup, or use "
        "train.precision = float32; {}",
        metrics.gradient_norm, metrics.step, train.learning_rate, checkpoint_note());
  metrics.learning_rate = schedule_(metrics.step);
  adam_->step(metrics.learning_rate);
  saved_.model->after_step();
  return metrics;
}

void Run::report(const StepMetrics& metrics, double duration) {
  log_->add(metrics);
  pace_ = pace_ == 0 ? duration : 0.9 * pace_ + 0.1 * duration;
  ProgressState shown{metrics.step,     request_.train.steps,      metrics.loss,
                      metrics.accuracy, metrics.tokens_per_second, -1};
  shown.remaining = static_cast<double>(request_.train.steps - metrics.step) * pace_;
  if (request_.time_limit > 0) {
    shown.remaining = std::min(shown.remaining, request_.time_limit - seconds_since(started_));
  }
  if (progress_.draws()) {
    progress_.update(shown);
  } else if (metrics.step % request_.train.log_every == 0) {
    progress_.message(format_status(shown));
  }
}

TrainResult Run::go() {
  saved_.model->train();
  // Step 0 is saved too: an unwritable folder is found out at once, and a resume works from the first second
  // on.
  if (!request_.resume) save();
  log_.emplace(folder_.path(), state_.step);
  started_ = Clock::now();
  for (;;) {
    if (!stopping() && due(request_.train.evaluate_every, state_.evaluated)) evaluate_now();
    if (state_.step >= request_.train.steps || out_of_time()) break;
    update_seconds();
    if (stopping()) {
      if (state_.step != saved_step_) save();
      throw Interrupted(
          fmt::format("interrupted after step {}; the checkpoint is in {}: continue with --resume",
                      state_.step, folder_.path()));
    }
    if (due(request_.train.checkpoint_every, saved_step_)) save();
    step();
  }
  return finish();
}

TrainResult Run::finish() {
  if (state_.evaluated != state_.step) {
    if (state_.step != saved_step_) save();  // the evaluation may take long, and be killed
    evaluate_now();
  }
  update_seconds();
  save();
  const double rate = step_seconds_ > 0 ? static_cast<double>(step_tokens_) / step_seconds_ : 0;
  log_->finish(state_, rate);
  if (state_.crops.cropped > 0) {
    progress_.message(
        fmt::format("{} of {} sequences seen were longer than data.length = {} (data.crop = {}): {} pieces, "
                    "{} residues dropped",
                    state_.crops.cropped, state_.crops.sequences, request_.data.length, request_.data.crop,
                    state_.crops.pieces, state_.crops.residues_dropped));
  }
  progress_.message(fmt::format("peak memory {:.0f} MiB", peak_memory_mib()));
  return {state_.step, state_.tokens, state_.loss, state_.seconds, rate};
}

}  // namespace

TrainResult train(const TrainRequest& request) {
  validate(request);
  return Run(request).go();
}

}  // namespace performer
