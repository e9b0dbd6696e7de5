// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/attention/position_pattern.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>
#include <utility>

#include "performer/nn/attention/rows.h"
#include "performer/nn/attention/segments.h"

namespace performer::nn {
namespace {

using at::Tensor;

// A sequence within a row of the batch.
struct Span {
  int64_t first, tokens;
};

// Blocks of equal shape of all sequences of a row, as row numbers and as positions.
struct Gathered {
  std::vector<int64_t> query_rows, key_rows, query_positions, key_positions;
};

class SpansPattern final : public BlockPattern {
 public:
  SpansPattern(std::shared_ptr<const PositionLayout> layout, const ops::AttentionInputs& inputs)
      : layout_(std::move(layout)), tokens_(inputs.query.size(1)), device_(inputs.query.device()) {
    const int64_t rows = inputs.query.size(0);
    Tensor mask;
    if (inputs.key_mask) mask = inputs.key_mask->to(at::kCPU).contiguous();
    for (int64_t row = 0; row < rows; ++row) {
      const bool* kept = mask.defined() ? mask.const_data_ptr<bool>() + row * tokens_ : nullptr;
      spans_.push_back(spans_of(inputs, kept));
    }
    if (mask.defined()) {  // with a place for "no token"
      const Tensor no_token = at::zeros({rows, 1}, mask.options());
      hidden_keys_ = at::cat({mask, no_token}, 1).logical_not_().to(device_);
    }
  }

  void visit(int64_t row, int64_t head, const std::function<void(const BlockTile&)>& visit) const override {
    std::map<std::tuple<int, int64_t, int64_t>, Gathered> shapes;
    for (const Span& span : spans_[static_cast<size_t>(row)]) {
      for (const PositionBlocks& blocks : layout_->blocks(span.tokens, head)) {
        Gathered& all = shapes[{blocks.part, blocks.queries, blocks.keys}];
        append(all.query_rows, all.query_positions, blocks.query_positions, span.first);
        append(all.key_rows, all.key_positions, blocks.key_positions, span.first);
      }
    }
    for (const auto& [shape, blocks] : shapes) {
      const auto [part, queries, keys] = shape;
      visit_tiles(row, part, queries, keys, blocks, visit);
    }
  }

 private:
  // Tokens that are hidden at the end of a sequence are left out: where it ends is then the same with padding
  // and without.
  std::vector<Span> spans_of(const ops::AttentionInputs& inputs, const bool* kept) const {
    std::vector<Span> spans;
    const auto add = [&](int64_t first, int64_t end) {
      while (kept != nullptr && end > first && !kept[end - 1]) --end;
      if (end > first) spans.push_back({first, end - first});
    };
    if (!inputs.cu_query) {
      add(0, tokens_);
      return spans;
    }
    const auto bounds = inputs.cu_query->accessor<int64_t, 1>();
    for (int64_t n = 0; n + 1 < bounds.size(0); ++n) add(bounds[n], bounds[n + 1]);
    return spans;
  }

  void append(std::vector<int64_t>& rows, std::vector<int64_t>& positions, const std::vector<int64_t>& from,
              int64_t first) const {
    positions.insert(positions.end(), from.begin(), from.end());
    for (const int64_t position : from) rows.push_back(position < 0 ? tokens_ : first + position);
  }

  void visit_tiles(int64_t row, int part, int64_t queries, int64_t keys, const Gathered& blocks,
                   const std::function<void(const BlockTile&)>& visit) const {
    const int64_t count = static_cast<int64_t>(blocks.query_rows.size()) / queries;
    const auto tensor = [&](const std::vector<int64_t>& numbers, int64_t size) {
      return at::tensor(numbers, at::kLong).to(device_).view({count, size});
    };
    const Tensor query_rows = tensor(blocks.query_rows, queries), key_rows = tensor(blocks.key_rows, keys),
                 i = tensor(blocks.query_positions, queries).to(at::kInt).unsqueeze(2),
                 j = tensor(blocks.key_positions, keys).to(at::kInt).unsqueeze(1);
    const int64_t at_a_time = std::max<int64_t>(1, kTileWeights / (queries * keys));
    for (int64_t first = 0; first < count; first += at_a_time) {
      const auto some = [&](const Tensor& x) {
        return x.narrow(0, first, std::min(at_a_time, count - first));
      };
      BlockTile tile{some(query_rows), some(key_rows), {}};
      tile.hidden = layout_->visible(part, some(i), some(j))
                        .logical_not_()
                        .logical_or_(hidden_keys(row, tile, some(j)));
      visit(tile);
    }
  }

