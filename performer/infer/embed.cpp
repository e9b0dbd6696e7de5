// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/embed.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "performer/base/error.h"
#include "performer/base/fields.h"
#include "performer/base/files.h"
#include "performer/infer/packing.h"
#include "performer/models/long_sequence.h"

namespace performer {
namespace {

// Sequences that are read before a batch is made, so that batches hold similar lengths: so many batches of
// tokens.
constexpr int64_t kBatchesAhead = 16, kBatchesAheadByToken = 2;  // what waits for its turn is held in memory
constexpr size_t kMostAhead = 65536;
constexpr double kWorthSaying = 5;  // seconds

std::string place_of(const data::Record& record, const std::string& source) {
  return fmt::format("{}: record {} ('{}'{})", source, record.number, shown(record.id),
                     record.line > 0 ? fmt::format(", line {}", record.line) : "");
}

// What is kept of the rows [C, width] of one layer of a long sequence until all have come.
class Pool {
 public:
  Pool(Pooling pooling, int64_t width) : pooling_(pooling) {
    values_ = pooling == Pooling::max
                  ? at::full({width}, -std::numeric_limits<double>::infinity(), at::kDouble)
                  : at::zeros({width}, at::kDouble);
  }
  // Rows of symbols; for `first` those of the marker.
  void add(const at::Tensor& rows) {
    if (rows.size(0) == 0) return;
    const at::Tensor precise = rows.to(at::kDouble);
    if (pooling_ == Pooling::max) {
      values_ = at::maximum(values_, precise.amax(0));
    } else {
      values_ = values_ + precise.sum(0);
    }
    count_ += rows.size(0);
  }
  at::Tensor result() const {  // [1, width]
    return (pooling_ == Pooling::mean ? values_ / count_ : values_).to(at::kFloat).unsqueeze(0);
  }

 private:
  Pooling pooling_;
  at::Tensor values_;
  int64_t count_ = 0;
};

class Embedder {
 public:
  Embedder(LanguageModel& model, const data::Vocabulary& vocabulary, const std::string& source,
           const EmbedRequest& request, EmbeddingSink& file, const EmbedProgress& progress)
      : model_(model),
        vocabulary_(vocabulary),
        source_(source),
        request_(request),
        file_(file),
        progress_(progress),
        causal_(model->model_config().objective == "causal"),
        markers_(embedding_markers(model)),
        why_not_(why_not_in_chunks(model)),
        finished_(file.finished().size()) {}

  void take(data::Record& record) {
    if (taken_ < finished_) return pass_over(record);
    ++taken_;
    check_length(record);
    const int64_t length = std::ssize(record.tokens) + markers_;
    if (length > request_.chunk && why_not_.empty()) {
      flush();
      return embed_long(record);
    }
    ahead_tokens_ += length;
    ahead_.push_back(std::move(record));
    const int64_t batches = request_.pooling == Pooling::tokens ? kBatchesAheadByToken : kBatchesAhead;
    if (ahead_tokens_ >= batches * request_.batch_tokens || ahead_.size() >= kMostAhead) flush();
  }

  void flush() {
    if (ahead_.empty()) return;
    std::vector<size_t> order(ahead_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, {}, [&](size_t i) { return ahead_[i].tokens.size(); });
    std::vector<at::Tensor> rows(ahead_.size());  // [rows, layers, width]
    for (size_t begin = 0; begin < order.size();) {
      size_t end = begin;
      int64_t tokens = 0;
      do {
        tokens += std::ssize(ahead_[order[end]].tokens) + markers_;
        ++end;
      } while (end < order.size() &&
               tokens + std::ssize(ahead_[order[end]].tokens) + markers_ <= request_.batch_tokens);
      embed_batch({order.begin() + static_cast<std::ptrdiff_t>(begin),
                   order.begin() + static_cast<std::ptrdiff_t>(end)},
                  rows);
      begin = end;
      tell(0);
    }
    for (size_t i = 0; i < ahead_.size(); ++i) {
      file_.begin(ahead_[i], rows[i].size(0));
      for (int64_t place = 0; place < rows[i].size(1); ++place)
        file_.write(0, place, rows[i].select(1, place));
      file_.end();
    }
    file_.flush();
    ahead_.clear();
    ahead_tokens_ = 0;
  }

  // Fewer sequences than were finished before.
  void check_all_passed() const {
    check<InputError>(
        taken_ >= finished_,
        "{} has {} sequences, but the interrupted run had finished {}: the input has changed, so begin "
        "again without --resume",
        source_, taken_, finished_);
  }

