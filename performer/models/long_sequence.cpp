// SPDX-License-Identifier: Apache-2.0
#include "performer/models/long_sequence.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <functional>

#include "performer/base/error.h"
#include "performer/data/share.h"
#include "performer/models/activation_store.h"
#include "performer/nn/sliced_attention.h"

namespace performer {
namespace {

using Sink = std::function<void(int64_t, int64_t, const at::Tensor&)>;
// A layer on the chunks of its input, x [1, C, width] -> same, one after the other.
using Layer =
    std::function<at::Tensor(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& rotary)>;

nn::Capabilities capabilities(const LanguageModel& model) {
  return nn::capabilities_of(model->attention_config());
}

bool is_causal(const LanguageModel& model) {
  return model->model_config().objective == "causal";
}

// One sequence on its way through a model.
class ChunkedPass {
 public:
  ChunkedPass(const LanguageModel& model, const at::Tensor& tokens, const ChunkedRequest& request,
              const Sink& sink)
      : model_(model),
        tokens_(tokens),
        request_(request),
        sink_(sink),
        begin_(request.slices ? cut(0) : 0),
        end_(request.slices ? cut(1) : tokens.size(0)),
        layers_(std::ssize(model->blocks())),
        highest_(request.layers.empty() ? 0 : request.layers.back()),
        quadratic_(takes_quadratic_time(model)) {}

  // All layers of a chunk, then the next chunk.
  void stream() {
    DecodeState state = model_->begin(1);
    for_each_chunk([&](int64_t first, int64_t count) {
      std::vector<at::Tensor> outputs;
      const at::Tensor hidden =
          model_->advance(tokens_.narrow(0, first, count).unsqueeze(0), state, &outputs);
      for (const int64_t layer : request_.layers) {
        sink_(layer, first, (layer == layers_ ? hidden : outputs[layer])[0]);
      }
      tell(first, count, 0, 1);
    });
  }

  // All chunks of a layer, then the next layer.
  void layer_by_layer() {
    ActivationStore store(end_ - begin_, model_->model_config().width, request_.temporary_folder,
                          most_in_memory());
    for_each_chunk([&](int64_t first, int64_t count) {
      SequenceBatch chunk;
      chunk.tokens = tokens_.narrow(0, first, count).unsqueeze(0);
      chunk.positions = positions(first, count);
      const at::Tensor x = model_->embed(chunk)[0];
      store.write(first - begin_, x);
      emit(0, first, x);
    });
    for (int64_t layer = 0; layer < highest_; ++layer) {
      const Layer apply = layer_of(layer, store);
      for_each_chunk([&](int64_t first, int64_t count) {
        const at::Tensor places = positions(first, count);
        const at::Tensor y = apply(input(store, first, count), places, model_->rotary(places));
        store.write(first - begin_, y[0]);
        emit(layer + 1, first, y[0]);
        tell(first, count, layer, highest_);
      });
    }
  }

 private:
  int64_t cut(int64_t next) const {
    return request_.slices->cuts[static_cast<size_t>(request_.slices->exchange->rank() + next)];
  }

  // One process reads a causal sequence without a store; a slice of one takes no memory for it, either.
  int64_t most_in_memory() const {
    return request_.slices && is_causal(model_) ? 0 : ActivationStore::kMostInMemory;
  }

  Layer layer_of(int64_t layer, const ActivationStore& store) const {
    const nn::Block block = model_->blocks()[static_cast<size_t>(layer)];
    if (request_.slices) return sliced(block, store);
    if (is_causal(model_)) {
      const auto cache = std::make_shared<nn::BlockCache>(block->begin(1));
      return [block, cache](const at::Tensor& x, const at::Tensor& places, const at::Tensor& table) {
        return block->step(x, places, *cache, table);
      };
    }
    const std::shared_ptr<nn::Cache> context = context_of(block, store);
    return [block, context](const at::Tensor& x, const at::Tensor& places, const at::Tensor& table) {
      return block->read_piece(x, places, table, *context);
    };
  }

