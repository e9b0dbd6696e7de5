// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/embed.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "performer/base/error.h"
#include "performer/base/fields.h"
#include "performer/base/files.h"
#include "performer/infer/long_rows.h"
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

// What is read in one forward pass: some of the records of a window, and rows [rows, layers, width] of each.
struct SideBySide {
  std::vector<size_t> records;
  int64_t tokens = 0;
  std::vector<at::Tensor> rows;
};

// Records whose order batches do not follow, up to the next long sequence; or a long sequence.
struct Window {
  std::vector<data::Record> records;
  std::vector<SideBySide> batches;
  std::unique_ptr<WaitingRows> long_rows;
  bool is_long() const { return batches.empty(); }
};

class Embedder {
 public:
  Embedder(LanguageModel& model, const data::Vocabulary& vocabulary, const std::string& source,
           const EmbedRequest& request, const ReadingRanks& ranks, EmbeddingSink& file,
           const EmbedProgress& progress)
      : model_(model),
        vocabulary_(vocabulary),
        source_(source),
        request_(request),
        ranks_(ranks),
        file_(file),
        progress_(progress),
        causal_(model->model_config().objective == "causal"),
        markers_(embedding_markers(model)),
        why_not_(why_not_in_chunks(model)),
        finished_(static_cast<size_t>(ranks.of_first(std::ssize(file.finished())))) {}

  void take(data::Record& record) {
    if (taken_ < finished_) return pass_over(record);
    ++taken_;
    check_length(record);
    const int64_t length = std::ssize(record.tokens) + markers_;
    if (length > request_.chunk && why_not_.empty()) {
      flush();
      return take_long(std::move(record));
    }
    ahead_tokens_ += length;
    ahead_.push_back(std::move(record));
    if (ahead_tokens_ >= most_ahead() || ahead_.size() >= kMostAhead) flush();
  }

  // Makes batches of what is ahead. One process reads them at once, several when all have enough to do.
  void flush() {
    if (ahead_.empty()) return;
    std::vector<size_t> order(ahead_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, {}, [&](size_t i) { return ahead_[i].tokens.size(); });
    Window window;
    for (const size_t i : order) {
      const int64_t length = std::ssize(ahead_[i].tokens) + markers_;
      if (window.batches.empty() || window.batches.back().tokens + length > request_.batch_tokens)
        window.batches.emplace_back();
      window.batches.back().records.push_back(i);
      window.batches.back().tokens += length;
    }
    window.records = std::exchange(ahead_, {});
    plan(std::move(window), std::exchange(ahead_tokens_, 0));
  }

