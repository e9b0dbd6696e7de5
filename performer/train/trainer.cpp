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
#include "performer/data/json.h"
#include "performer/distributed/gradients.h"
#include "performer/train/metrics_log.h"
#include "performer/train/out_of_memory.h"
#include "performer/train/progress.h"
#include "performer/train/sharded_adam.h"

namespace performer::train {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// LibTorch's default generator: it gives every dropout mask, and gave the first weights.
at::Generator default_generator() {
  return at::globalContext().defaultGenerator(at::kCPU);
}

Settings all_settings(const Task& task, const TrainConfig& config) {
  Settings settings = task.settings();
  for (const FieldInfo& field : list_fields("train", config)) settings[field.key()] = to_text(field.value);
  return settings;
}

ShardedAdam make_optimizer(Task& task, const TrainConfig& config, distributed::Communicator& ranks) {
  return or_out_of_memory(
      [&] {
        return ShardedAdam(task.parameters(),
                           {config.adam_beta1, config.adam_beta2, config.adam_epsilon, config.weight_decay},
                           ranks, config.shard_optimizer);
      },
      [] { return std::string("while making the optimizer"); },
      [&] { return task.memory_advice(Work::preparation); });
}

std::vector<at::Tensor> values_of(const std::vector<NamedParameter>& parameters) {
  std::vector<at::Tensor> values;
  for (const NamedParameter& parameter : parameters) values.push_back(parameter.value);
  return values;
}

// One run from its first to its last step.
class Run {
 public:
  Run(Task& task, const RunFolder& folder, const TrainConfig& config, const RunOptions& options,
      distributed::Communicator& ranks);
  RunResult go();

 private:
  struct Group {  // the batches of one optimizer step
    std::vector<std::unique_ptr<Batch>> batches;
    int64_t tokens = 0, targets = 0;
    double weight = 0;
  };

  void restore();
  void begin_alike();
  void save();
  void evaluate();
  void compare(double goodness);
  Group next_group();
  void step();
  StepMetrics optimize(const Group& group);
  void accumulate(const Group& group, StepMetrics& metrics);
  double gradient_norm();
  void count(const Group& group, StepMetrics& metrics, double duration);
  void report(const StepMetrics& metrics);
  [[noreturn]] void interrupt();
  RunResult finish();

  bool keeps_best() const { return config_.patience > 0; }
  bool out_of_patience() const { return keeps_best() && state_.since_best >= config_.patience; }
  bool leads() const { return ranks_.rank() == 0; }
  void agree();
  std::string traffic_note() const;
  bool due(int64_t every, int64_t last) const {
    return every > 0 && state_.step > 0 && state_.step % every == 0 && state_.step != last;
  }
  void update_seconds() { state_.seconds = seconds_before_ + seconds_since(started_); }
  std::string checkpoint_note() const;
  static std::string describe(const Group& group);

