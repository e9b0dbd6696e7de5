// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/attention_study.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/base/printable.h"
#include "performer/studies/model_input.h"

namespace performer::studies {
namespace {

using at::Tensor;

constexpr int64_t kNumbersAtATime = int64_t{1} << 22;  // of a block of rows

std::vector<int64_t> chosen_of(const std::vector<int64_t>& asked, int64_t count, const char* what) {
  std::vector<int64_t> chosen = asked;
  std::sort(chosen.begin(), chosen.end());
  chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
  for (const int64_t each : chosen) {
    check<UsageError>(each >= 0 && each < count, "--{} {}: this model has {} {}, from 0 to {}", what, each,
                      count, what, count - 1);
  }
  if (chosen.empty()) {
    for (int64_t each = 0; each < count; ++each) chosen.push_back(each);
  }
  return chosen;
}

double as_number(const Tensor& tensor) {
  return tensor.item<double>();
}

// Sums over rows of one head's matrix [R, S], or of several.
class Sums {
 public:
  Sums(int64_t length, int64_t band) : length_(length), band_(band) {}

  // rows [N, R, S]: those from `first` on of N matrices.
  void add(const Tensor& rows, int64_t first) {
    const Tensor places = at::arange(length_, at::kDouble);
    const Tensor away =
        (places.unsqueeze(0) - places.narrow(0, first, rows.size(1)).unsqueeze(1)).abs();  // [R, S]
    const Tensor size = rows.abs();
    const Tensor shares = size / size.sum(-1, /*keepdim=*/true);
    const Tensor entropy = at::special_entr(shares).nan_to_num(0).sum(-1);  // [N, R]
    accumulate(weight_, rows.sum({-1, -2}));
    accumulate(size_, size.sum({-1, -2}));
    accumulate(near_, (rows * away.le(static_cast<double>(band_))).sum({-1, -2}));
    accumulate(distance_, (rows * away).sum({-1, -2}));
    accumulate(negative_, rows.clamp_max(0).abs().sum({-1, -2}));
    accumulate(entropy_, entropy.sum(-1));
    accumulate(attended_, entropy.exp().sum(-1));
    accumulate(columns_, rows.sum(-2));  // [N, S]
    rows_ += rows.size(1);
  }

  double near(int64_t n) const { return as_number(near_[n] / weight_[n]); }
  double distance(int64_t n) const { return as_number(distance_[n] / weight_[n]); }
  double negative(int64_t n) const { return as_number(negative_[n] / size_[n]); }
  double entropy(int64_t n) const { return as_number(entropy_[n]) / static_cast<double>(rows_); }
  double attended(int64_t n) const { return as_number(attended_[n]) / static_cast<double>(rows_); }
  double in_columns(int64_t n, int64_t count) const {
    return as_number(std::get<0>(columns_[n].topk(count)).sum() / weight_[n]);
  }

 private:
  static void accumulate(Tensor& sum, const Tensor& term) { sum = sum.defined() ? sum + term : term; }

  int64_t length_, band_, rows_ = 0;
  Tensor weight_, size_, near_, distance_, negative_, entropy_, attended_, columns_;
};

std::string label_of(const HeadStatistics& head, double threshold) {
  const auto stands_out = [&](double share, double uniform) {
    return share >= threshold && share >= 2 * uniform;
  };
  const bool diagonal = stands_out(head.diagonal, head.uniform_diagonal);
  const bool vertical = stands_out(head.vertical, head.uniform_vertical);
  if (diagonal && (!vertical || head.diagonal >= head.vertical)) return "diagonal";
  return vertical ? "vertical" : "diffuse";
}

// Attention to all visible tokens alike.
Tensor uniform_rows(int64_t first, int64_t count, int64_t length, bool causal) {
  Tensor rows = at::ones({1, count, length}, at::kDouble);
  if (causal) rows = rows.tril(first);
  return rows / rows.sum(-1, /*keepdim=*/true);
}

// Measures the layers that pass by in a forward pass.
class HeadMeasuring {
 public:
  HeadMeasuring(LanguageModel& model, const AttentionStudyOptions& options, AttentionStudy& study)
      : model_(model),
        options_(options),
        study_(study),
        causal_(model->model_config().objective == "causal"),
        layers_(chosen_of(options.layers, model->model_config().layers, "layers")),
        heads_(chosen_of(options.heads, model->model_config().heads, "heads")) {}