  Layer sliced(nn::Block block, const ActivationStore& store) const {
    ops::State own;
    for_each_chunk([&](int64_t first, int64_t count) {
      const at::Tensor places = positions(first, count);
      own = block->add_to_state(input(store, first, count), places, model_->rotary(places), own);
    });
    at::Tensor anchor = own.kv;
    const ops::State seen = nn::state_seen(*request_.slices, own, is_causal(model_), anchor);
    if (!is_causal(model_)) {
      return [block, seen](const at::Tensor& x, const at::Tensor& places, const at::Tensor& table) {
        return block->read_state(x, places, table, seen);
      };
    }
    return [block, state = seen](const at::Tensor& x, const at::Tensor& places,
                                 const at::Tensor& table) mutable {
      SequenceBatch chunk;
      chunk.positions = places;
      chunk.rotary = table;
      const ops::State before = state;
      return block->forward_chunk(x, chunk, {}, before, &state);
    };
  }

  std::unique_ptr<nn::Cache> context_of(const nn::Block& block, const ActivationStore& store) const {
    std::unique_ptr<nn::Cache> context;
    for_each_chunk([&](int64_t first, int64_t count) {
      const at::Tensor places = positions(first, count);
      block->take_in(input(store, first, count), places, model_->rotary(places), context);
    });
    return context;
  }

  // Of a layer, in the type of the weights.
  at::Tensor input(const ActivationStore& store, int64_t first, int64_t count) const {
    const at::ScalarType type = model_->blocks().front()->parameters().front().scalar_type();
    return store.read(first - begin_, count).to(type).unsqueeze(0);
  }

  void for_each_chunk(const std::function<void(int64_t first, int64_t count)>& work) const {
    for (int64_t first = begin_; first < end_; first += request_.chunk) {
      work(first, std::min(request_.chunk, end_ - first));
    }
  }

  at::Tensor positions(int64_t first, int64_t count) const {
    return at::arange(first, first + count, at::kLong).unsqueeze(0);
  }

  void emit(int64_t layer, int64_t first, const at::Tensor& rows) const {
    if (!std::ranges::binary_search(request_.layers, layer)) return;
    sink_(layer, first, layer == layers_ ? model_->normalized(rows) : rows);
  }

  // A chunk of layer `layer` of `layers` is done.
  void tell(int64_t first, int64_t count, int64_t layer, int64_t layers) const {
    if (!request_.progress) return;
    double share = static_cast<double>(first - begin_ + count) / static_cast<double>(end_ - begin_);
    if (quadratic_ && is_causal(model_)) share *= share;
    request_.progress((static_cast<double>(layer) + share) / static_cast<double>(layers));
  }