  void finish() {
    flush();
    settle();
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
  int64_t most_ahead() const {
    const int64_t batches = request_.pooling == Pooling::tokens ? kBatchesAheadByToken : kBatchesAhead;
    return batches * request_.batch_tokens;
  }
  bool per_token() const { return request_.pooling == Pooling::tokens; }
  int64_t rows_of(const data::Record& record) const { return per_token() ? std::ssize(record.tokens) : 1; }

  void pass_over(const data::Record& record) {
    if (ranks_.leads()) check_same(record);
    ++taken_;
    done_tokens_ += std::ssize(record.tokens);
    tell(0);
  }

  void check_same(const data::Record& record) const {
    const EmbeddedSequence& before = file_.finished()[taken_];
    check<InputError>(
        before.id == printable(record.id) && before.length == std::ssize(record.tokens),
        "{} has {} {}, but at this place the interrupted run had '{}' with {}: the input has changed, so "
        "begin again without --resume",
        place_of(record, source_), record.tokens.size(), vocabulary_.unit(), shown(before.id), before.length);
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

  void embed_batch(const std::vector<data::Record>& records, SideBySide& batch) const {
    Packing packing;
    for (const size_t i : batch.records) {
      with_markers(records[i].tokens, [&](int64_t token) { packing.add(token); });
      packing.end_segment();
    }
    const std::vector<at::Tensor> layers = layers_of(packing.batch());
    for (size_t n = 0; n < batch.records.size(); ++n) {
      const int64_t begin = packing.bounds[n], length = packing.bounds[n + 1] - begin;
      std::vector<at::Tensor> each;
      for (const at::Tensor& layer : layers) each.push_back(pooled(layer.narrow(0, begin, length)));
      batch.rows.push_back(at::stack(each, 1));
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

  void take_long(data::Record&& record) {
    if (ranks_.leads()) announce(record);
    const int64_t length = std::ssize(record.tokens) + markers_;
    if (ranks_.size() > 1 && !ranks_.in_slices(length, request_.chunk)) {
      Window window;
      window.records.push_back(std::move(record));
      return plan(std::move(window), length);
    }
    settle();
    if (ranks_.size() > 1) return embed_in_slices(record);
    file_.begin(record, rows_of(record));
    embed_long(record, nullptr, [&](int64_t first, int64_t place, const at::Tensor& values) {
      file_.write(first, place, values);
    });
    end_sequence(record);
    file_.flush();
  }

  void embed_long(const data::Record& record, const std::shared_ptr<const nn::Slices>& slices,
                  const RowWriter& write) const {
    const int64_t length = std::ssize(record.tokens);
    at::Tensor tokens = at::empty({length + markers_}, at::kLong);
    int64_t* next = tokens.data_ptr<int64_t>();
    with_markers(record.tokens, [&](int64_t token) { *next++ = token; });
    const ChunkedRequest request{
        file_.layers(), request_.chunk, request_.temporary_folder,
        [&](double share) { tell(static_cast<int64_t>(share * static_cast<double>(length))); }, slices};
    read_long(model_, tokens, request, length, request_.pooling, ranks_, write);
  }

  // Rank 0 writes the rows of its slice as they come, then those of the others.
  void embed_in_slices(const data::Record& record) {
    const int64_t length = std::ssize(record.tokens);
    const auto slices = ranks_.slices_of(length + markers_);
    // Of rows of symbols, which begin behind a marker.
    const auto begin_of = [&](int rank) {
      return std::clamp<int64_t>(slices->cuts[static_cast<size_t>(rank)] - 1, 0, length);
    };
    const int64_t begin = begin_of(ranks_.rank()), end = begin_of(ranks_.rank() + 1);
    if (ranks_.leads()) file_.begin(record, rows_of(record));
    std::unique_ptr<WaitingRows> waiting;
    if (per_token() && !ranks_.leads()) waiting = waiting_rows(begin, end - begin);
    embed_long(record, slices, [&](int64_t first, int64_t place, const at::Tensor& values) {
      if (waiting) waiting->write(first, place, values);
      if (ranks_.leads()) file_.write(first, place, values);
    });
    for (int rank = 1; per_token() && rank < ranks_.size(); ++rank)
      write_waiting(waiting.get(), begin_of(rank), begin_of(rank + 1), rank);
    if (ranks_.leads()) end_sequence(record);
    if (ranks_.leads()) file_.flush();
  }

  std::unique_ptr<WaitingRows> waiting_rows(int64_t begin, int64_t rows) const {
    return std::make_unique<WaitingRows>(begin, rows, std::ssize(file_.layers()), file_.width(),
                                         request_.temporary_folder);
  }

  // Rank 0 writes the rows begin .. end - 1 that wait on rank `owner`.
  void write_waiting(const WaitingRows* waiting, int64_t begin, int64_t end, int owner) {
    for (int64_t place = 0; place < std::ssize(file_.layers()); ++place) {
      for (int64_t first = begin; first < end; first += request_.chunk) {
        const int64_t count = std::min(request_.chunk, end - first);
        const at::Tensor values = owner == ranks_.rank() ? waiting->read(first, place, count)
                                                         : at::empty({count, file_.width()}, at::kFloat);
        ranks_.hand_over(values, owner);
        if (ranks_.leads()) file_.write(first, place, values);
      }
    }
  }

  void plan(Window&& window, int64_t tokens) {
    plan_.push_back(std::move(window));
    plan_tokens_ += tokens;
    if (ranks_.size() == 1 || plan_tokens_ >= ranks_.size() * most_ahead()) settle();
  }

  // Each rank reads its part of the plan, and rank 0 writes all of it.
  void settle() {
    std::vector<int64_t> costs;
    for (const Window& window : plan_) {
      for (const SideBySide& batch : window.batches) costs.push_back(batch.tokens);
      if (window.is_long()) costs.push_back(std::ssize(window.records[0].tokens));
    }
    const std::vector<int> owners = divide_work(costs, ranks_.size());
    int64_t read = 0;
    auto owner = owners.begin();
    for (Window& window : plan_) {
      for (SideBySide& batch : window.batches) {
        if (*owner++ != ranks_.rank()) continue;
        embed_batch(window.records, batch);
        read += batch.tokens;
        tell(std::min(read * ranks_.size(), plan_tokens_));  // the others are about as far
      }
      if (!window.is_long() || *owner++ != ranks_.rank()) continue;
      const data::Record& record = window.records[0];
      window.long_rows = waiting_rows(0, rows_of(record));
      embed_long(record, nullptr, [&](int64_t first, int64_t place, const at::Tensor& values) {
        window.long_rows->write(first, place, values);
      });
    }
    owner = owners.begin();
    for (Window& window : plan_) {
      write_window(window, owner);
      window = {};
    }
    plan_.clear();
    plan_tokens_ = 0;
  }

  // `owner` moves on behind those of the window.
  void write_window(Window& window, std::vector<int>::const_iterator& owner) {
    if (window.is_long()) {
      const data::Record& record = window.records[0];
      if (ranks_.leads()) file_.begin(record, rows_of(record));
      write_waiting(window.long_rows.get(), 0, rows_of(record), *owner++);
      if (ranks_.leads()) end_sequence(record);
    } else {
      std::vector<at::Tensor> rows(window.records.size());
      for (SideBySide& batch : window.batches) take_rows(window.records, batch, *owner++, rows);
      for (size_t i = 0; ranks_.leads() && i < rows.size(); ++i) {
        file_.begin(window.records[i], rows[i].size(0));
        for (int64_t place = 0; place < rows[i].size(1); ++place)
          file_.write(0, place, rows[i].select(1, place));
        end_sequence(window.records[i]);
      }
    }
    if (ranks_.leads()) file_.flush();
  }

  // Brings the rows of a batch to rank 0.
  void take_rows(const std::vector<data::Record>& records, SideBySide& batch, int owner,
                 std::vector<at::Tensor>& rows) const {
    std::vector<int64_t> counts;
    for (const size_t i : batch.records) counts.push_back(rows_of(records[i]));
    if (owner != 0) {
      const int64_t all = std::accumulate(counts.begin(), counts.end(), int64_t{0});
      const at::Tensor values = owner == ranks_.rank()
                                    ? at::cat(batch.rows).to(at::kFloat).contiguous()
                                    : at::empty({all, std::ssize(file_.layers()), file_.width()}, at::kFloat);
      ranks_.hand_over(values, owner);
      batch.rows = values.split_with_sizes(counts);
    }
    if (!ranks_.leads()) return;
    for (size_t n = 0; n < batch.records.size(); ++n) rows[batch.records[n]] = batch.rows[n];
  }

  void end_sequence(const data::Record& record) {
    file_.end();
    ++done_sequences_;
    done_tokens_ += std::ssize(record.tokens);
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
    if (progress_.done && ranks_.leads()) progress_.done(done_sequences_, done_tokens_ + tokens_of_this);
  }

  LanguageModel& model_;
  const data::Vocabulary& vocabulary_;
  const std::string& source_;
  const EmbedRequest& request_;
  const ReadingRanks& ranks_;
  EmbeddingSink& file_;
  const EmbedProgress& progress_;
  bool causal_;
  int64_t markers_;
  std::string why_not_;
  size_t finished_, taken_ = 0;
  std::vector<data::Record> ahead_;
  int64_t ahead_tokens_ = 0, done_sequences_ = 0, done_tokens_ = 0;
  std::vector<Window> plan_;  // what is read next, in the order of the input
  int64_t plan_tokens_ = 0;
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
  const ReadingRanks alone;
  const ReadingRanks& ranks = request.ranks != nullptr ? *request.ranks : alone;
  ranks.check_slices(model);
  Embedder embedder(model, vocabulary, source, request, ranks, file, progress);
  for (data::Record record; reader.next(record); record = {}) embedder.take(record);
  embedder.finish();
  embedder.check_all_passed();
  return reader.report();
}

}  // namespace performer