 private:
  void pass_over(const data::Record& record) {
    const EmbeddedSequence& before = file_.finished()[taken_];
    check<InputError>(
        before.id == printable(record.id) && before.length == std::ssize(record.tokens),
        "{} has {} {}, but at this place the interrupted run had '{}' with {}: the input has changed, so "
        "begin again without --resume",
        place_of(record, source_), record.tokens.size(), vocabulary_.unit(), shown(before.id), before.length);
    ++taken_;
    done_tokens_ += std::ssize(record.tokens);
    tell(0);
  }

  void check_length(const data::Record& record) const {
    const ModelConfig& config = model_->model_config();
    const int64_t length = std::ssize(record.tokens);
    check<InputError>(
        !limits_length(config) || length + markers_ <= config.max_length,
        "{} has {} {}, but this model's positions cover {}: leave it out, or use a model with rotary or "
        "sinusoidal positions",
        place_of(record, source_), length, vocabulary_.unit(), config.max_length - markers_);
    check<InputError>(why_not_.empty() || length + markers_ <= request_.most_whole,
                      "{} has {} {}, but {}, and whole it may have {} (--most-whole): leave it out, or use a "
                      "model of kind favor-softmax, favor-relu, exact or auto",
                      place_of(record, source_), length, vocabulary_.unit(), why_not_,
                      request_.most_whole - markers_);
  }

  // What the model reads of a sequence, handed to `add`.
  template <class Add>
  void with_markers(const std::vector<data::Token>& tokens, Add&& add) const {
    add(vocabulary_.bos());
    for (const data::Token token : tokens) add(token);
    if (!causal_) add(vocabulary_.eos());
  }

  // Rows of a layer [T, width] of a whole sequence -> [rows, width].
  at::Tensor pooled(const at::Tensor& all) const {
    if (request_.pooling == Pooling::first) return all.narrow(0, 0, 1);
    const at::Tensor symbols = all.narrow(0, 1, all.size(0) - markers_);
    if (request_.pooling == Pooling::tokens) return symbols;
    Pool pool(request_.pooling, all.size(1));
    pool.add(symbols);
    return pool.result();
  }

  void embed_batch(const std::vector<size_t>& chosen, std::vector<at::Tensor>& rows) {
    Packing packing;
    for (const size_t i : chosen) {
      with_markers(ahead_[i].tokens, [&](int64_t token) { packing.add(token); });
      packing.end_segment();
    }
    std::vector<at::Tensor> layers = layers_of(packing.batch());
    for (size_t n = 0; n < chosen.size(); ++n) {
      const int64_t begin = packing.bounds[n], length = packing.bounds[n + 1] - begin;
      std::vector<at::Tensor> each;
      for (const at::Tensor& layer : layers) each.push_back(pooled(layer.narrow(0, begin, length)));
      rows[chosen[n]] = at::stack(each, 1);
      ++done_sequences_;
      done_tokens_ += std::ssize(ahead_[chosen[n]].tokens);
    }
  }

  // The wanted layers [T, width] of a packed batch.
  std::vector<at::Tensor> layers_of(const SequenceBatch& batch) const {
    const std::vector<int64_t>& wanted = file_.layers();
    const auto last = std::ssize(model_->blocks());
    if (wanted.size() == 1 && wanted[0] == last) return {model_->hidden(batch)[0]};
    const Representations all = model_->represent(batch);
    std::vector<at::Tensor> layers;
    for (const int64_t layer : wanted) {
      layers.push_back((layer == 0 ? all.input : layer == last ? all.output : all.layers[layer - 1])[0]);
    }
    return layers;
  }

  void embed_long(const data::Record& record) {
    const int64_t length = std::ssize(record.tokens);
    announce(record);
    at::Tensor tokens = at::empty({length + markers_}, at::kLong);
    int64_t* next = tokens.data_ptr<int64_t>();
    with_markers(record.tokens, [&](int64_t token) { *next++ = token; });
    const std::vector<int64_t>& layers = file_.layers();
    const bool per_token = request_.pooling == Pooling::tokens;
    std::vector<Pool> pools(layers.size(), Pool(request_.pooling, file_.width()));
    file_.begin(record, per_token ? length : 1);
    ChunkedRequest request{layers, request_.chunk, request_.temporary_folder, [&](double share) {
                             tell(static_cast<int64_t>(share * static_cast<double>(length)));
                           }};
    represent_in_chunks(model_, tokens, request, [&](int64_t layer, int64_t first, const at::Tensor& rows) {
      const int64_t place = std::ranges::lower_bound(layers, layer) - layers.begin();
      // Symbols are the tokens 1 .. length; `first` wants token 0.
      const bool marker = request_.pooling == Pooling::first;
      const int64_t from = std::max<int64_t>(first, marker ? 0 : 1),
                    to = std::min(first + rows.size(0), marker ? 1 : length + 1);
      if (from >= to) return;
      const at::Tensor symbols = rows.narrow(0, from - first, to - from);
      if (per_token) {
        file_.write(from - 1, place, symbols);
      } else {
        pools[static_cast<size_t>(place)].add(symbols);
      }
    });
    for (size_t place = 0; !per_token && place < pools.size(); ++place) {
      file_.write(0, static_cast<int64_t>(place), pools[place].result());
    }
    file_.end();
    file_.flush();
    ++done_sequences_;
    done_tokens_ += length;
    tell(0);
  }