  const LanguageModel& model_;
  const at::Tensor& tokens_;
  const ChunkedRequest& request_;
  const Sink& sink_;
  int64_t begin_, end_;  // of the tokens that are read here
  int64_t layers_, highest_;
  bool quadratic_;
};

}  // namespace

std::string why_not_in_chunks(const LanguageModel& model) {
  const ModelConfig& config = model->model_config();
  const AttentionConfig& attention = model->attention_config();
  if (is_causal(model)) {
    if (model->streams()) return "";
    return fmt::format("attention.kind = {} does not stream, so a sequence cannot be read in chunks",
                       attention.kind);
  }
  if (config.reversible) return "reversible blocks of a masked model cannot read a sequence in chunks";
  if (config.token_shift) return "model.token_shift of a masked model cannot read a sequence in chunks";
  if (attention.local_heads > 0)
    return "attention.local_heads of a masked model cannot read a sequence in chunks";
  if (attention.begin_kernel > 0)
    return "attention.begin_kernel of a masked model cannot read a sequence in chunks";
  if (std::ranges::all_of(model->blocks(), [](const nn::Block& block) { return block->reads_pieces(); }))
    return "";
  return fmt::format("attention.kind = {} of a masked model cannot read a sequence in chunks",
                     attention.kind);
}

std::string why_not_in_slices(const LanguageModel& model) {
  const ModelConfig& config = model->model_config();
  const AttentionConfig& attention = model->attention_config();
  const auto cannot = [](const std::string& what) {
    return what + " cannot read a sequence in slices on several ranks";
  };
  if (!capabilities(model).chunks) {
    return fmt::format("attention.kind = {} has no state of constant size that stands for a slice, and so {}",
                       attention.kind, cannot("it"));
  }
  if (config.reversible) return cannot("a model with model.reversible");
  if (config.token_shift) return cannot("a model with model.token_shift");
  if (config.token_dropout) return cannot("a model with model.token_dropout");
  if (attention.local_heads > 0) return cannot("a model with attention.local_heads");
  if (attention.begin_kernel > 0) return cannot("a model with attention.begin_kernel");
  return "";
}

std::shared_ptr<const nn::Slices> slices_of_sequence(int64_t tokens, int64_t slices,
                                                     const std::shared_ptr<nn::StateExchange>& exchange) {
  auto made = std::make_shared<nn::Slices>();
  made->exchange = exchange;
  for (int64_t slice = 0; slice <= slices; ++slice)
    made->cuts.push_back(data::slice_begin(tokens, slice, slices));
  return made;
}

bool takes_quadratic_time(const LanguageModel& model) {
  return capabilities(model).quadratic;
}

void represent_in_chunks(const LanguageModel& model, const at::Tensor& tokens, const ChunkedRequest& request,
                         const Sink& sink) {
  const at::NoGradGuard no_gradients;
  const std::string reason = request.slices ? why_not_in_slices(model) : why_not_in_chunks(model);
  check<UsageError>(reason.empty(), "{}", reason);
  check<UsageError>(request.chunk >= 1, "a chunk must have at least one token, not {}", request.chunk);
  const bool ascending =
      std::ranges::adjacent_find(request.layers, std::greater_equal{}) == request.layers.end();
  check<UsageError>(
      ascending && (request.layers.empty() ||
                    (request.layers.front() >= 0 && request.layers.back() <= std::ssize(model->blocks()))),
      "layers must be numbers from 0 to {}, each once and ascending", model->blocks().size());
  if (tokens.size(0) == 0 || request.layers.empty()) return;
  check<UsageError>(!request.slices || tokens.size(0) >= std::ssize(request.slices->cuts) - 1,
                    "a sequence of {} tokens leaves slices without a token", tokens.size(0));
  ChunkedPass pass(model, tokens, request, sink);
  // A cache that grows is kept of one layer at a time; reversible layers hand on two streams, not one.
  const bool streams = is_causal(model) && !request.slices &&
                       (!takes_quadratic_time(model) || model->model_config().reversible);
  if (streams) {
    pass.stream();
  } else {
    pass.layer_by_layer();
  }
}

double seconds_of_exact_attention(const LanguageModel& model, int64_t length, int64_t layers) {
  const at::NoGradGuard no_gradients;
  const ModelConfig& config = model->model_config();
  const int64_t queries = std::min<int64_t>(length, 512), keys = std::min<int64_t>(length, 4096);
  const at::Tensor query = at::randn({1, config.heads, queries, head_size(config)}),
                   key = at::randn({1, config.heads, keys, head_size(config)});
  double fastest = 0;
  for (int turn = 0; turn < 3; ++turn) {  // the first one warms up
    const auto begin = std::chrono::steady_clock::now();
    at::scaled_dot_product_attention(query, key, key);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (turn == 1 || (turn > 1 && seconds < fastest)) fastest = seconds;
  }
  const auto real = [](int64_t number) { return static_cast<double>(number); };
  const double pairs = real(length) * real(length) * (is_causal(model) ? 0.5 : 1.0) * real(layers);
  return fastest * pairs / (real(queries) * real(keys));
}

}  // namespace performer
