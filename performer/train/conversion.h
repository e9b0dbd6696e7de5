// SPDX-License-Identifier: Apache-2.0
// What is done with a converted model whose attention was replaced, and the record of what each step was
// worth.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "performer/models/folder.h"
#include "performer/train/config.h"
#include "performer/train/trainer.h"

namespace performer::train {

struct ConversionRequest {
  std::string source = "the source";  // what messages call it
  // Whether its language-model head is trained. Without one, what is predicted of tokens means nothing:
  // stages are measured by representations alone, and there is no fine-tuning.
  bool trained_head = true;
  std::vector<std::string> files;  // sequences; data.holdout of them are measured on and never trained on
  std::string output;              // model folder, made here
  int64_t transfer_steps = 200;
  double threshold = 0;  // relative error of a head's output above which it stays exact; 0: all are replaced
  int64_t finetune_steps = 0;
  TrainConfig train = {};  // of the fine-tuning
  RunOptions options = {};
  std::function<void(const std::string&)> tell = {};  // a line for the user now and then
};

// Swapped, transferred, with exact heads, fine-tuned: each is evaluated on the held-out sequences as far as
// it is asked for, by what it predicts and by how near its representations of sequences are to the original's
// (representations.h). `original` has exact attention, `swapped` the same weights and another kind; the
// result is written to `request.output`, with conversion.json beside it (docs/conversion.md), which is
// returned. Throws UsageError for a request that cannot be, InputError for files that do not fit, and what
// training throws.
nlohmann::ordered_json improve_conversion(const ModelFolder& original, const ModelFolder& swapped,
                                          const ConversionRequest& request);

}  // namespace performer::train
