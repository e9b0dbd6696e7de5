// SPDX-License-Identifier: Apache-2.0
// Attention by locality-sensitive hashing (Reformer, Kitaev et al. 2020, arXiv 2001.04451, section 2): exact
// softmax attention between tokens whose vectors fall into the same bucket.
#include <ATen/ATen.h>

#include <cmath>

#include "performer/base/error.h"
#include "performer/nn/attention/exact.h"
#include "performer/nn/attention/lsh_pattern.h"
#include "performer/nn/attention/own_kinds.h"
#include "performer/nn/attention/rows.h"
#include "performer/nn/attention/segments.h"
#include "performer/ops/projection.h"

namespace performer::nn {
namespace {

constexpr double kKeyNormEpsilon = 1e-6;  // added to the mean square of a query before it is normalised

struct LshOptions {
  int64_t rounds = 4;
  int64_t buckets = 32;
  int64_t chunk = 64;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("rounds", self.rounds, "independent hash rounds; a token sees what any of them finds");
    visit("buckets", self.buckets, "buckets of a round, an even number: near 2 length / chunk");
    visit("chunk", self.chunk,
          "tokens before it in its bucket that a token sees, and as many behind it when bidirectional");
  }
};

LshSizes sizes_of(const LshOptions& options, bool causal) {
  return {options.rounds, options.buckets, options.chunk, causal};
}

// Keys are queries of root mean square 1, so that q k / sqrt(D) is q with the unit vector of the other query.
at::Tensor keys_of(const at::Tensor& query) {
  const auto type = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor precise = query.to(type);
  return precise * (precise.square().mean(-1, /*keepdim=*/true) + kKeyNormEpsilon).rsqrt();
}

// All tokens, and their buckets int64 [B, H, T, R]; and the rotations that they were hashed with.
struct LshCache final : Cache {
  KeyValueCache tokens;
  at::Tensor buckets, rotations;

  std::unique_ptr<Cache> select(const at::Tensor& rows) const override {
    auto selected = std::make_unique<LshCache>();
    selected->tokens = tokens.select(rows);
    if (buckets.defined()) selected->buckets = buckets.index_select(0, rows);
    selected->rotations = rotations;
    return selected;
  }
};

class LshAttention final : public Attention {
 public:
  LshAttention(const AttentionConfig& config, const AttentionShape& shape)
      : sizes_(sizes_of(read_options<LshOptions>(config), shape.causal)), shape_(shape), seed_(config.seed) {
    projection_ = register_buffer("projection", draw(0));
  }

  at::Tensor forward(const ops::AttentionInputs& inputs) override {
    ops::AttentionInputs hashed = inputs;
    hashed.query = inputs.query.detach();
    const auto pattern = lsh_pattern(hashed, projection_, sizes_);
    const BlockSoftmax found =
        block_softmax(inputs.query, keys_of(inputs.query), inputs.value, scale(), pattern);
    // A token attends to itself where it sees nothing else.
    const at::Tensor rows = at::where(found.seen.unsqueeze(-1), found.rows, inputs.value);
    return hide_rows(hide_rows(rows, inputs.key_mask), inputs.query_mask);
  }

  at::Tensor rows(const ops::AttentionInputs& inputs, const RowRange& range) override {
    return rows_of_sequences(inputs, range, [&](const ops::AttentionInputs& sequence, const RowRange& some) {
      ops::AttentionInputs one = sequence;
      one.key = keys_of(one.query);
      const at::Tensor visible = visible_pairs(*lsh_pattern(one, projection_, sizes_), one, some);
      const at::Tensor alone = visible.any(-1, /*keepdim=*/true).logical_not();
      const at::Tensor itself =
          at::eye(one.value.size(1), visible.options()).narrow(0, some.first, some.count);
      const at::Tensor seen = visible.logical_or(alone.logical_and(itself));
      return without_hidden_tokens(score_rows(one, some, seen), one, some);
    });
  }

  std::unique_ptr<Cache> begin(int64_t) const override {
    auto cache = std::make_unique<LshCache>();
    cache->rotations = projection_.clone();
    return cache;
  }