  // Says beforehand what exact attention of a long sequence will take.
  void announce(const data::Record& record) const {
    if (!progress_.note || !takes_quadratic_time(model_)) return;
    const int64_t length = std::ssize(record.tokens) + markers_;
    const double seconds = seconds_of_exact_attention(model_, length, file_.layers().back());
    if (seconds < kWorthSaying) return;
    const double minutes = seconds / 60;
    progress_.note(
        fmt::format("'{}': exact attention of {} tokens, whose time grows with the square of the length, "
                    "will take about {}",
                    shown(record.id), length,
                    minutes < 2     ? fmt::format("{:.0f} seconds", seconds)
                    : minutes < 120 ? fmt::format("{:.0f} minutes", minutes)
                                    : fmt::format("{:.0f} hours", minutes / 60)));
  }

  void tell(int64_t tokens_of_this) const {
    if (progress_.done) progress_.done(done_sequences_, done_tokens_ + tokens_of_this);
  }

  LanguageModel& model_;
  const data::Vocabulary& vocabulary_;
  const std::string& source_;
  const EmbedRequest& request_;
  EmbeddingSink& file_;
  const EmbedProgress& progress_;
  bool causal_;
  int64_t markers_;
  std::string why_not_;
  size_t finished_, taken_ = 0;
  std::vector<data::Record> ahead_;
  int64_t ahead_tokens_ = 0, done_sequences_ = 0, done_tokens_ = 0;
};

}  // namespace

const std::vector<std::string>& pooling_names() {
  static const std::vector<std::string> names = {"mean", "max", "first", "tokens"};
  return names;
}

Pooling parse_pooling(const std::string& name) {
  const auto found = std::ranges::find(pooling_names(), name);
  check<UsageError>(found != pooling_names().end(), "--pool must be {}, not '{}'",
                    fmt::join(pooling_names(), ", "), name);
  return static_cast<Pooling>(found - pooling_names().begin());
}

std::vector<int64_t> resolve_layers(const std::vector<int64_t>& wanted, int64_t blocks) {
  std::vector<int64_t> layers;
  for (const int64_t layer : wanted) {
    check<UsageError>(
        layer >= -blocks - 1 && layer <= blocks,
        "--layers {}: this model has the layers 0 (embedding) to {}, or counted from the end -1 to {}", layer,
        blocks, -blocks - 1);
    layers.push_back(layer < 0 ? layer + blocks + 1 : layer);
  }
  std::ranges::sort(layers);
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  check<UsageError>(!layers.empty(), "--layers names no layer");
  return layers;
}

int64_t embedding_markers(const LanguageModel& model) {
  return model->model_config().objective == "causal" ? 1 : 2;
}

std::string weights_fingerprint(const LanguageModel& model) {
  std::string hashes;
  const auto add = [&](const std::string& name, const at::Tensor& tensor) {
    const at::Tensor dense = tensor.detach().contiguous();
    hashes += fmt::format("{}:{:x};", name,
                          stable_hash({static_cast<const char*>(dense.data_ptr()), dense.nbytes()}));
  };
  for (const auto& item : model->named_parameters()) add(item.key(), item.value());
  for (const auto& item : model->named_buffers()) add(item.key(), item.value());
  return fmt::format("{:016x}", stable_hash(hashes));
}

data::ReadReport embed(LanguageModel& model, data::Reader& reader, const std::string& source,
                       const EmbedRequest& request, EmbeddingSink& file, const EmbedProgress& progress) {
  const at::NoGradGuard no_gradients;
  if (model->is_training()) model->eval();
  const data::Vocabulary vocabulary = reader.vocabulary();
  check<UsageError>(model->vocabulary() == vocabulary.size(),
                    "the model has {} tokens, the vocabulary {} has {} with its markers: read {} with the "
                    "vocabulary of the model's folder",
                    model->vocabulary(), vocabulary.name(), vocabulary.size(), source);
  Embedder embedder(model, vocabulary, source, request, file, progress);
  for (data::Record record; reader.next(record); record = {}) embedder.take(record);
  embedder.flush();
  embedder.check_all_passed();
  return reader.report();
}

}  // namespace performer
