// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/attention/lsh_pattern.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

namespace performer::nn {
namespace {

using at::Tensor;

// The tokens of one head, sorted in each round. A token's code is its rank in this order, plus a gap of more
// than a chunk for each change of bucket: two tokens see each other exactly when their codes differ by at
// most a chunk, in whichever round's order the question is asked.
struct SortedHead {
  Tensor order;  // int32 [R, N]: places of the N tokens that are not hidden
  Tensor codes;  // [R, T + 1], int32 or, for very long sequences, int64; far from all others for no token
};

// Places of tokens that are not hidden, each segment by itself.
using Segments = std::vector<std::vector<int64_t>>;

Segments segments_of(const ops::AttentionInputs& inputs, const bool* kept) {
  const int64_t tokens = inputs.query.size(1);
  Segments segments;
  const auto add = [&](int64_t first, int64_t end) {
    std::vector<int64_t> places;
    for (int64_t t = first; t < end; ++t) {
      if (kept == nullptr || kept[t]) places.push_back(t);
    }
    segments.push_back(std::move(places));
  };
  if (!inputs.cu_query) {
    add(0, tokens);
    return segments;
  }
  const auto bounds = inputs.cu_query->accessor<int64_t, 1>();
  for (int64_t n = 0; n + 1 < bounds.size(0); ++n) add(bounds[n], bounds[n + 1]);
  return segments;
}

// Sorts one round by counting. `buckets` has a stride of `rounds` from token to token.
void sort_round(const Segments& segments, const int64_t* buckets, int64_t rounds, const LshSizes& sizes,
                int64_t gap, int64_t* order, int64_t* codes) {
  std::vector<int64_t> next(static_cast<size_t>(sizes.buckets)), shift(next.size());
  int64_t rank = 0, gaps = 0;
  for (const std::vector<int64_t>& places : segments) {
    std::fill(next.begin(), next.end(), 0);
    const auto bucket_of = [&](int64_t place) { return static_cast<size_t>(buckets[place * rounds]); };
    for (const int64_t place : places) ++next[bucket_of(place)];
    for (size_t bucket = 0; bucket < next.size(); ++bucket) {
      const int64_t count = std::exchange(next[bucket], rank);
      shift[bucket] = gaps;
      if (count > 0) gaps += gap;
      rank += count;
    }
    for (const int64_t place : places) {
      const size_t bucket = bucket_of(place);
      const int64_t own = next[bucket]++;
      order[own] = place;
      codes[place] = own + shift[bucket];
    }
  }
}

class LshPattern final : public BlockPattern {
 public:
  LshPattern(const ops::AttentionInputs& inputs, const Tensor& rotations, const LshSizes& sizes)
      : sizes_(sizes), tokens_(inputs.query.size(1)), heads_(inputs.query.size(2)) {
    const int64_t rows = inputs.query.size(0);
    reach_ = std::min(sizes.chunk, std::max<int64_t>(tokens_, 1));
    Tensor mask;
    if (inputs.key_mask) mask = inputs.key_mask->to(at::kCPU).contiguous();
    std::vector<Segments> segments;
    for (int64_t row = 0; row < rows; ++row) {
      const bool* kept = mask.defined() ? mask.const_data_ptr<bool>() + row * tokens_ : nullptr;
      segments.push_back(segments_of(inputs, kept));
    }
    sorted_.resize(static_cast<size_t>(rows * heads_));
    at::parallel_for(0, rows * heads_, 1, [&](int64_t first, int64_t last) {
      const at::NoGradGuard no_grad;
      const c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
      for (int64_t unit = first; unit < last; ++unit) {
        const int64_t row = unit / heads_, head = unit % heads_;
        sorted_[static_cast<size_t>(unit)] = sort_head(inputs.query.select(0, row).select(1, head),
                                                       rotations[head], segments[static_cast<size_t>(row)]);
      }
    });
  }

