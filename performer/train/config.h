// SPDX-License-Identifier: Apache-2.0
// The section [train] of a configuration: the optimizer, its schedule, and how a run goes.
#pragma once

#include <cstdint>
#include <string>

#include "performer/base/fields.h"
#include "performer/train/schedule.h"

namespace performer {

struct TrainConfig {
  int64_t steps = 1000;
  double learning_rate = 1e-3;
  std::string schedule = "constant";
  int64_t warmup = 1000;
  double decay_factor = 0.5;
  int64_t steps_per_decay = 20000, steps_per_cycle = 100000;
  double adam_beta1 = 0.9, adam_beta2 = 0.98, adam_epsilon = 1e-9;
  double weight_decay = 0.1;
  std::string decay = "matrices";
  double clip = 0.5;
  int64_t accumulate = 1;
  std::string precision = "float32";
  bool checkpoint_activations = false;
  int64_t slim_chunk = 0;
  int64_t sequence_parallel = 1;
  bool shard_optimizer = false;
  int64_t log_every = 10;
  int64_t evaluate_every = 500;
  int64_t checkpoint_every = 500;
  int64_t seed = 0;
  std::string from;
  std::string freeze;
  double layer_decay = 1;
  int64_t lora_rank = 0;
  double lora_alpha = 16, lora_dropout = 0;
  std::string lora_targets = "query,value";
  int64_t patience = 0;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("steps", self.steps, "optimizer steps");
    visit("learning_rate", self.learning_rate, "step size, multiplied by the schedule");
    visit("schedule", self.schedule,
          "factors joined by '*', as in protein_lm: constant, linear_warmup, rsqrt_decay, "
          "rsqrt_normalized_decay, decay_every, cosine_decay");
    visit("warmup", self.warmup, "steps of linear_warmup, knee of both rsqrt factors, start of cosine_decay");
    visit("decay_factor", self.decay_factor, "what decay_every multiplies by");
    visit("steps_per_decay", self.steps_per_decay, "steps between two decays of decay_every");
    visit("steps_per_cycle", self.steps_per_cycle, "steps in which cosine_decay falls to 0 and starts again");
    visit("adam_beta1", self.adam_beta1, "decay of Adam's first moment");
    visit("adam_beta2", self.adam_beta2, "decay of Adam's second moment");
    visit("adam_epsilon", self.adam_epsilon, "added outside Adam's square root");
    visit("weight_decay", self.weight_decay, "decoupled weight decay");
    visit("decay", self.decay, "what decays: matrices (norms and biases exempt) or all (as the paper)",
          Choices{"matrices", "all"});
    visit("clip", self.clip, "largest global gradient norm; 0: no clipping");
    visit("accumulate", self.accumulate, "batches whose gradients make one step");
    visit("precision", self.precision,
          "float32, or bfloat16 (autocast; sums, norms and the optimizer stay in float32)",
          Choices{"float32", "bfloat16"});
    visit("checkpoint_activations", self.checkpoint_activations,
          "recompute each block in the backward pass: less memory, a third more time");
    visit(
        "slim_chunk", self.slim_chunk,
        "causal favor-* models: tokens of a row (packed: of the batch) whose activations are kept at a time, "
        "the rest recomputed from the attention's states: same gradients, memory in proportion to this; "
        "0: off");
    visit("sequence_parallel", self.sequence_parallel,
          "several ranks: that many of them share each sequence, a slice of its tokens each, or, with "
          "slim_chunk, its chunks in turn; favor-* models alone");
    visit("shard_optimizer", self.shard_optimizer,
          "several ranks: each keeps its part of the optimizer's state (ZeRO, stage 1) and not all of it");
    visit("log_every", self.log_every, "steps between progress lines; every step goes to metrics.jsonl");
    visit("evaluate_every", self.evaluate_every,
          "steps between evaluations on the held-out sequences; 0: only at the end");
    visit("checkpoint_every", self.checkpoint_every, "steps between checkpoints; 0: only at the end");
    visit("seed", self.seed, "names initial weights and dropout");
    visit("from", self.from, "model folder whose weights the run starts from, as --from; empty: none");
    visit(
        "freeze", self.freeze,
        "what stays as it is: embeddings, blocks such as 0 or 0-3, output (final norm and output layer), all "
        "(everything but a new head), separated by commas");
    visit("layer_decay", self.layer_decay,
          "factor on the learning rate for each layer further from the output; 1: the same for all");
    visit("lora_rank", self.lora_rank,
          "rank of low-rank adapters (LoRA), which then are all that is trained beside a new head; 0: none");
    visit("lora_alpha", self.lora_alpha, "adapters are scaled by lora_alpha / lora_rank");
    visit("lora_dropout", self.lora_dropout,
          "share of the input features that adapters do not read in a batch");
    visit("lora_targets", self.lora_targets,
          "what gets adapters: query, key, value, out, up, down, gate, separated by commas");
    visit("patience", self.patience,
          "evaluations without a new best result after which the run ends; the best model is kept; 0: off");
  }
};
// Throws UsageError naming the key, what it may be and what it is.
void validate(const TrainConfig& config);

namespace train {

// The schedule that [train] describes, with train.learning_rate as the factor `constant`.
Schedule make_schedule(const TrainConfig& config);

}  // namespace train
}  // namespace performer