  // Bool [N, 1, S]: keys that are masked or no token.
  Tensor hidden_keys(int64_t row, const BlockTile& tile, const Tensor& positions) const {
    if (!hidden_keys_.defined()) return positions.lt(0);
    return hidden_keys_.select(0, row).index_select(0, tile.key_rows.flatten()).view(positions.sizes());
  }

  std::shared_ptr<const PositionLayout> layout_;
  int64_t tokens_;
  at::Device device_;
  std::vector<std::vector<Span>> spans_;  // of each row
  Tensor hidden_keys_;                    // bool [B, T + 1], undefined without a mask
};

struct StreamedTokens final : Cache {
  KeyValueCache tokens;

  std::unique_ptr<Cache> select(const Tensor& rows) const override {
    auto selected = std::make_unique<StreamedTokens>();
    selected->tokens = tokens.select(rows);
    return selected;
  }
};

}  // namespace

void append_range(std::vector<int64_t>& positions, int64_t first, int64_t count, int64_t tokens) {
  for (int64_t position = first; position < first + count; ++position) {
    positions.push_back(position >= 0 && position < tokens ? position : -1);
  }
}

PositionBlocks neighbouring_blocks(int part, int64_t tokens, int64_t size, int64_t back, int64_t forward) {
  // A short sequence needs no block longer than itself.
  const int64_t block = std::min(size, tokens), group = back + 1 + forward;
  PositionBlocks blocks{part, block, std::min(group * size, tokens), {}, {}};
  for (int64_t first = 0; first < tokens; first += block) {
    append_range(blocks.query_positions, first, block, tokens);
    const int64_t from = blocks.keys == tokens ? 0 : first - back * block;
    append_range(blocks.key_positions, from, blocks.keys, tokens);
  }
  return blocks;
}

at::Tensor PositionAttention::forward(const ops::AttentionInputs& inputs) {
  const double scale = 1 / std::sqrt(static_cast<double>(inputs.query.size(3)));
  const auto pattern = std::make_shared<SpansPattern>(layout_, inputs);
  const Tensor rows = block_softmax(inputs.query, inputs.key, inputs.value, scale, pattern).rows;
  return hide_rows(hide_rows(rows, inputs.key_mask), inputs.query_mask);
}

at::Tensor PositionAttention::rows(const ops::AttentionInputs& inputs, const RowRange& range) {
  return rows_of_sequences(inputs, range, [&](const ops::AttentionInputs& one, const RowRange& some) {
    const Tensor visible = visible_pairs(SpansPattern(layout_, one), one, some);
    return without_hidden_tokens(score_rows(one, some, visible), one, some);
  });
}

std::unique_ptr<Cache> PositionAttention::begin(int64_t) const {
  return std::make_unique<StreamedTokens>();
}

at::Tensor PositionAttention::step(const Tensor& query, const Tensor& key, const Tensor& value,
                                   Cache& cache) const {
  KeyValueCache& tokens = dynamic_cast<StreamedTokens&>(cache).tokens;
  tokens.append(key.unsqueeze(2), value.unsqueeze(2));
  const int64_t heads = query.size(1);
  std::vector<std::vector<int64_t>> seen;
  size_t most = 0;
  for (int64_t head = 0; head < heads; ++head) {
    seen.push_back(layout_->seen_by(tokens.length - 1, head));
    most = std::max(most, seen.back().size());
  }
  std::vector<int64_t> places;
  for (std::vector<int64_t>& of_head : seen) {
    of_head.resize(most, -1);
    places.insert(places.end(), of_head.begin(), of_head.end());
  }
  const Tensor numbers = at::tensor(places, at::kLong).to(query.device()).view({1, heads, -1, 1});
  const Tensor index = numbers.clamp_min(0);
  const auto picked = [&](const Tensor& x) { return at::take_along_dim(x, index, 2); };
  return attend_among(query, picked(tokens.keys), picked(tokens.values), numbers.ge(0).squeeze(-1));
}

}  // namespace performer::nn
