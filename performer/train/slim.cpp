// SPDX-License-Identifier: Apache-2.0
#include "performer/train/slim.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "performer/base/error.h"
#include "performer/nn/attention/kind.h"
#include "performer/train/autocast.h"
#include "performer/train/loss.h"
#include "performer/train/slim_link.h"

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
        kept_(chunks_.size()),
        link_(chunk_link(options.ranks)),
        generator_(at::globalContext().defaultGenerator(at::kCPU)) {
    const std::lock_guard lock(generator_.mutex());
    generator_start_ = generator_.get_state();
  }

  // All ranks go through the chunks alike, and each works on its own.
  BatchSums run() {
    size_t found = chunks_.size();  // the states before the chunks from here on were found
    for (size_t i = chunks_.size(); i-- > 0;) {
      if (chunks_[i].continues && i < found) found = find_states(i) + 1;
      if (is_own(i)) backward(i);
    }
    // A rank without a chunk draws what the others drew.
    if (!drew_ && !chunks_.empty()) {
      const at::NoGradGuard no_grad;
      forward(0, 1, {}, {});
    }
    link_->settle_states();
    link_->settle_gradients();
    return sums_;
  }

 private:
  // The state that a layer goes on from; empty: none.
  using Before = std::function<ops::State(size_t layer)>;
  // What becomes of the state that a layer leaves, and of its output; empty: the state is not wanted.
  using After = std::function<at::Tensor(size_t layer, const ops::State& state, const at::Tensor& output)>;

  bool is_own(size_t i) const { return static_cast<int64_t>(i) % link_->ranks() == link_->rank(); }

  // The last block's output. Every pass draws the numbers that one over the whole batch would: a mask is
  // named by such a number and the element's place in the batch.
  at::Tensor forward(int64_t begin, int64_t end, const Before& before, const After& after) {
    {
      const std::lock_guard lock(generator_.mutex());
      generator_.set_state(generator_start_);
    }
    drew_ = true;
    SequenceBatch chunk = cut(batch_, begin, end);
    chunk.rotary = model_->rotary(chunk.positions);
    // Of the whole batch, which on several ranks is more than this one's part.
    const int64_t length = batch_.window.length > 0 ? batch_.window.length : batch_.tokens.size(1);
    const ops::TokenWindow window{batch_.window.start + begin, length};
    at::Tensor x = model_->embed(chunk, &window);
    for (size_t layer = 0; layer < model_->blocks().size(); ++layer) {
      nn::Block block = model_->blocks()[layer];
      const ops::State initial = before ? before(layer) : ops::State{};
      ops::State final;
      x = block->forward_chunk(x, chunk, window, initial, after ? &final : nullptr);
      if (after) x = after(layer, final, x);
    }
    return x;
  }

  // The states before chunk i and before all others that its rows, or the segment which goes on into it, run
  // through; returns the first of them. Nothing else is run, and states of one segment at a time are kept.
  size_t find_states(size_t i) {
    const at::NoGradGuard no_grad;
    size_t first = i - 1;  // where they begin
    while (chunks_[first].continues && chunks_[first].last == chunks_[first].begin) --first;
    for (size_t k = first; k < i; ++k) {
      if (!is_own(k)) continue;
      link_->settle_states();
      const Before receive = [&](size_t) { return kept_[k].emplace_back(link_->receive_state()); };
      const AutocastScope autocast(options_.bfloat16);
      forward(chunks_[k].last, chunks_[k].end, k > first ? receive : Before{},
              [&](size_t, const ops::State& state, const at::Tensor& output) {
                link_->send_state(state);
                return output;
              });
    }
    return first;
  }

  // Adds the chunk's gradients, its part in those of later chunks included.
  void backward(size_t i) {
    const Chunk& chunk = chunks_[i];
    // Of gradients not in find_states(), which may come between two chunks that pass on a gradient.
    link_->settle_states();
    link_->settle_gradients();
    States before = std::exchange(kept_[i], {});
    size_t left = 0, received = 0;  // states that layers left, and gradients of them
    const auto receive_gradient = [&] {
      ++received;
      return link_->receive_gradient();
    };
    const Before start = [&](size_t layer) {
      const ops::State state = layer < before.size() ? before[layer] : link_->receive_state();
      return with_gradient_to(state, [&](const ops::State& gradient) { link_->send_gradient(gradient); });
    };
    const After leave = [&](size_t, const ops::State& state, const at::Tensor& output) {
      ++left;
      return with_gradient_from(output, state, receive_gradient);
    };
    const bool goes_on = i + 1 < chunks_.size() && chunks_[i + 1].continues;
    const at::Tensor logits = [&] {
      const AutocastScope autocast(options_.bfloat16);
      return model_->logits(model_->normalized(
          forward(chunk.begin, chunk.end, chunk.continues ? start : Before{}, goes_on ? leave : After{})));
    }();
    const at::Tensor targets = targets_.narrow(1, chunk.begin, chunk.end - chunk.begin);
    const at::Tensor weights = weights_.narrow(1, chunk.begin, chunk.end - chunk.begin);
    const CrossEntropySums sums = cross_entropy_gradient(logits, targets, weights, options_.divisor);
    sums_.loss += sums.loss;
    sums_.correct += sums.correct;
    torch::autograd::backward({logits}, {logits.detach()});
    while (received < left) receive_gradient();  // of frozen layers
  }

  LanguageModel& model_;
  const SequenceBatch& batch_;
  const at::Tensor &targets_, &weights_;
  const SlimOptions& options_;
  const std::vector<Chunk> chunks_;
  std::vector<States> kept_;  // before each chunk of this rank; none where not needed or not known yet
  const std::unique_ptr<ChunkLink> link_;
  at::Generator generator_;
  at::Tensor generator_start_;
  bool drew_ = false;
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
