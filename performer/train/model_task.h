// SPDX-License-Identifier: Apache-2.0
// What all tasks have in common that train a language model on a corpus: its making or the model that it
// starts from, which of its parameters are trained, batches ahead of time, checkpoints, and the model folder.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "performer/data/batch_queue.h"
#include "performer/data/corpus.h"
#include "performer/data/share.h"
#include "performer/distributed/communicator.h"
#include "performer/models/folder.h"
#include "performer/nn/state_exchange.h"
#include "performer/train/language_model_config.h"
#include "performer/train/task.h"
#include "performer/train/trained_parameters.h"

namespace performer::train {

// A batch is one of data::BatchStream, made ahead of time (data/batch_queue.h). Projections are redrawn every
// attention.redraw_every steps. A checkpoint leaves a model folder.
class ModelTask : public Task {
 public:
  // The model starts with the weights of this one, of the same configuration and vocabulary, before the first
  // step. Throws InputError naming the first tensor that differs.
  void start_from(const LanguageModel& model);

  // From now on an evaluation throws Interrupted soon after `stop` is set, and logs how far it is where it
  // takes long. `stop` may be null.
  void watch_evaluations(const std::atomic<bool>* stop) { stop_ = stop; }

  // From the first step on batches are the parts of this rank; `ranks` outlives the task. Groups of
  // train.sequence_parallel ranks share the sequences of a part. Throws UsageError for a number of ranks that
  // does not fit.
  virtual void divide(distributed::Communicator& ranks);

  const ModelFolder& folder() const { return folder_; }  // what save() writes

  std::vector<NamedParameter> parameters() override;
  std::unique_ptr<Batch> next() override;
  bool one_backward_pass() const override;
  void before_step(int64_t steps) override;
  void after_step() override;
  bool evaluates() const override { return valid_ != nullptr; }
  Settings settings() const override;
  TaskState state() const override;
  void set_state(const TaskState& state, const std::string& folder) override;
  void save(const std::string& folder) const override;
  std::string memory_advice(Work work) const override;
  std::vector<std::string> begin_lines() const override;
  std::vector<std::string> end_lines() const override;
  nlohmann::ordered_json totals() const override;

 protected:
  struct TokenBatch final : Batch {
    TokenBatch(const data::Batch& whole, const data::Share& share);
    std::string description() const override;
    data::SharedBatch part;
  };

  // Makes the model after seeding LibTorch's default generator with train.seed, and counts the baselines of
  // the training corpus. `objective` is that of data::BatchStream. Corpora and weights, one a training
  // sequence or none, outlive the task. Throws UsageError for a configuration that validate() refuses and for
  // sequences beyond learned positions, InputError when the corpora are of different vocabularies, Error when
  // memory runs out.
  ModelTask(const LanguageModelConfig& config, const data::Corpus& train, const data::Corpus* valid,
            const std::string& objective, std::span<const float> weights);

  // The next batch of all ranks, and this rank's part of one.
  data::Batch next_whole();
  data::SharedBatch part_of(const data::Batch& whole) const { return data::share_of(whole, share_); }
  // The part of this rank and those that share its sequences.
  data::SharedBatch part_of_group(const data::Batch& whole) const {
    return data::share_of(whole, {share_.part, share_.parts, 0, 1});
  }
  // Says which part statistics that the kinds measure in the next pass are of.
  void count_sequences(const data::Batch& part);
  // The tokens of this rank's part, with what other ranks hold of its sequences.
  SequenceBatch tensors_of(const data::SharedBatch& part) const;
  // The ranks that share the sequences of this rank's part, this one included; null: it has them alone.
  const std::shared_ptr<distributed::Communicator>& sequence_ranks() const { return group_; }
  // Made when first asked for: start_from() comes before.
  TrainedParameters& trained();
  // Names and values that a checkpoint compares with those of a resumed run: of the data.
  virtual nlohmann::json fingerprints() const;
  // What the task has beside the model, by names of its own; take_state() removes its tensors from the map.
  virtual void add_state(std::map<std::string, at::Tensor>& /*state*/) const {}
  virtual void take_state(std::map<std::string, at::Tensor>& /*state*/, const std::string& /*source*/) {}

  // For evaluations: logs how far they are where they take long.
  std::function<void(int64_t done, int64_t total)> evaluation_progress() const;

  LanguageModelConfig config_;
  const data::Corpus& train_;
  const data::Corpus* valid_;
  ModelFolder folder_;
  const std::atomic<bool>* stop_ = nullptr;
  distributed::Communicator* ranks_ = nullptr;  // null: this process alone

 private:
  void check_corpora() const;
  void check_attended_length() const;
  void share_statistics();
  void check_same_data(const nlohmann::json& fingerprints, const std::string& folder) const;

  std::string objective_;
  std::span<const float> weights_;
  data::Share share_;
  int64_t sequences_ = 0;                             // of the last batch, on this rank
  std::shared_ptr<distributed::Communicator> group_;  // of the ranks that share sequences
  std::shared_ptr<nn::StateExchange> exchange_;       // over it; null where sequences are whole
  std::optional<TrainedParameters> trained_;
  data::Cursor cursor_;                    // behind the last batch of next()
  data::CropCounts crops_;                 // of all batches so far
  data::CropCounts crops_before_;          // of those before this call
  std::optional<data::BatchQueue> queue_;  // begins at the cursor with the first batch
};

}  // namespace performer::train