  void layer(int64_t layer, const nn::MultiHeadAttentionImpl::Heads& heads) {
    if (!std::binary_search(layers_.begin(), layers_.end(), layer)) return;
    const int64_t length = study_.length, count = study_.last_row - study_.first_row + 1;
    const int64_t all = model_->model_config().heads;
    const int64_t block = std::max<int64_t>(1, kNumbersAtATime / (length * all));
    const Tensor chosen = at::tensor(heads_, at::kLong);
    Sums sums(length, study_.band), uniform(length, study_.band);
    std::vector<BlockMean> pictures(heads_.size(), BlockMean(count, length, options_.picture_cells));
    std::vector<Tensor> kept;
    for (int64_t begin = 0; begin < count; begin += block) {
      const int64_t first = study_.first_row + begin, size = std::min(block, count - begin);
      const Tensor rows =
          model_->attention(layer)->rows(heads, {}, {first, size})[0].index_select(0, chosen).contiguous();
      sums.add(rows, first);
      uniform.add(uniform_rows(first, size, length, causal_), first);
      for (size_t h = 0; h < heads_.size(); ++h) {
        for (int64_t row = 0; row < size; ++row) {
          pictures[h].add(begin + row, rows[static_cast<int64_t>(h)][row].const_data_ptr<double>());
        }
      }
      if (count * length <= options_.matrix_tokens * options_.matrix_tokens)
        kept.push_back(rows.to(at::kFloat));
    }
    LayerAttention found;
    found.layer = layer;
    if (!kept.empty()) found.rows = at::cat(kept, 1);
    for (size_t h = 0; h < heads_.size(); ++h) {
      study_.heads.push_back(statistics(layer, static_cast<int64_t>(h), sums, uniform));
      found.pictures.maps.push_back(picture(pictures[h], study_.heads.back()));
    }
    describe(found);
    study_.layers.push_back(std::move(found));
  }

 private:
  HeadStatistics statistics(int64_t layer, int64_t h, const Sums& sums, const Sums& uniform) const {
    HeadStatistics head;
    head.layer = layer;
    head.head = heads_[static_cast<size_t>(h)];
    head.diagonal = sums.near(h);
    head.uniform_diagonal = uniform.near(0);
    head.vertical = sums.in_columns(h, study_.columns);
    head.uniform_vertical = uniform.in_columns(0, study_.columns);
    head.entropy = sums.entropy(h);
    head.attended = sums.attended(h);
    head.uniform_attended = uniform.attended(0);
    head.distance = sums.distance(h);
    head.uniform_distance = uniform.distance(0);
    head.negative = sums.negative(h);
    head.label = label_of(head, options_.threshold);
    return head;
  }

  HeatMap picture(const BlockMean& means, const HeadStatistics& head) const {
    HeatMap map;
    map.caption = fmt::format("head {}: {}", head.head, head.label);
    map.note = fmt::format("band {:.0f} %, columns {:.0f} %, {:.3g} tokens attended", 100 * head.diagonal,
                           100 * head.vertical, head.attended);
    map.rows = means.rows();
    map.columns = means.columns();
    map.values = means.means();
    const auto [least, most] = std::minmax_element(map.values.begin(), map.values.end());
    map.high = std::max({*most, -*least, 1e-12});
    map.low = *least < 0 ? -map.high : 0;
    map.root = true;
    map.row_names = {std::to_string(study_.first_row), std::to_string(study_.last_row)};
    map.column_names = {"0", std::to_string(study_.length - 1)};
    return map;
  }

  void describe(LayerAttention& found) const {
    const HeatMap& first = found.pictures.maps.front();
    found.pictures.title = fmt::format("Attention of layer {} in {}", found.layer, shown(study_.id, 40));
    found.pictures.description = fmt::format(
        "{} matrices of attention: rows are the tokens that look ({} to {}), columns the tokens looked at (0 "
        "to {}). "
        "A cell is the mean of {:.3g} x {:.3g} weights; colour goes with its square root, up to the largest "
        "of the "
        "head.",
        found.pictures.maps.size(), study_.first_row, study_.last_row, study_.length - 1,
        static_cast<double>(study_.last_row - study_.first_row + 1) / static_cast<double>(first.rows),
        static_cast<double>(study_.length) / static_cast<double>(first.columns));
    for (const HeatMap& map : found.pictures.maps) {
      found.pictures.description += fmt::format(" {}, {}.", map.caption, map.note);
    }
  }