  at::Tensor step(const at::Tensor& query, const at::Tensor& /*key*/, const at::Tensor& value,
                  Cache& cache) const override {
    auto& own = dynamic_cast<LshCache&>(cache);
    const at::Tensor before = own.buckets, buckets = hash(query, own.rotations);
    own.buckets = before.defined() ? at::cat({before, buckets}, 2) : buckets;
    own.tokens.append(keys_of(query).to(query.scalar_type()).unsqueeze(2), value.unsqueeze(2));
    if (!before.defined()) return value;
    // [B, H, t]: earlier tokens that are in the same bucket in some round, and among the last `chunk` there.
    const at::Tensor same = before == buckets;
    const at::Tensor behind = same.flip(2).cumsum(2).flip(2);
    const at::Tensor seen = same.logical_and(behind.le(sizes_.chunk)).any(-1);
    const at::Tensor alone = seen.any(-1, /*keepdim=*/true).logical_not();  // [B, H, 1]
    return at::where(alone, value, attend_to_seen(query, own.tokens, seen));
  }

  void redraw(int64_t index) override {
    const at::NoGradGuard no_grad;
    projection_.copy_(draw(index));
  }

 private:
  double scale() const { return 1 / std::sqrt(static_cast<double>(shape_.head_size)); }

  at::Tensor draw(int64_t index) const {
    return ops::draw_projection("iid", "chi", shape_.heads, sizes_.rounds * (sizes_.buckets / 2),
                                shape_.head_size, seed_, shape_.layer, index);
  }

  // Of the tokens before the last, those that `seen` [B, H, t] keeps; a round finds at most `chunk`.
  at::Tensor attend_to_seen(const at::Tensor& query, const KeyValueCache& tokens,
                            const at::Tensor& seen) const {
    const int64_t earlier = seen.size(2), most = sizes_.rounds * sizes_.chunk;
    const at::Tensor keys = tokens.keys.narrow(2, 0, earlier), values = tokens.values.narrow(2, 0, earlier);
    if (earlier <= most) return attend_among(query, keys, values, seen);
    const at::Tensor places = std::get<1>(seen.to(at::kByte).topk(most, -1));
    const at::Tensor index = places.unsqueeze(-1);
    return attend_among(query, at::take_along_dim(keys, index, 2), at::take_along_dim(values, index, 2),
                        seen.gather(2, places));
  }

  // query [B, H, D] -> [B, H, 1, R]
  at::Tensor hash(const at::Tensor& query, const at::Tensor& rotations) const {
    std::vector<at::Tensor> heads;
    for (int64_t head = 0; head < query.size(1); ++head) {
      const at::Tensor x = query.select(1, head).to(rotations.scalar_type());
      heads.push_back(lsh_buckets(x, rotations[head], sizes_));
    }
    return at::stack(heads, 1).unsqueeze(2);
  }

  LshSizes sizes_;
  AttentionShape shape_;
  int64_t seed_;
  at::Tensor projection_;  // buffer [H, R buckets / 2, D]: the rotations of all rounds
};

void validate_lsh(const AttentionConfig& config, const AttentionShape&) {
  const auto own = read_options<LshOptions>(config);
  const auto check_range = [](const char* key, int64_t value, int64_t smallest, int64_t largest) {
    check<UsageError>(value >= smallest && value <= largest, "attention.{} must be between {} and {}, not {}",
                      key, smallest, largest, value);
  };
  check_range("rounds", own.rounds, 1, 1024);
  check_range("buckets", own.buckets, 2, kLargestSize);
  check_range("chunk", own.chunk, 1, kLargestSize);
  check<UsageError>(
      own.buckets % 2 == 0,
      "attention.buckets must be even, since a direction and its opposite are two buckets, not {}",
      own.buckets);
}

}  // namespace

AttentionKind lsh_kind() {
  AttentionKind kind;
  kind.name = "lsh";
  kind.summary =
      "exact softmax attention between tokens that are hashed into the same bucket; queries serve as keys "
      "(Reformer)";
  kind.cost =
      "time in proportion to T rounds (2 chunk + buckets / 2), bidirectional 3 chunk; memory of a training "
      "step in proportion to T rounds; "
      "a stream keeps all keys and values";
  kind.group = KindGroup::baseline;
  kind.capabilities.streams = true;
  kind.capabilities.rows = true;
  kind.capabilities.own_keys = false;
  kind.capabilities.continuous = false;
  kind.capabilities.redraws = true;
  kind.options = kind_options<LshOptions>();
  kind.validate = validate_lsh;
  kind.make = [](const AttentionConfig& config, const AttentionShape& shape) {
    return std::make_shared<LshAttention>(config, shape);
  };
  kind.numbers = [](const AttentionConfig& config, const AttentionShape& shape) {
    const auto own = read_options<LshOptions>(config);
    return 2 * static_cast<double>(shape.heads) * static_cast<double>(shape.head_size) *
           static_cast<double>(own.rounds) * static_cast<double>(own.buckets);
  };
  return kind;
}

}  // namespace performer::nn
