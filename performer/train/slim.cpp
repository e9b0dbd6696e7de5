// SPDX-License-Identifier: Apache-2.0
#include "performer/train/slim.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "performer/base/error.h"
#include "performer/nn/attention/kind.h"
#include "performer/train/autocast.h"
#include "performer/train/loss.h"

namespace performer::train {
namespace {

using States = std::vector<ops::State>;  // one a layer; none where no sequence goes on

// Tokens begin .. end - 1 of every row.
struct Chunk {
  int64_t begin = 0, end = 0;
  bool continues =
      false;         // sequences go on from the chunk before: of all rows, or packed of the first segment
  int64_t last = 0;  // begin of what the next chunk goes on from: of its last segment when packed
};

// Whether the state of the tokens before `begin` matters there.
bool crosses(const SequenceBatch& batch, int64_t begin) {
  if (begin == 0) return false;
  return !batch.cu_seqlens || !batch.cu_seqlens->eq(begin).any().item<bool>();
}

int64_t last_segment(const SequenceBatch& batch, int64_t begin, int64_t end) {
  if (!batch.cu_seqlens) return begin;
  const int64_t* bounds = batch.cu_seqlens->const_data_ptr<int64_t>();
  const int64_t before_end = *(std::lower_bound(bounds, bounds + batch.cu_seqlens->size(0), end) - 1);
  return std::max(begin, before_end);
}

std::vector<Chunk> chunks_of(const SequenceBatch& batch, int64_t size) {
  std::vector<Chunk> chunks;
  const int64_t tokens = batch.tokens.size(1);
  for (int64_t begin = 0; begin < tokens; begin += std::min(size, tokens - begin)) {
    const int64_t end = begin + std::min(size, tokens - begin);
    chunks.push_back({begin, end, crosses(batch, begin), last_segment(batch, begin, end)});
  }
  return chunks;
}

// Tokens begin .. end - 1 of every row as a batch. Segments are clipped, and empty ones vanish.
SequenceBatch cut(const SequenceBatch& batch, int64_t begin, int64_t end) {
  const auto slice = [&](const at::Tensor& tensor) { return tensor.narrow(1, begin, end - begin); };
  SequenceBatch part;
  part.tokens = slice(batch.tokens);
  part.positions = slice(batch.positions);
  if (batch.key_mask) part.key_mask = slice(*batch.key_mask);
  if (batch.cu_seqlens) {
    std::vector<int64_t> bounds = {0};
    const int64_t* whole = batch.cu_seqlens->const_data_ptr<int64_t>();
    for (int64_t i = 0; i < batch.cu_seqlens->size(0); ++i) {
      const int64_t bound = whole[i] - begin;
      if (bound > bounds.back() && bound < end - begin) bounds.push_back(bound);
    }
    bounds.push_back(end - begin);
    part.cu_seqlens = at::tensor(bounds, at::kLong);
  }
  return part;
}

// The same values as the start of a graph of its own.
States leaves(const States& states) {
  States started;
  for (const ops::State& state : states) {
    started.push_back({state.kv.detach().requires_grad_(), state.key_sum.detach().requires_grad_(),
                       state.log_scale.detach()});
  }
  return started;
}

class SlimPass {
 public:
  SlimPass(LanguageModel& model, const SequenceBatch& batch, const at::Tensor& targets,
           const at::Tensor& weights, const SlimOptions& options)
      : model_(model),
        batch_(batch),
        targets_(targets),
        weights_(weights),
        options_(options),
        chunks_(chunks_of(batch, options.chunk)),
        before_(chunks_.size()),
        generator_(at::globalContext().defaultGenerator(at::kCPU)) {
    const std::lock_guard lock(generator_.mutex());
    generator_start_ = generator_.get_state();
  }

  BatchSums run() {
    States gradient;  // of the state that the chunk at hand leaves
    for (size_t i = chunks_.size(); i-- > 0;) {
      if (chunks_[i].continues && before_[i].empty()) find_states(i);
      gradient = backward(chunks_[i], std::exchange(before_[i], {}), gradient);
    }
    return sums_;
  }

 private:
  // Every pass draws the numbers that one over the whole batch would: a mask is named by such a number and
  // the element's place in the batch.
  at::Tensor forward(int64_t begin, int64_t end, const States& initial, States* final) {
    {
      const std::lock_guard lock(generator_.mutex());
      generator_.set_state(generator_start_);
    }
    // A scope for each pass: casts of weights that one without gradients caches must not be met by the next.
    const AutocastScope autocast(options_.bfloat16);
    // Of the whole batch, which on several ranks is more than this one's part.
    const int64_t length = batch_.window.length > 0 ? batch_.window.length : batch_.tokens.size(1);
    return model_->forward_chunk(cut(batch_, begin, end), {batch_.window.start + begin, length}, initial,
                                 final);
  }

