// SPDX-License-Identifier: Apache-2.0
// The task that trains a language model on a corpus: the cross entropy of the next or of hidden tokens.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
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

namespace performer::train {

// A batch is one of data::BatchStream, made ahead of time (data/batch_queue.h); its loss is that of loss.h,
// in the memory of a chunk when train.slim_chunk is on (slim.h). Projections are redrawn every
// attention.redraw_every steps. A checkpoint leaves a model folder.
class LanguageModelTask final : public Task {
 public:
  // Makes the model after seeding LibTorch's default generator with train.seed, and counts the baselines of
  // the training corpus. The corpora outlive the task; without `valid` nothing is evaluated. Throws
  // UsageError for a configuration that validate() refuses and for sequences beyond learned positions,
  // InputError when the corpora are of different vocabularies, Error when memory runs out.
  LanguageModelTask(const LanguageModelConfig& config, const data::Corpus& train,
                    const data::Corpus* valid = nullptr);

  // Begins with the weights of a model of the same configuration and vocabulary, before the first step.
  // Throws InputError naming the first tensor that differs.
  void start_from(const LanguageModel& model);

  // From now on an evaluation throws Interrupted soon after `stop` is set, and logs how far it is where it
  // takes long. `stop` may be null.
  void watch_evaluations(const std::atomic<bool>* stop) { stop_ = stop; }

  // From the first step on batches are the parts of this rank; `ranks` outlives the task. Groups of
  // train.sequence_parallel ranks share the sequences of a part.
  void divide(distributed::Communicator& ranks);

  const ModelFolder& folder() const { return folder_; }  // what save() writes

  std::vector<NamedParameter> parameters() override;
  std::unique_ptr<Batch> next() override;
  BatchSums backward(const Batch& batch, double divisor) override;
  bool one_backward_pass() const override { return config_.train.slim_chunk == 0; }
  void before_step(int64_t steps) override;
  void after_step() override;
  std::optional<EvaluationReport> evaluate() override;
  Settings settings() const override;
  TaskState state() const override;
  void set_state(const TaskState& state, const std::string& folder) override;
  void save(const std::string& folder) const override;
  std::string memory_advice(Work work) const override;
  std::vector<std::string> begin_lines() const override;
  std::vector<std::string> end_lines() const override;
  nlohmann::ordered_json totals() const override;

 private:
  BatchSums backward(const data::SharedBatch& part, double divisor);
  SequenceBatch tensors_of(const data::SharedBatch& part) const;
  void check_corpora() const;
  void check_attended_length() const;
  void share_statistics();
  void check_same_data(const nlohmann::json& fingerprints, const std::string& folder) const;
  nlohmann::json fingerprints() const;

  LanguageModelConfig config_;
  const data::Corpus& train_;
  const data::Corpus* valid_;
  ModelFolder folder_;
  const std::atomic<bool>* stop_ = nullptr;
  distributed::Communicator* ranks_ = nullptr;  // null: this process alone
  data::Share share_;
  std::shared_ptr<distributed::Communicator> group_;  // of the ranks that share sequences
  std::shared_ptr<nn::StateExchange> exchange_;       // over it; null where sequences are whole
  int64_t sequences_ = 0;                             // of the last batch, on this rank
  data::Cursor cursor_;                               // behind the last batch of next()
  data::CropCounts crops_;                            // of all batches so far
  data::CropCounts crops_before_;                     // of those before this call
  std::optional<data::BatchQueue> queue_;             // begins at the cursor with the first batch
};

}  // namespace performer::train