  void visit(int64_t row, int64_t head, const std::function<void(const BlockTile&)>& visit) const override {
    const SortedHead& sorted = sorted_[static_cast<size_t>(row * heads_ + head)];
    const int64_t count = sorted.order.size(1), forward = sizes_.causal ? 0 : 1;
    if (count == 0) return;
    const int64_t blocks = (count + reach_ - 1) / reach_, keys = (2 + forward) * reach_;
    for (int64_t round = 0; round < sizes_.rounds; ++round) {
      // One block of no tokens before the first, and after the last what fills it up.
      Tensor order =
          at::full({(blocks + 1 + forward) * reach_}, tokens_, sorted.order.options().dtype(at::kLong));
      order.narrow(0, reach_, count).copy_(sorted.order[round]);
      const Tensor codes = sorted.codes.index_select(1, order);  // [R, ...] in this round's order
      const Tensor query_rows = order.narrow(0, reach_, blocks * reach_).view({blocks, reach_}),
                   key_rows = order.unfold(0, keys, reach_),
                   query_codes = codes.narrow(1, reach_, blocks * reach_).view({-1, blocks, reach_, 1}),
                   key_codes = codes.unfold(1, keys, reach_).unsqueeze(2);
      const int64_t at_a_time = std::max<int64_t>(1, kTileWeights / (reach_ * keys));
      for (int64_t first = 0; first < blocks; first += at_a_time) {
        const int64_t some = std::min(at_a_time, blocks - first);
        visit({query_rows.narrow(0, first, some), key_rows.narrow(0, first, some).contiguous(),
               hidden(round, query_codes.narrow(1, first, some), key_codes.narrow(1, first, some))});
      }
    }
  }

 private:
  SortedHead sort_head(const Tensor& query, const Tensor& rotations, const Segments& segments) const {
    const Tensor buckets =
        lsh_buckets(query.to(rotations.scalar_type()), rotations, sizes_).to(at::kCPU).contiguous();
    int64_t count = 0;
    for (const std::vector<int64_t>& places : segments) count += static_cast<int64_t>(places.size());
    const auto options = at::TensorOptions(at::kLong);
    const int64_t gap = reach_ + 1, most = (count + 1) * gap + count;
    Tensor order = at::empty({sizes_.rounds, count}, options);
    Tensor codes = at::full({sizes_.rounds, tokens_ + 1}, -gap - 1, options);  // of no token
    for (int64_t round = 0; round < sizes_.rounds; ++round) {
      sort_round(segments, buckets.const_data_ptr<int64_t>() + round, sizes_.rounds, sizes_, gap,
                 order.mutable_data_ptr<int64_t>() + round * count,
                 codes.mutable_data_ptr<int64_t>() + round * (tokens_ + 1));
    }
    const auto type = most < (int64_t{1} << 29) ? at::kInt : at::kLong;
    return {order.to(query.device(), at::kInt), codes.to(query.device(), type)};
  }

  // Whether the tokens of these codes do not see each other, [N, C, S].
  Tensor apart(const Tensor& query, const Tensor& key) const {
    if (!sizes_.causal) return (query - key).abs_().gt(reach_);
    // 1 <= query - key <= reach in one comparison.
    return (query * 2 - (reach_ + 1) - key * 2).abs_().gt(reach_ - 1);
  }

  Tensor hidden(int64_t round, const Tensor& query, const Tensor& key) const {
    Tensor hidden = apart(query[round], key[round]);
    for (int64_t earlier = 0; earlier < round; ++earlier) {  // counted there
      hidden.logical_or_(apart(query[earlier], key[earlier]).logical_not_());
    }
    hidden.diagonal(reach_, 1, 2).fill_(true);  // a token itself
    return hidden;
  }

  LshSizes sizes_;
  int64_t tokens_, heads_, reach_ = 1;
  std::vector<SortedHead> sorted_;  // of each row and head
};

}  // namespace

Tensor lsh_buckets(const Tensor& x, const Tensor& rotations, const LshSizes& sizes) {
  const Tensor rotated = at::mm(x, rotations.t()).unflatten(1, {sizes.rounds, sizes.buckets / 2});
  const auto [largest, of_largest] = rotated.max(-1);
  const auto [smallest, of_smallest] = rotated.min(-1);
  return at::where(largest >= smallest.neg(), of_largest, of_smallest + sizes.buckets / 2);
}

std::shared_ptr<const BlockPattern> lsh_pattern(const ops::AttentionInputs& inputs, const Tensor& rotations,
                                                const LshSizes& sizes) {
  return std::make_shared<LshPattern>(inputs, rotations, sizes);
}

}  // namespace performer::nn
