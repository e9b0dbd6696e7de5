// SPDX-License-Identifier: Apache-2.0
#include "performer/models/long_sequence.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <functional>

#include "performer/base/error.h"
#include "performer/models/activation_store.h"

namespace performer {
namespace {

using Sink = std::function<void(int64_t, int64_t, const at::Tensor&)>;

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
        length_(tokens.size(0)),
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
    const at::Tensor weight = model_->blocks().front()->parameters().front();
    ActivationStore store(length_, model_->model_config().width, request_.temporary_folder);
    for_each_chunk([&](int64_t first, int64_t count) {
      SequenceBatch chunk;
      chunk.tokens = tokens_.narrow(0, first, count).unsqueeze(0);
      chunk.positions = positions(first, count);
      const at::Tensor x = model_->embed(chunk)[0];
      store.write(first, x);
      emit(0, first, x);
    });
    for (int64_t layer = 0; layer < highest_; ++layer) {
      const std::unique_ptr<nn::Cache> context =
          is_causal(model_) ? nullptr : context_of(layer, store, weight);
      nn::BlockCache cache;
      if (!context) cache = model_->blocks()[layer]->begin(1);
      for_each_chunk([&](int64_t first, int64_t count) {
        const nn::Block& block = model_->blocks()[layer];
        const at::Tensor places = positions(first, count), table = model_->rotary(places);
        const at::Tensor x = store.read(first, count).to(weight.scalar_type()).unsqueeze(0);
        const at::Tensor y =
            context ? block->read_piece(x, places, table, *context) : block->step(x, places, cache, table);
        store.write(first, y[0]);
        emit(layer + 1, first, y[0]);
        tell(first, count, layer, highest_);
      });
    }
  }

 private:
  std::unique_ptr<nn::Cache> context_of(int64_t layer, const ActivationStore& store,
                                        const at::Tensor& weight) const {
    std::unique_ptr<nn::Cache> context;
    for_each_chunk([&](int64_t first, int64_t count) {
      const at::Tensor places = positions(first, count);
      model_->blocks()[layer]->take_in(store.read(first, count).to(weight.scalar_type()).unsqueeze(0), places,
                                       model_->rotary(places), context);
    });
    return context;
  }

  void for_each_chunk(const std::function<void(int64_t first, int64_t count)>& work) const {
    for (int64_t first = 0; first < length_; first += request_.chunk) {
      work(first, std::min(request_.chunk, length_ - first));
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
    double share = static_cast<double>(first + count) / static_cast<double>(length_);
    if (quadratic_ && is_causal(model_)) share *= share;
    request_.progress((static_cast<double>(layer) + share) / static_cast<double>(layers));
  }

  const LanguageModel& model_;
  const at::Tensor& tokens_;
  const ChunkedRequest& request_;
  const Sink& sink_;
  int64_t length_, layers_, highest_;
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

bool takes_quadratic_time(const LanguageModel& model) {
  return capabilities(model).quadratic;
}

void represent_in_chunks(const LanguageModel& model, const at::Tensor& tokens, const ChunkedRequest& request,
                         const Sink& sink) {
  const at::NoGradGuard no_gradients;
  const std::string reason = why_not_in_chunks(model);
  check<UsageError>(reason.empty(), "{}", reason);
  check<UsageError>(request.chunk >= 1, "a chunk must have at least one token, not {}", request.chunk);
  const bool ascending =
      std::ranges::adjacent_find(request.layers, std::greater_equal{}) == request.layers.end();
  check<UsageError>(
      ascending && (request.layers.empty() ||
                    (request.layers.front() >= 0 && request.layers.back() <= std::ssize(model->blocks()))),
      "layers must be numbers from 0 to {}, each once and ascending", model->blocks().size());
  if (tokens.size(0) == 0 || request.layers.empty()) return;
  ChunkedPass pass(model, tokens, request, sink);
  // A cache that grows is kept of one layer at a time; reversible layers hand on two streams, not one.
  const bool streams = is_causal(model) && (!takes_quadratic_time(model) || model->model_config().reversible);
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