  LanguageModel& model_;
  const AttentionStudyOptions& options_;
  AttentionStudy& study_;
  bool causal_;
  std::vector<int64_t> layers_, heads_;
};

void check_options(const AttentionStudyOptions& options) {
  check<UsageError>(options.near > 0 && options.near < 1, "--near must be between 0 and 1, not {}",
                    options.near);
  check<UsageError>(options.threshold > 0 && options.threshold <= 1,
                    "--threshold must be above 0 and at most 1, not {}", options.threshold);
  check<UsageError>(options.matrix_tokens >= 1 && options.picture_cells >= 1,
                    "--matrix-tokens and --cells must be at least 1, not {} and {}", options.matrix_tokens,
                    options.picture_cells);
}

}  // namespace

AttentionStudy attention_study(LanguageModel& model, const data::Vocabulary& vocabulary,
                               const data::Record& record, const AttentionStudyOptions& options) {
  check_options(options);
  const at::NoGradGuard no_grad;
  model->eval();
  const std::vector<int64_t> tokens =
      model_input(model->model_config().objective, vocabulary, record.tokens, /*whole=*/true);
  AttentionStudy study;
  study.id = record.id.empty() ? fmt::format("sequence {}", record.number) : record.id;
  study.length = std::ssize(tokens);
  study.tokens = vocabulary.decode(std::span(tokens));
  study.first_row = options.first_row;
  study.last_row = options.last_row < 0 ? study.length - 1 : options.last_row;
  check<UsageError>(
      study.first_row >= 0 && study.first_row <= study.last_row && study.last_row < study.length,
      "--rows {}:{}: the model reads {} tokens of {}, numbered 0 (begin marker) to {}", study.first_row,
      study.last_row, study.length, study.id, study.length - 1);
  const double near = options.near * static_cast<double>(study.length);
  study.band = std::max<int64_t>(1, static_cast<int64_t>((near - 1) / 2));
  study.columns = std::clamp<int64_t>(static_cast<int64_t>(near), 1, study.length);
  HeadMeasuring measuring(model, options, study);
  const auto observer = [&](int64_t layer, const Tensor& query, const Tensor& key, const Tensor& value) {
    measuring.layer(layer, {query, key, value});
  };
  observe_during(model, observer, [&] { model->hidden(as_batch(tokens)); });
  return study;
}

nlohmann::ordered_json to_json(const AttentionStudy& study) {
  nlohmann::ordered_json json = {{"id", printable(study.id)},
                                 {"length", study.length},
                                 {"tokens", printable(study.tokens)},
                                 {"rows", {study.first_row, study.last_row}},
                                 {"band", study.band},
                                 {"columns", study.columns},
                                 {"heads", nlohmann::ordered_json::array()}};
  for (const HeadStatistics& head : study.heads) {
    json["heads"].push_back({{"layer", head.layer},
                             {"head", head.head},
                             {"label", head.label},
                             {"diagonal", head.diagonal},
                             {"uniform_diagonal", head.uniform_diagonal},
                             {"vertical", head.vertical},
                             {"uniform_vertical", head.uniform_vertical},
                             {"entropy", head.entropy},
                             {"attended", head.attended},
                             {"uniform_attended", head.uniform_attended},
                             {"distance", head.distance},
                             {"uniform_distance", head.uniform_distance},
                             {"negative", head.negative}});
  }
  return json;
}

std::string to_text(const AttentionStudy& study) {
  std::string text = fmt::format(
      "{}: {} tokens, band |i - j| <= {}, {} heaviest columns\n{:>5} {:>4}  {:<9}{:>9}{:>10}{:>10}{:>10}\n",
      printable(study.id), study.length, study.band, study.columns, "layer", "head", "label", "diagonal",
      "vertical", "attended", "distance");
  for (const HeadStatistics& head : study.heads) {
    text += fmt::format("{:>5} {:>4}  {:<9}{:>9.3f}{:>10.3f}{:>10.1f}{:>10.1f}\n", head.layer, head.head,
                        head.label, head.diagonal, head.vertical, head.attended, head.distance);
  }
  if (study.heads.empty()) return text;
  const HeadStatistics& any = study.heads.front();
  return text + fmt::format("{:>5} {:>4}  {:<9}{:>9.3f}{:>10.3f}{:>10.1f}{:>10.1f}\n", "", "", "uniform",
                            any.uniform_diagonal, any.uniform_vertical, any.uniform_attended,
                            any.uniform_distance);
}

}  // namespace performer::studies
