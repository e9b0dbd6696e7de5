// SPDX-License-Identifier: Apache-2.0
// What the training loop (trainer.h) trains. The loop knows neither models nor data: a task owns both, says
// what the loss of a batch is, and saves and restores its part of a checkpoint.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "performer/train/adam.h"

namespace performer::train {

// Values of configuration keys in text form, by "section.key".
using Settings = std::map<std::string, std::string>;

// What the loop must know of a batch. A task derives a class from it that holds the batch itself.
struct Batch {
  virtual ~Batch() = default;
  virtual std::string description() const { return "a batch"; }  // for messages: "a batch of 2 x 512 tokens"

  int64_t tokens = 0;   // that the model reads, without padding
  int64_t targets = 0;  // predictions that the loss is made of
  double weight = 0;    // of these targets: a step's loss is the sum of all losses over the sum of weights
};

// What a batch contributes to the metrics of its step.
struct BatchSums {
  double loss = 0;     // losses of the targets times their weights, over the divisor of the gradients
  double correct = 0;  // weight of the targets that were predicted; NaN: the loss is no cross entropy, so
                       // that there is neither accuracy nor perplexity
};

// What an evaluation found, as it is recorded and told.
struct EvaluationReport {
  nlohmann::ordered_json record;                        // metrics.jsonl: under "valid"
  std::vector<std::pair<std::string, double>> scalars;  // TensorBoard: behind "valid/"
  std::string summary;                                  // a part of a sentence, after "step 500: "
  // What train.patience watches: the larger, the better; NaN is no result.
  double goodness = std::numeric_limits<double>::quiet_NaN();
};

// A task's part of a checkpoint. Tensors may share memory with the task.
struct TaskState {
  nlohmann::json values = nlohmann::json::object();
  std::map<std::string, at::Tensor> tensors;
};

// At which work memory can run out.
enum class Work { preparation, step, evaluation };

// On several ranks each has a task of its own, and calls it alike: next() gives the rank's part of the batch
// with the numbers (tokens, targets, weight) of all of it, backward() the sums and gradients of the part.
//
// One step of the optimizer is: before_step(), then next() and backward() for each of train.accumulate
// batches (all of next() first), clipping and the optimizer's update of parameters(), after_step().
class Task {
 public:
  virtual ~Task() = default;

  // The same tensors, in the same order, whenever it is called.
  virtual std::vector<NamedParameter> parameters() = 0;

  // The next training batch; they never end. Tasks that make batches ahead of time do so here.
  virtual std::unique_ptr<Batch> next() = 0;
  // Adds to the parameters' gradients those of the batch's summed losses over `divisor`, the weight of all
  // batches of the step. `batch` is one that next() gave.
  virtual BatchSums backward(const Batch& batch, double divisor) = 0;
  // Whether backward() gives each parameter its gradient at once, so that gradients can go to other ranks
  // while it runs.
  virtual bool one_backward_pass() const { return true; }
  virtual void before_step(int64_t /*steps made so far*/) {}
  virtual void after_step() {}

  // Whether evaluate() has something to evaluate on.
  virtual bool evaluates() const { return false; }
  // Nothing where there is nothing to evaluate on.
  virtual std::optional<EvaluationReport> evaluate() { return std::nullopt; }

  // What must be as it was when a run is resumed; the section [train] is added by the loop.
  virtual Settings settings() const { return {}; }
  // Everything that the steps to come depend on, between two steps: parameters and buffers, the place in the
  // data behind the last batch that next() gave. The optimizer, LibTorch's generator and the number of steps
  // belong to the loop.
  virtual TaskState state() const = 0;
  // Goes on from a state. `folder` is that of the run, for messages. Throws UsageError when the task's data
  // are not those of the state, InputError when the state is damaged.
  virtual void set_state(const TaskState& state, const std::string& folder) = 0;
  // What a checkpoint leaves in the output folder for users, such as a model folder.
  virtual void save(const std::string& /*folder*/) const {}

  // What to change when memory runs out: "lower data.batch_tokens (8192)".
  virtual std::string memory_advice(Work /*work*/) const { return "use smaller batches or a smaller model"; }
  // Lines for the user: before the first step of a call and after the last one.
  virtual std::vector<std::string> begin_lines() const { return {}; }
  virtual std::vector<std::string> end_lines() const { return {}; }
  // Keys and values that join the last record of metrics.jsonl.
  virtual nlohmann::ordered_json totals() const { return nlohmann::ordered_json::object(); }
};

}  // namespace performer::train