  Task& task_;
  const RunFolder& folder_;
  const TrainConfig& config_;
  const RunOptions& options_;
  distributed::Communicator& ranks_;
  Progress progress_;
  Schedule schedule_;
  ShardedAdam adam_;
  distributed::GradientSum gradients_;
  RunState state_;
  std::optional<MetricsLog> log_;                // of rank 0
  bool stopping_ = false, out_of_time_ = false;  // on any rank, when agree() was called last
  int64_t first_step_ = 0;                       // of this call, and what was exchanged before it
  distributed::Traffic before_steps_;
  Clock::time_point started_{};
  double seconds_before_ = 0;  // of the runs that this one continues
  int64_t saved_step_ = -1;
  double step_seconds_ = 0;  // spent in steps by this call
  int64_t step_tokens_ = 0;  // read in them
  double pace_ = 0;          // smoothed seconds a step
};

Run::Run(Task& task, const RunFolder& folder, const TrainConfig& config, const RunOptions& options,
         distributed::Communicator& ranks)
    : task_(task),
      folder_(folder),
      config_(config),
      options_(options),
      ranks_(ranks),
      progress_(options.progress && ranks.rank() == 0),
      schedule_(make_schedule(config)),
      adam_(make_optimizer(task, config, ranks)),
      gradients_(ranks, values_of(adam_.parameters())) {
  state_.threads = at::get_num_threads();
  state_.ranks = ranks.size();
  if (folder.resumes()) restore();
  begin_alike();
  for (const std::string& line : task.begin_lines()) progress_.message(line);
}

void Run::restore() {
  const std::string& path = folder_.path();
  const TrainingCheckpoint checkpoint = load_training(path);
  check_same_settings(path, checkpoint.settings, all_settings(task_, config_));
  data::read_json(training_file(path), "damaged training state",
                  [&] { task_.set_state(checkpoint.task, path); });
  adam_.set_state(checkpoint.adam, training_file(path));
  default_generator().set_state(checkpoint.generator);
  const int threads = state_.threads, ranks = state_.ranks;
  state_ = checkpoint.state;
  if (state_.ranks != ranks) {
    progress_.warning(
        fmt::format("the run used {} ranks so far and now uses {}: a step reads the batches of all of them",
                    state_.ranks, ranks));
  }
  state_.ranks = ranks;
  if (state_.threads != threads) {
    progress_.warning(
        fmt::format("the run used {} threads so far and now uses {}: results may differ by rounding from "
                    "those of a run that never stopped",
                    state_.threads, threads));
  }
  state_.threads = threads;
  seconds_before_ = state_.seconds;
  saved_step_ = state_.step;
  progress_.message(fmt::format("continuing the run in {} after step {}", path, state_.step));
}

// All ranks go on from the same step with the same weights, whatever made them.
void Run::begin_alike() {
  if (ranks_.size() == 1) return;
  at::Tensor steps = at::full({2}, state_.step, at::kLong);
  steps[1].neg_();
  ranks_.maximum(steps);
  check(steps.sum().item<int64_t>() == 0,
        "the ranks read different checkpoints in {}: all must see the same folder", folder_.path());
  const at::NoGradGuard no_grad;
  for (const NamedParameter& parameter : adam_.parameters()) {
    at::Tensor value = parameter.value.detach();
    const at::Tensor sent = value.contiguous();
    ranks_.broadcast(sent, 0);
    if (!sent.is_same(value)) value.copy_(sent);
  }
}

void Run::save() {
  const std::map<std::string, at::Tensor> moments = adam_.state();
  if (leads()) {
    save_training(folder_.path(), {state_, all_settings(task_, config_), task_.state(), moments,
                                   default_generator().get_state()});
    if (!keeps_best() || !state_.best) task_.save(folder_.path());
  }
  saved_step_ = state_.step;
}

// With train.patience the model folder is that of the best evaluation; the checkpoint goes on from the last
// step. All ranks found the same.
void Run::compare(double goodness) {
  if (!keeps_best()) return;
  if (!std::isnan(goodness) && (!state_.best || goodness > *state_.best)) {
    state_.best = goodness;
    state_.best_step = state_.step;
    state_.since_best = 0;
    if (leads()) task_.save(folder_.path());
  } else {
    ++state_.since_best;
  }
}

// Whether a signal came or the time is over, on whatever rank.
void Run::agree() {
  const bool stop = options_.stop != nullptr && options_.stop->load();
  const bool time = options_.time_limit > 0 && seconds_since(started_) >= options_.time_limit;
  const at::Tensor flags = at::tensor({int64_t{stop}, int64_t{time}}, at::kLong);
  ranks_.maximum(flags);
  stopping_ = flags[0].item<int64_t>() != 0;
  out_of_time_ = flags[1].item<int64_t>() != 0;
}

std::string Run::checkpoint_note() const {
  return fmt::format("the checkpoint of step {} in {} is kept", saved_step_, folder_.path());
}

void Run::evaluate() {
  progress_.clear();
  const std::optional<EvaluationReport> report = or_out_of_memory(
      [&]() -> std::optional<EvaluationReport> {
        try {
          return task_.evaluate();
        } catch (const Interrupted&) {
          interrupt();
        }
      },
      [&] { return fmt::format("in the evaluation after step {}", state_.step); },
      [&] { return fmt::format("{}; {}", task_.memory_advice(Work::evaluation), checkpoint_note()); });
  if (!report) return;
  state_.evaluated = state_.step;
  agree();  // it may have taken long
  if (leads()) log_->add(state_.step, *report);
  progress_.message(fmt::format("step {}: {}", state_.step, report->summary));
  compare(report->goodness);
}

Run::Group Run::next_group() {
  Group group;
  for (int64_t i = 0; i < config_.accumulate; ++i) {
    group.batches.push_back(task_.next());
    const Batch& batch = *group.batches.back();
    group.tokens += batch.tokens;
    group.targets += batch.targets;
    group.weight += batch.weight;
  }
  return group;
}

std::string Run::describe(const Group& group) {
  if (group.batches.empty()) return "while making a batch";
  const auto smaller = [](const auto& a, const auto& b) { return a->tokens < b->tokens; };
  const auto& largest = *std::ranges::max_element(group.batches, smaller);
  return "with " + largest->description();
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
      [&] { return fmt::format("in step {} {}", number, describe(group)); },
      [&] { return fmt::format("{}; {}", task_.memory_advice(Work::step), checkpoint_note()); });
  count(group, metrics, seconds_since(begin));
  report(metrics);
}

