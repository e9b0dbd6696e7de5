// SPDX-License-Identifier: Apache-2.0
// Which parameters of a model a run trains, and how: frozen layers, rates that fall with the depth, and
// low-rank adapters.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "performer/models/language_model.h"
#include "performer/train/adam.h"
#include "performer/train/config.h"

namespace performer::train {

// What train.freeze names: "embeddings,0-3,output". Blocks count from 0; `all` is everything but a new head.
struct FrozenParts {
  bool embeddings = false, output = false;  // output: the final norm and the output layer
  std::set<int64_t> blocks;

  bool covers(const std::string& parameter) const;
};
// Throws UsageError for an unknown word and a block that the model does not have.
FrozenParts parse_frozen(const std::string& text, int64_t blocks);

// decay^d, d the number of layers between a parameter and the output: 0 for the final norm and what follows
// it, 1 for the last block, one more for each block below it, and again one more for the embeddings (Clark et
// al. 2020, ELECTRA, arXiv 2003.10555, table 6).
double rate_of_layer(const std::string& parameter, int64_t blocks, double decay);

// A low-rank adapter (Hu et al. 2021, LoRA, arXiv 2106.09685): weight = base + (alpha / rank) up down, of
// which up and down are trained. The model always holds the merged weight, so that everything that reads a
// model reads this one. The gradient of the merged weight, which any backward pass gives, is that of the
// product:
//   d up = s dW down^T,  d down = s up^T dW.
// Dropout leaves out input features, columns of down, drawn anew for each batch (Lin et al. 2024, arXiv
// 2404.09610), where LoRA's own draws anew for each token, which no merged weight can do.
struct LowRankAdapter {
  std::string name;     // of the weight in the model
  at::Tensor weight;    // [out, in], the model's parameter
  at::Tensor base;      // [out, in], as it was at the beginning
  at::Tensor up, down;  // [out, rank], zero at first, and [rank, in], from a Kaiming-uniform draw
  at::Tensor kept;      // [in], of the batch at hand: 0 or 1 / (1 - dropout); undefined: all are kept
};

class TrainedParameters {
 public:
  // Draws adapters from LibTorch's generator where train.lora_rank is above 0; then nothing else of the model
  // is trained. What is not trained gets no gradients. With `whole_model` false what only predicts tokens is
  // not trained. Throws UsageError for what train.freeze and train.lora_targets say that the model does not
  // have, and when nothing is left to train.
  TrainedParameters(LanguageModel& model, const TrainConfig& config, bool whole_model = true);

  const std::vector<NamedParameter>& parameters() const { return parameters_; }
  int64_t count() const;  // of numbers that are trained
  const std::vector<LowRankAdapter>& adapters() const { return adapters_; }

  void begin_backward();  // before the forward pass of a batch
  void end_backward();    // when the gradients of that batch have come
  void after_step();      // merges; the model holds no dropout from here on

  // Beside the model's own state: "lora.NAME.base", ".up" and ".down". set_state() takes its tensors out of
  // the map; throws InputError naming `source` for one that is missing or of another shape.
  void add_state(std::map<std::string, at::Tensor>& state) const;
  void set_state(std::map<std::string, at::Tensor>& state, const std::string& source);

 private:
  void add_adapters(LanguageModel& model, const FrozenParts& frozen);
  void merge();

  TrainConfig config_;
  double scale_ = 1;  // alpha / rank
  std::vector<NamedParameter> parameters_;
  std::vector<LowRankAdapter> adapters_;
};

}  // namespace performer::train
