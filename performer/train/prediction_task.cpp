// SPDX-License-Identifier: Apache-2.0
#include "performer/train/prediction_task.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "performer/base/error.h"
#include "performer/distributed/sum.h"
#include "performer/nn/evaluation_scope.h"
#include "performer/train/autocast.h"
#include "performer/train/evaluation.h"
#include "performer/train/loss.h"
#include "performer/train/prediction_metrics.h"

namespace performer::train {
namespace {

constexpr const char* kPrefix = "head.";  // of the head's tensors in a checkpoint

}  // namespace

struct PredictionTask::LabelledBatch final : Batch {
  std::string description() const override {
    return fmt::format("a batch of {} x {} tokens", part.batch.rows, part.batch.width);
  }
  data::SharedBatch part;
  Asked asked;
};

struct PredictionTask::EvaluatedBatch {
  data::Batch content;
  Asked asked;
};

PredictionTask::PredictionTask(const LanguageModelConfig& config, const data::Corpus& train,
                               const data::Corpus* valid, const data::LabelledSequences& train_labels,
                               const data::LabelledSequences* valid_labels,
                               const std::vector<std::string>& classes)
    : ModelTask(config, train, valid, config.model.objective == "causal" ? "causal" : "plain",
                train_labels.weights()),
      train_labels_(train_labels),
      valid_labels_(valid_labels) {
  check<UsageError>(config.task.has_head(), "task.kind = {} has no labels to predict", config.task.kind);
  check(train_labels.size() == train.size() && (valid == nullptr || valid_labels->size() == valid->size()),
        "labels and sequences are not equally many");
  check_lengths();
  folder_.objective_note = fmt::format("{} beside {}", config.task.kind, config.model.objective);
  folder_.head = PredictionHead(make_head(classes), config.model.width);
}

void PredictionTask::check_lengths() const {
  const DataConfig& data = config_.data;
  if (config_.task.form().per_token || data.crop != "split") return;
  for (int64_t i = 0; i < train_.size(); ++i) {
    const int64_t tokens = std::ssize(train_.tokens(i)) + (causal() ? 1 : 2);
    check<UsageError>(
        tokens <= data.length,
        "a training sequence takes {} tokens, but data.length is {}, and the label of a sequence says "
        "nothing "
        "about its pieces (data.crop = split): raise data.length and data.batch_tokens, or set data.crop to "
        "start or random",
        tokens, data.length);
  }
}

HeadConfig PredictionTask::make_head(const std::vector<std::string>& classes) const {
  HeadConfig head;
  head.kind = config_.task.kind;
  head.pool = config_.task.pool;
  if (head.classifies()) head.classes = classes;
  double count = 0, sum = 0, squares = 0;
  const auto each_label = [&](auto&& visit) {
    for (int64_t i = 0; i < train_labels_.size(); ++i) {
      for (const float value : train_labels_.values(i)) {
        if (!std::isnan(value)) visit(static_cast<double>(value));
      }
    }
  };
  each_label([&](double value) { ++count, sum += value; });
  check<InputError>(count > 0, "none of the training sequences has a label");
  if (head.classifies()) return head;
  head.mean = sum / count;
  each_label([&](double value) { squares += (value - head.mean) * (value - head.mean); });
  check<InputError>(squares > 0, "all labels of the training sequences are {}: there is nothing to learn",
                    head.mean);
  head.scale = std::sqrt(squares / count);
  return head;
}

std::vector<NamedParameter> PredictionTask::parameters() {
  std::vector<NamedParameter> all = ModelTask::parameters();
  for (const auto& item : folder_.head->named_parameters())
    all.push_back(
        {kPrefix + item.key(), item.value(), item.value().dim() >= 2 || config_.train.decay == "all"});
  return all;
}

std::unique_ptr<Batch> PredictionTask::next() {
  auto made = std::make_unique<LabelledBatch>();
  const data::Batch whole = next_whole();
  made->part = part_of(whole);
  made->asked = sequence_ranks() != nullptr
                    ? of_slice(ask(part_of_group(whole).batch, train_labels_, train_), made->part)
                    : ask(made->part.batch, train_labels_, train_);
  made->tokens = whole.tokens_read();
  const Asked all = ask(whole, train_labels_, train_);
  made->targets = std::ssize(all.values);
  for (const float weight : all.weights) made->weight += weight;
  return made;
}

// Token i of BOS x1 .. xn EOS is a symbol where 1 <= i <= n, also in a piece that begins further on.
PredictionTask::Asked PredictionTask::ask(const data::Batch& content, const data::LabelledSequences& labels,
                                          const data::Corpus& corpus) const {
  Asked asked;
  const bool first = folder_.head->config().pool == "first";
  for (size_t segment = 0; segment < content.sequences.size(); ++segment) {
    const int64_t sequence = content.sequences[segment];
    const auto n = std::ssize(corpus.tokens(sequence));
    const auto values = labels.values(sequence);
    const float weight = labels.weights().empty() ? 1 : labels.weights()[static_cast<size_t>(sequence)];
    const bool packed = !content.cu_seqlens.empty();
    const int64_t begin =
        packed ? content.cu_seqlens[segment] : static_cast<int64_t>(segment) * content.width;
    const int64_t end = packed ? content.cu_seqlens[segment + 1] : begin + content.width;
    if (!per_token() && std::isnan(values[0])) continue;
    int64_t count = 0;
    for (int64_t at = begin; at < end; ++at) {
      if (!packed && content.valid[static_cast<size_t>(at)] == 0) break;
      const int64_t place = content.positions[static_cast<size_t>(at)];
      const bool symbol = place >= 1 && place <= n;
      const bool wanted = !per_token() && first ? at == begin : symbol;
      if (!wanted || (per_token() && std::isnan(values[static_cast<size_t>(place) - 1]))) continue;
      asked.places.push_back(at);
      ++count;
      if (!per_token()) {
        asked.labels_of_places.push_back(std::ssize(asked.values));
        continue;
      }
      asked.values.push_back(values[static_cast<size_t>(place) - 1]);
      asked.weights.push_back(weight);
    }
    if (per_token()) continue;
    asked.counts.push_back(count);
    asked.values.push_back(values[0]);
    asked.weights.push_back(weight);
  }
  return asked;
}

PredictionTask::Asked PredictionTask::of_slice(const Asked& all, const data::SharedBatch& slice) const {
  const int64_t width = slice.part_end - slice.part_begin, begin = slice.begin - slice.part_begin;
  const int64_t own_width = slice.batch.width;
  Asked own;
  if (!per_token()) {
    own = {{}, {}, all.counts, all.values, std::vector<float>(all.weights.size(), 0)};
  }
  for (size_t i = 0; i < all.places.size(); ++i) {
    const int64_t row = all.places[i] / width, column = all.places[i] % width - begin;
    if (column < 0 || column >= own_width) continue;
    own.places.push_back(row * own_width + column);
    if (per_token()) {
      own.values.push_back(all.values[i]);
      own.weights.push_back(all.weights[i]);
      continue;
    }
    const int64_t label = all.labels_of_places[i];
    own.labels_of_places.push_back(label);
    const bool first = i == 0 || all.labels_of_places[i - 1] != label;
    if (first) own.weights[static_cast<size_t>(label)] = all.weights[static_cast<size_t>(label)];
  }
  return own;
}

at::Tensor PredictionTask::outputs(const at::Tensor& hidden, const Asked& asked,
                                   const std::shared_ptr<distributed::Communicator>& group) const {
  at::Tensor rows = hidden.flatten(0, 1).to(at::kFloat).index_select(0, at::tensor(asked.places, at::kLong));
  const auto count = std::ssize(asked.values);
  if (!per_token()) {
    const at::Tensor labels = at::tensor(asked.labels_of_places, at::kLong);
    rows = at::zeros({count, rows.size(1)}, rows.options()).index_add(0, labels, rows);
    if (group != nullptr && count > 0) rows = distributed::differentiable_sum(rows, group);
    rows = rows / at::tensor(asked.counts, at::kFloat).unsqueeze(1);
  }
  return folder_.head->forward(rows);
}

BatchSums PredictionTask::backward(const Batch& batch, double divisor) {
  const auto& labelled = dynamic_cast<const LabelledBatch&>(batch);
  // Pieces without a labelled token. Where other ranks have some, this one goes along, so that all take the
  // same numbers from the generator.
  if (labelled.targets == 0) return {};
  const Asked& asked = labelled.asked;
  count_sequences(labelled.part.batch);
  trained().begin_backward();
  const at::Tensor hidden = [&] {
    const AutocastScope autocast(config_.train.precision == "bfloat16");
    return folder_.model->hidden(tensors_of(labelled.part));
  }();
  const at::Tensor given = outputs(hidden, asked, sequence_ranks());
  const HeadConfig& head = folder_.head->config();
  const at::Tensor weights = at::tensor(asked.weights);
  const at::Tensor values = at::tensor(asked.values);
  at::Tensor loss;
  BatchSums sums;
  if (head.classifies()) {
    const at::Tensor targets = values.to(at::kLong);
    loss = weighted_cross_entropy(given, targets, weights) / divisor;
    sums.correct = weighted_correct(given, targets, weights).item<double>();
  } else {
    const at::Tensor targets = (values - head.mean) / head.scale;
    loss = ((given.squeeze(1) - targets).square() * weights).sum() / divisor;
    sums.correct = std::nan("");
  }
  loss.backward();
  trained().end_backward();
  sums.loss = loss.item<double>();
  return sums;
}

std::vector<at::Tensor> PredictionTask::predict(const std::vector<EvaluatedBatch>& round,
                                                distributed::Communicator& ranks) {
  int64_t most = 0;
  for (const EvaluatedBatch& batch : round) most = std::max(most, std::ssize(batch.asked.values));
  const at::Tensor sent = at::zeros({most, folder_.head->config().outputs()}, at::kFloat);
  const auto own = static_cast<size_t>(ranks.rank());
  if (own < round.size() && !round[own].asked.values.empty()) {
    const EvaluatedBatch& batch = round[own];
    const at::Tensor given = outputs(folder_.model->hidden(to_tensors(batch.content)), batch.asked);
    sent.narrow(0, 0, given.size(0)).copy_(folder_.head->predictions(given));
  }
  std::vector<at::Tensor> found(round.size());
  if (most == 0) return found;
  const at::Tensor all = ranks.gather(sent);
  for (size_t i = 0; i < round.size(); ++i)
    found[i] = all[static_cast<int64_t>(i)].narrow(0, 0, std::ssize(round[i].asked.values));
  return found;
}

std::optional<EvaluationReport> PredictionTask::evaluate() {
  if (valid_ == nullptr) return std::nullopt;
  const at::NoGradGuard no_grad;
  const EvaluationScope scope(*folder_.model);
  PredictionMetrics metrics(folder_.head->config());
  data::EvaluationStream stream(*valid_, config_.data, causal() ? "causal" : "plain");
  const auto progress = evaluation_progress();
  const auto alone = distributed::single_rank();
  distributed::Communicator& ranks = ranks_ != nullptr ? *ranks_ : *alone;
  for (bool more = true; more;) {
    std::vector<EvaluatedBatch> round;
    while (std::ssize(round) < ranks.size()) {
      std::optional<data::Batch> batch = stream.next();
      if (!(more = batch.has_value())) break;
      for (int64_t i = 0; i < stream.count(); ++i) batch->sequences.push_back(stream.first() + i);
      Asked asked = ask(*batch, *valid_labels_, *valid_);
      round.push_back({std::move(*batch), std::move(asked)});
    }
    if (round.empty()) break;
    const std::vector<at::Tensor> predictions = predict(round, ranks);
    for (size_t i = 0; i < round.size(); ++i) {
      if (!round[i].asked.values.empty()) metrics.add(predictions[i], round[i].asked.values);
    }
    progress(stream.first() + stream.count(), valid_->size());
    if (any_stops(stop_, ranks)) throw Interrupted("interrupted in an evaluation");
  }
  EvaluationReport report;
  report.record = metrics.to_json();
  report.scalars = metrics.scalars();
  report.summary = fmt::format("held-out {}", metrics.summary());
  report.goodness = metrics.goodness();
  return report;
}

std::vector<std::string> PredictionTask::begin_lines() const {
  std::vector<std::string> lines = ModelTask::begin_lines();
  const HeadConfig& head = folder_.head->config();
  lines.push_back(head.classifies() ? fmt::format("{} of {} classes", head.kind, head.classes.size())
                                    : fmt::format("{}: labels of mean {:.4g} and standard deviation {:.4g}",
                                                  head.kind, head.mean, head.scale));
  return lines;
}

nlohmann::json PredictionTask::fingerprints() const {
  nlohmann::json all = ModelTask::fingerprints();
  all["labels"] = train_labels_.fingerprint();
  all["held-out labels"] = valid_labels_ != nullptr ? valid_labels_->fingerprint() : 0;
  all["classes"] = folder_.head->config().classes;
  return all;
}

void PredictionTask::add_state(std::map<std::string, at::Tensor>& state) const {
  for (const auto& item : folder_.head->named_parameters())
    state[kPrefix + item.key()] = item.value().detach();
}

void PredictionTask::take_state(std::map<std::string, at::Tensor>& state, const std::string& source) {
  const at::NoGradGuard no_grad;
  for (const auto& item : folder_.head->named_parameters()) {
    const auto found = state.find(kPrefix + item.key());
    check<InputError>(found != state.end() && found->second.sizes().equals(item.value().sizes()),
                      "{}: the tensor '{}{}' is missing or of another shape", source, kPrefix, item.key());
    item.value().copy_(found->second);
    state.erase(found);
  }
}

}  // namespace performer::train
