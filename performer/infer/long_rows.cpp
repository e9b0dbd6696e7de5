// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/long_rows.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

namespace performer {
namespace {

constexpr int64_t kMostWaitingInMemory = int64_t{4} << 20;  // bytes a layer

}  // namespace

Pool::Pool(Pooling pooling, int64_t width) : pooling_(pooling) {
  values_ = pooling == Pooling::max ? at::full({width}, -std::numeric_limits<double>::infinity(), at::kDouble)
                                    : at::zeros({width}, at::kDouble);
}

void Pool::add(const at::Tensor& rows) {
  if (rows.size(0) == 0) return;
  const at::Tensor precise = rows.to(at::kDouble);
  if (pooling_ == Pooling::max) {
    values_ = at::maximum(values_, precise.amax(0));
  } else {
    values_ = values_ + precise.sum(0);
  }
  count_ += rows.size(0);
}

void Pool::merge(const ReadingRanks& ranks) {
  const at::Tensor count = at::full({1}, count_, at::kLong);
  ranks.all().sum(count);
  count_ = count.item<int64_t>();
  values_ = values_.clone();  // pools are copied, and copies share what they have begun with
  if (pooling_ == Pooling::max) {
    ranks.all().maximum(values_);
  } else {
    ranks.all().sum(values_);
  }
}

at::Tensor Pool::result() const {
  return (pooling_ == Pooling::mean ? values_ / count_ : values_).to(at::kFloat).unsqueeze(0);
}

void read_long(const LanguageModel& model, const at::Tensor& tokens, const ChunkedRequest& request,
               int64_t symbols, Pooling pooling, const ReadingRanks& ranks, const RowWriter& write) {
  const std::vector<int64_t>& layers = request.layers;
  std::vector<Pool> pools(layers.size(), Pool(pooling, model->model_config().width));
  represent_in_chunks(model, tokens, request, [&](int64_t layer, int64_t first, const at::Tensor& rows) {
    const int64_t place = std::ranges::lower_bound(layers, layer) - layers.begin();
    // Symbols are the tokens 1 .. symbols; `first` wants token 0.
    const bool marker = pooling == Pooling::first;
    const int64_t from = std::max<int64_t>(first, marker ? 0 : 1),
                  to = std::min(first + rows.size(0), marker ? 1 : symbols + 1);
    if (from >= to) return;
    const at::Tensor wanted = rows.narrow(0, from - first, to - from);
    if (pooling == Pooling::tokens) {
      write(from - 1, place, wanted);
    } else {
      pools[static_cast<size_t>(place)].add(wanted);
    }
  });
  if (pooling == Pooling::tokens) return;
  for (size_t place = 0; place < pools.size(); ++place) {
    if (request.slices) pools[place].merge(ranks);
    write(0, static_cast<int64_t>(place), pools[place].result());
  }
}

WaitingRows::WaitingRows(int64_t begin, int64_t rows, int64_t layers, int64_t width,
                         const std::string& folder)
    : begin_(begin) {
  for (int64_t place = 0; place < layers; ++place)
    layers_.push_back(std::make_unique<ActivationStore>(rows, width, folder, kMostWaitingInMemory));
}

void WaitingRows::write(int64_t first, int64_t place, const at::Tensor& values) {
  layers_[static_cast<size_t>(place)]->write(first - begin_, values);
}

at::Tensor WaitingRows::read(int64_t first, int64_t place, int64_t count) const {
  return layers_[static_cast<size_t>(place)]->read(first - begin_, count);
}

}  // namespace performer
