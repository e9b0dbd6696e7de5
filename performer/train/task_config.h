// SPDX-License-Identifier: Apache-2.0
// The section [task] of a configuration: what a run trains a model for.
#pragma once

#include <string>

#include "performer/base/fields.h"
#include "performer/data/label_form.h"

namespace performer {

struct TaskConfig {
  std::string kind = "language-model";
  std::string labels, weights;
  std::string id_column, label_column;
  std::string pool = "mean";

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("kind", self.kind,
          "what the model learns: to predict tokens, or from task.labels a class or number for each sequence "
          "or for each of its tokens",
          Choices{"language-model", "sequence-classification", "sequence-regression", "token-classification",
                  "token-regression"});
    visit("labels", self.labels,
          "table of ids and labels (CSV or TSV, docs/finetuning.md); a third column may have weights");
    visit("weights", self.weights,
          "table of ids and weights, by which the losses of sequences are multiplied");
    visit("id_column", self.id_column, "column of ids in task.labels; empty: id, name ..., or the first");
    visit("label_column", self.label_column,
          "column of labels in task.labels; empty: label, class, value ..., or the second");
    visit("pool", self.pool,
          "what the label of a sequence is read from: mean over its tokens, or the first marker",
          Choices{"mean", "first"});
  }

  bool has_head() const { return kind != "language-model"; }
  data::LabelForm form() const { return {kind.ends_with("classification"), kind.starts_with("token")}; }
};
// Throws UsageError for labels without a kind that reads them, and a kind without labels.
void validate(const TaskConfig& config);

}  // namespace performer