// Gradients of the mean over the whole group, then one step of the optimizer.
StepMetrics Run::optimize(const Group& group) {
  StepMetrics metrics;
  metrics.step = state_.step + 1;
  task_.before_step(state_.step);
  accumulate(group, metrics);
  metrics.gradient_norm = gradient_norm();
  check(std::isfinite(metrics.gradient_norm),
        "the gradient norm is {} in step {}: lower train.learning_rate ({}), lengthen train.warmup, or use "
        "train.precision = float32; {}",
        metrics.gradient_norm, metrics.step, config_.learning_rate, checkpoint_note());
  metrics.learning_rate = schedule_(metrics.step);
  adam_.step(metrics.learning_rate, clipping_scale(metrics.gradient_norm, config_.clip));
  task_.after_step();
  return metrics;
}

void Run::accumulate(const Group& group, StepMetrics& metrics) {
  const double weight = std::max(group.weight, 1e-9);
  adam_.zero_gradients();
  for (const auto& batch : group.batches) {
    // Gradients of the earlier ones stay here: only their sum travels.
    if (batch == group.batches.back() && task_.one_backward_pass()) gradients_.begin();
    const BatchSums sums = task_.backward(*batch, weight);
    metrics.loss += sums.loss;
    metrics.accuracy += sums.correct / weight;
  }
  gradients_.finish();
  const at::Tensor sums = at::tensor({metrics.loss, metrics.accuracy}, at::kDouble);
  ranks_.sum(sums);
  metrics.loss = sums[0].item<double>();
  metrics.accuracy = sums[1].item<double>();
  check(std::isfinite(metrics.loss),
        "the loss is {} in step {}: lower train.learning_rate ({}) or train.clip ({}), lengthen "
        "train.warmup, or use train.precision = float32; {}",
        metrics.loss, metrics.step, config_.learning_rate, config_.clip, checkpoint_note());
}

// That of rank 0: others may sum in another order, and would step a little differently.
double Run::gradient_norm() {
  const at::Tensor norm = at::scalar_tensor(global_norm(adam_.gradients()), at::kDouble);
  ranks_.broadcast(norm, 0);
  return norm.item<double>();
}

void Run::count(const Group& group, StepMetrics& metrics, double duration) {
  state_.step = metrics.step;
  state_.tokens += group.tokens;
  state_.targets += group.targets;
  state_.loss = metrics.loss;
  update_seconds();
  step_seconds_ += duration;
  step_tokens_ += group.tokens;
  pace_ = pace_ == 0 ? duration : 0.9 * pace_ + 0.1 * duration;
  metrics.tokens = state_.tokens;
  metrics.targets = state_.targets;
  metrics.seconds = state_.seconds;
  metrics.tokens_per_second = static_cast<double>(group.tokens) / duration;
}