  // The states before chunk i and before all others that its rows, or the segment which goes on into it, run
  // through. Nothing else is run, and states of one segment at a time are kept.
  void find_states(size_t i) {
    const at::NoGradGuard no_grad;
    size_t first = i - 1;  // where they begin
    while (chunks_[first].continues && chunks_[first].last == chunks_[first].begin) --first;
    for (size_t k = first; k < i; ++k) {
      forward(chunks_[k].last, chunks_[k].end, before_[k], &before_[k + 1]);
    }
  }

  // Adds the chunk's gradients, its part in those of later chunks included; returns that of the state before.
  States backward(const Chunk& chunk, const States& before, const States& gradient) {
    const States start = leaves(before);
    States after;
    const at::Tensor logits = forward(chunk.begin, chunk.end, start, gradient.empty() ? nullptr : &after);
    const at::Tensor targets = targets_.narrow(1, chunk.begin, chunk.end - chunk.begin);
    const at::Tensor weights = weights_.narrow(1, chunk.begin, chunk.end - chunk.begin);
    const CrossEntropySums sums = cross_entropy_gradient(logits, targets, weights, options_.divisor);
    sums_.loss += sums.loss;
    sums_.correct += sums.correct;

    torch::autograd::variable_list outputs = {logits}, gradients = {logits.detach()};
    const auto add = [&](const at::Tensor& state, const at::Tensor& its_gradient) {
      if (!state.requires_grad() || !its_gradient.defined()) return;  // of frozen layers
      outputs.push_back(state);
      gradients.push_back(its_gradient);
    };
    for (size_t layer = 0; layer < gradient.size(); ++layer) {
      add(after[layer].kv, gradient[layer].kv);
      add(after[layer].key_sum, gradient[layer].key_sum);
    }
    torch::autograd::backward(outputs, gradients);
    States result;
    for (const ops::State& state : start) result.push_back({state.kv.grad(), state.key_sum.grad(), {}});
    return result;
  }

  LanguageModel& model_;
  const SequenceBatch& batch_;
  const at::Tensor &targets_, &weights_;
  const SlimOptions& options_;
  const std::vector<Chunk> chunks_;
  std::vector<States> before_;  // each chunk; none where it is not needed or not known yet
  at::Generator generator_;
  at::Tensor generator_start_;
  BatchSums sums_;
};

}  // namespace

BatchSums slim_backward(LanguageModel& model, const SequenceBatch& batch, const at::Tensor& targets,
                        const at::Tensor& weights, const SlimOptions& options) {
  check<UsageError>(options.chunk >= 1, "SLiM needs chunks of at least one token, not {}", options.chunk);
  return SlimPass(model, batch, targets, weights, options).run();
}

void validate_slim(const ModelConfig& model, const AttentionConfig& attention, const TrainConfig& train) {
  if (train.slim_chunk == 0) return;
  check<UsageError>(
      model.objective == "causal",
      "train.slim_chunk = {} needs model.objective = causal, found {}: where tokens see later ones "
      "no chunk can be finished before the next; set train.slim_chunk = 0, and "
      "train.checkpoint_activations = true to save memory",
      train.slim_chunk, model.objective);
  check<UsageError>(
      nn::find_kind(attention.kind).capabilities.chunks,
      "train.slim_chunk = {} needs an attention kind with a state that stands for all tokens before a chunk, "
      "which attention.kind = {} does not have: choose favor-softmax or favor-relu, or set "
      "train.slim_chunk = 0, and train.checkpoint_activations = true to save memory",
      train.slim_chunk, attention.kind);
  check<UsageError>(
      attention.local_heads == 0 && attention.begin_kernel == 0 && !model.token_shift && !model.reversible,
      "train.slim_chunk = {} does not go with attention.local_heads, attention.begin_kernel, "
      "model.token_shift and model.reversible, of which one is set: unset it, or set "
      "train.slim_chunk = 0",
      train.slim_chunk);
  check<UsageError>(
      !train.checkpoint_activations,
      "train.slim_chunk = {} recomputes chunks as a whole, which leaves nothing to "
      "train.checkpoint_activations: set that to false, and lower train.slim_chunk to save more",
      train.slim_chunk);
}

}  // namespace performer::train
