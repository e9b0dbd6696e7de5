// SPDX-License-Identifier: Apache-2.0
// The task that trains a model and a head beside it (models/prediction_head.h) to predict labels: classes or
// numbers, of sequences or of their tokens.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "performer/data/labels.h"
#include "performer/train/model_task.h"

namespace performer::train {

// The loss is the cross entropy of classes, or the squared error of numbers that the training labels were
// scaled to mean 0 and variance 1; weighted by sequence. A model reads BOS x1 .. xn, and EOS where it is not
// causal; nothing is hidden. What the model predicts of tokens is not trained.
class PredictionTask final : public ModelTask {
 public:
  // `train_labels` belong to `train`, `valid_labels` to `valid`; all outlive the task. Throws what ModelTask
  // throws; UsageError naming data.length where a sequence is longer, since its label is that of the whole
  // (data.crop = start or random allow it), InputError when no training sequence has a label.
  PredictionTask(const LanguageModelConfig& config, const data::Corpus& train, const data::Corpus* valid,
                 const data::LabelledSequences& train_labels, const data::LabelledSequences* valid_labels,
                 const std::vector<std::string>& classes);

  std::vector<NamedParameter> parameters() override;
  std::unique_ptr<Batch> next() override;
  BatchSums backward(const Batch& batch, double divisor) override;
  std::optional<EvaluationReport> evaluate() override;
  std::vector<std::string> begin_lines() const override;

 private:
  // What is asked of a batch. `places` are rows of the final-norm output, all tokens of the batch in a row.
  // Of sequences pooled by their mean, several of them belong to one label.
  struct Asked {
    std::vector<int64_t> places;
    std::vector<int64_t> labels_of_places;  // sequences: which label a place belongs to
    std::vector<int64_t> counts;            // sequences: the places of each label, on all ranks that share it
    std::vector<float> values, weights;     // one a label
  };
  struct LabelledBatch;

  nlohmann::json fingerprints() const override;
  void add_state(std::map<std::string, at::Tensor>& state) const override;
  void take_state(std::map<std::string, at::Tensor>& state, const std::string& source) override;

  bool causal() const { return config_.model.objective == "causal"; }
  bool per_token() const { return folder_.head->config().per_token(); }
  void check_lengths() const;
  HeadConfig make_head(const std::vector<std::string>& classes) const;
  // Outputs of the head, one row for each label that is asked for. `group` shares the sequences; null:
  // nobody.
  at::Tensor outputs(const at::Tensor& hidden, const Asked& asked,
                     const std::shared_ptr<distributed::Communicator>& group = nullptr) const;
  Asked ask(const data::Batch& content, const data::LabelledSequences& labels,
            const data::Corpus& corpus) const;
  // Of what is asked of a group's part, what this rank's slice of it answers. Labels of sequences stay in
  // place, as all ranks of the group pool them together; their weights are 0 but on the rank that has the
  // first token.
  Asked of_slice(const Asked& all, const data::SharedBatch& slice) const;
  // Predictions [N, outputs] of the batches of a round, of which each rank computes one.
  struct EvaluatedBatch;
  std::vector<at::Tensor> predict(const std::vector<EvaluatedBatch>& round, distributed::Communicator& ranks);

  const data::LabelledSequences& train_labels_;
  const data::LabelledSequences* valid_labels_;
};

}  // namespace performer::train