void Run::report(const StepMetrics& metrics) {
  if (!leads()) return;
  log_->add(metrics);
  const ProgressState shown{.step = metrics.step,
                            .steps = config_.steps,
                            .elapsed = seconds_since(started_),
                            .time_limit = options_.time_limit,
                            .pace = pace_,
                            .loss = metrics.loss,
                            .accuracy = metrics.accuracy,
                            .tokens_per_second = metrics.tokens_per_second};
  if (progress_.draws()) {
    progress_.update(shown);
  } else if (metrics.step % config_.log_every == 0) {
    progress_.message(format_status(shown));
  }
}

void Run::interrupt() {
  if (state_.step != saved_step_) save();
  throw Interrupted(fmt::format("interrupted after step {}; the checkpoint is in {}: continue with --resume",
                                state_.step, folder_.path()));
}

RunResult Run::go() {
  // Step 0 is saved too: an unwritable folder is found out at once, and a resume works from the first second
  // on.
  if (!folder_.resumes()) save();
  if (leads()) log_.emplace(folder_.path(), state_.step);
  started_ = Clock::now();
  first_step_ = state_.step;
  before_steps_ = ranks_.traffic();
  for (;;) {
    agree();
    if (!stopping_ && due(config_.evaluate_every, state_.evaluated)) evaluate();
    if (state_.step >= config_.steps || out_of_time_ || out_of_patience()) break;
    update_seconds();
    if (stopping_) interrupt();
    if (due(config_.checkpoint_every, saved_step_)) save();
    step();
  }
  return finish();
}

RunResult Run::finish() {
  if (state_.evaluated != state_.step) {
    if (state_.step != saved_step_) save();  // the evaluation may take long, and be killed
    evaluate();
  }
  update_seconds();
  save();
  if (keeps_best() && state_.best) {
    progress_.message(
        fmt::format("{}the model in {} is that of step {}, the best of the evaluations",
                    out_of_patience()
                        ? fmt::format("ended after {} evaluations without a better one; ", state_.since_best)
                        : "",
                    folder_.path(), state_.best_step));
  }
  const double rate = step_seconds_ > 0 ? static_cast<double>(step_tokens_) / step_seconds_ : 0;
  if (leads()) log_->finish(state_, rate, task_.totals());
  const std::string traffic = traffic_note();
  if (!traffic.empty()) progress_.message(traffic);
  for (const std::string& line : task_.end_lines()) progress_.message(line);
  progress_.message(fmt::format("peak memory {:.0f} MiB", peak_memory_mib()));
  return {state_.step, state_.tokens, state_.targets, state_.loss, state_.seconds, rate};
}

std::string Run::traffic_note() const {
  const int64_t steps = state_.step - first_step_;
  if (ranks_.size() == 1 || steps == 0) return "";
  const distributed::Traffic now = ranks_.traffic();
  return fmt::format(
      "{} ranks: each handed {:.3f} MB in {:.0f} exchanges a step to the others", ranks_.size(),
      static_cast<double>(now.bytes - before_steps_.bytes) / 1e6 / static_cast<double>(steps),
      static_cast<double>(now.exchanges - before_steps_.exchanges) / static_cast<double>(steps));
}

}  // namespace

RunResult run(Task& task, const RunFolder& folder, const TrainConfig& config, const RunOptions& options) {
  validate(config);
  check<UsageError>(config.patience == 0 || task.evaluates(),
                    "train.patience = {} needs held-out sequences: give --valid files or raise data.holdout",
                    config.patience);
  check<UsageError>(options.time_limit >= 0, "the time limit must be 0 (none) or more seconds, but is {}",
                    options.time_limit);
  if (options.ranks != nullptr) return Run(task, folder, config, options, *options.ranks).go();
  const auto alone = distributed::single_rank();
  return Run(task, folder, config, options, *alone).go();
}

}  // namespace performer::train
