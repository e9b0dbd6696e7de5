// SPDX-License-Identifier: Apache-2.0
// What a run trains on and is evaluated on. The first rank of each machine reads the files; the others map
// what it wrote, so that a machine has one copy of the data.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "performer/data/labels.h"
#include "performer/data/store.h"
#include "performer/distributed/machine.h"
#include "performer/train/language_model_run.h"
#include "performer/train/task_kinds.h"

namespace performer::train {

class RunData {
 public:
  // Reads the tables of labels and weights on the first rank of each machine. `request` and `machine` outlive
  // this. Throws what LabelTable throws.
  RunData(const LanguageModelRequest& request, distributed::Machine& machine);
  RunData(const RunData&) = delete;
  RunData& operator=(const RunData&) = delete;

  // All ranks together, once: reads the training sequences and what is evaluated on; `directory` holds them.
  // With `vocabulary` (of the model that the run starts from) that one is used. Throws what SequenceStore and
  // check_inputs() throw on the ranks that read, and on the others what Communicator throws then.
  void read(const std::optional<data::Vocabulary>& vocabulary, const std::string& directory);

  TaskParts parts() const { return {*train_.store, valid_.store.get(), train_.labels, &valid_.labels}; }

 private:
  class Tables;
  struct Part {
    std::unique_ptr<data::SequenceStore> store;  // null: nothing to evaluate on
    data::LabelledSequences labels{nullptr, nullptr};
  };

  // What the first rank of this machine reads, on all of its ranks.
  void share(Part& part, const std::function<void(Part& part)>& read);
  void read_train(Part& part, const std::optional<data::Vocabulary>& vocabulary,
                  const std::string& directory);
  void read_held_out(Part& part, const std::string& directory);

  const LanguageModelRequest& request_;
  distributed::Machine& machine_;
  std::shared_ptr<const Tables> tables_;  // null: another rank reads
  Part train_, valid_;
};

}  // namespace performer::train
