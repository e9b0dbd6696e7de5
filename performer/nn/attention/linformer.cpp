// SPDX-License-Identifier: Apache-2.0
// Linformer (Wang et al. 2020, arXiv 2006.04768): the keys and values of a sequence are projected along its
// length to k rows, to which all queries attend.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "performer/base/error.h"
#include "performer/nn/attention/own_kinds.h"
#include "performer/nn/attention/segments.h"
#include "performer/ops/projection.h"

namespace performer::nn {
namespace {

using at::Tensor;

struct LinformerOptions {
  int64_t length = 1024;
  int64_t rank = 256;
  std::string reduce = "learned";
  std::string sharing = "none";
  double delta = 1e-6;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit(
        "length", self.length,
        "the longest sequence in tokens, markers included: the projections have a column for each, so it is "
        "fixed when training begins");
    visit("rank", self.rank, "k: rows that keys and values are projected to");
    visit("reduce", self.reduce,
          "learned projections; mean or convolution of length / rank neighbouring tokens; random projections "
          "that are redrawn, as in the paper's theorem 2",
          Choices{"learned", "mean", "convolution", "random"});
    visit("sharing", self.sharing,
          "of weights: none; heads: one projection of keys and one of values for all heads; kv: one for both "
          "and all heads; layers: one for the whole model",
          Choices{"none", "heads", "kv", "layers"});
    visit("delta", self.delta,
          "random only: keys are projected by delta R, values by exp(-delta) R, R of variance 1 / rank");
  }
};

int64_t pool_size(const LinformerOptions& options) {
  return (options.length + options.rank - 1) / options.rank;
}
bool has_weights(const LinformerOptions& options) {
  return options.reduce == "learned" || options.reduce == "convolution";
}

// Keys or values [B, H, k, D] that stand for those of a sequence, and which of them exist: bool [B, k],
// undefined: all.
struct Reduced {
  Tensor key, value, exists;
};

struct LinformerContext final : Cache {
  Reduced context;

  std::unique_ptr<Cache> select(const Tensor& rows) const override {
    auto selected = std::make_unique<LinformerContext>();
    const auto some = [&](const Tensor& x) { return x.defined() ? x.index_select(0, rows) : x; };
    selected->context = {some(context.key), some(context.value), some(context.exists)};
    return selected;
  }
};

// weights [Hw, R, N] and x [B, N, H, D] -> [B, H, R, D], for Hw = H, or 1: one for all heads.
Tensor project_length(const Tensor& weights, const Tensor& x) {
  const int64_t batch = x.size(0), heads = x.size(2), size = x.size(3);
  const Tensor apart = x.permute({2, 1, 0, 3}).to(weights.scalar_type());  // [H, N, B, D]
  if (weights.size(0) == 1) {
    const Tensor columns = apart.transpose(0, 1).reshape({x.size(1), heads * batch * size});
    return at::matmul(weights[0], columns).view({weights.size(1), heads, batch, size}).permute({2, 1, 0, 3});
  }
  const Tensor columns = apart.reshape({heads, x.size(1), batch * size});
  return at::bmm(weights, columns).view({heads, weights.size(1), batch, size}).permute({2, 0, 1, 3});
}

// x [B, N, ...] -> [B, ceil(N / size), size, ...], filled up with zeros.
Tensor pools_of(const Tensor& x, int64_t size) {
  std::vector<int64_t> missing = x.sizes().vec();
  missing[1] = (size - x.size(1) % size) % size;
  return at::cat({x, at::zeros(missing, x.options())}, 1).unflatten(1, {(x.size(1) + size - 1) / size, size});
}

// weights [Hw, S D, D] and pools [B, k, S, H, D] -> [B, H, k, D].
Tensor convolve(const Tensor& weights, const Tensor& pools) {
  const int64_t batch = pools.size(0), count = pools.size(1), heads = pools.size(3), size = pools.size(4);
  const Tensor rows = pools.permute({3, 0, 1, 2, 4})
                          .reshape({heads, batch * count, pools.size(2) * size})
                          .to(weights.scalar_type());
  const Tensor made =
      weights.size(0) == 1 ? at::matmul(rows.flatten(0, 1), weights[0]) : at::bmm(rows, weights);
  return made.view({heads, batch, count, size}).transpose(0, 1);
}

class LinformerAttention final : public Attention {
 public:
  LinformerAttention(const AttentionConfig& config, const AttentionShape& shape)
      : options_(read_options<LinformerOptions>(config)), shape_(shape), seed_(config.seed) {
    if (options_.reduce == "random") {
      projection_ = register_buffer("projection", draw(0));
    } else if (has_weights(options_)) {
      make_weights(shape.shared);
    }
  }

  Tensor forward(const ops::AttentionInputs& inputs) override {
    if (inputs.cu_query) {
      return attend_segments(inputs, [&](const ops::AttentionInputs& segment) { return forward(segment); });
    }
    const Tensor rows = attend(inputs.query, reduce(inputs.key, inputs.value, inputs.key_mask));
    return hide_rows(rows.to(inputs.value.scalar_type()), inputs.query_mask);
  }

  std::unique_ptr<Cache> begin_cross(const Tensor& key, const Tensor& value,
                                     const std::optional<Tensor>& key_mask) const override {
    const at::NoGradGuard no_grad;
    auto cache = std::make_unique<LinformerContext>();
    cache->context = reduce(key, value, key_mask);
    return cache;
  }

  Tensor read(const Tensor& query, const Cache& cache) const override {
    return attend(query, dynamic_cast<const LinformerContext&>(cache).context).to(query.scalar_type());
  }

  void redraw(int64_t index) override {
    if (!projection_.defined()) return;
    const at::NoGradGuard no_grad;
    projection_.copy_(draw(index));
  }

  std::vector<Tensor> borrowed() const override {
    return borrows_ ? std::vector<Tensor>{keys_} : std::vector<Tensor>{};
  }

 private:
  // Projections of N(0, 1 / k), the paper's theorem 2; convolutions as Glorot and Bengio's.
  Tensor initial_weights() const {
    const int64_t heads = options_.sharing == "none" ? shape_.heads : 1;
    if (options_.reduce == "learned") {
      return at::randn({heads, options_.rank, options_.length}) /
             std::sqrt(static_cast<double>(options_.rank));
    }
    const int64_t inner = pool_size(options_) * shape_.head_size;
    const double bound = std::sqrt(6.0 / static_cast<double>(inner + shape_.head_size));
    return at::rand({heads, inner, shape_.head_size}) * (2 * bound) - bound;
  }

  void make_weights(const std::shared_ptr<SharedWeights>& shared) {
    const bool one = options_.sharing == "kv" || options_.sharing == "layers";
    const char* name = one ? "both" : "keys";
    if (options_.sharing == "layers" && shared) {
      Tensor& held = (*shared)["linformer"];
      borrows_ = held.defined();
      if (!borrows_) held = register_parameter(name, initial_weights());
      keys_ = values_ = held;
      return;
    }
    keys_ = register_parameter(name, initial_weights());
    values_ = one ? keys_ : register_parameter("values", initial_weights());
  }

  // Projections are drawn for each head, or once with any sharing.
  Tensor draw(int64_t index) const {
    const int64_t heads = options_.sharing == "none" ? shape_.heads : 1,
                  layer = options_.sharing == "layers" ? 0 : shape_.layer;
    return ops::draw_projection("iid", "chi", heads, options_.rank, options_.length, seed_, layer, index) /
           std::sqrt(static_cast<double>(options_.rank));
  }

  Reduced reduce(const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask) const {
    const int64_t tokens = key.size(1);
    check<UsageError>(
        tokens <= options_.length,
        "attention.kind = linformer takes sequences of at most attention.length = {} tokens, but "
        "this one has {}: train with a larger attention.length, or cut the sequence",
        options_.length, tokens);
    const Tensor k = hide_rows(key, mask), v = hide_rows(value, mask);
    if (options_.reduce == "random") {
      const Tensor columns = projection_.narrow(2, 0, tokens);
      return {project_length(columns * options_.delta, k),
              project_length(columns * std::exp(-options_.delta), v),
              {}};
    }
    if (options_.reduce == "learned") {
      return {
          project_length(keys_.narrow(2, 0, tokens), k), project_length(values_.narrow(2, 0, tokens), v), {}};
    }
    return pool(k, v, mask);
  }

  Reduced pool(const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask) const {
    const int64_t size = pool_size(options_);
    const Tensor k = pools_of(key, size), v = pools_of(value, size);
    const Tensor kept = mask ? *mask : at::ones({key.size(0), key.size(1)}, key.options().dtype(at::kBool));
    const Tensor count = pools_of(kept, size).sum(-1);  // [B, k]
    const Tensor exists = mask ? count.gt(0) : Tensor();
    if (options_.reduce == "convolution") {
      check<UsageError>(value.size(3) == shape_.head_size,
                        "attention.reduce = convolution needs values of the head size {}, not {}",
                        shape_.head_size, value.size(3));
      return {convolve(keys_, k), convolve(values_, v), exists};
    }
    const auto mean = [&](const Tensor& pools) {  // float16 has no numbers for large sums
      const auto type = pools.scalar_type() == at::kHalf ? at::kFloat : pools.scalar_type();
      const Tensor divisor = count.clamp_min(1).to(type).unsqueeze(-1).unsqueeze(-1);
      return (pools.to(type).sum(2) / divisor).transpose(1, 2);
    };
    return {mean(k), mean(v), exists};
  }

  Tensor attend(const Tensor& query, const Reduced& context) const {
    const Tensor q = query.transpose(1, 2).to(context.key.scalar_type());
    if (q.size(2) == 0 || context.key.size(2) == 0) {
      return at::zeros({q.size(0), q.size(2), q.size(1), context.value.size(3)}, context.value.options());
    }
    if (!context.exists.defined())
      return at::scaled_dot_product_attention(q, context.key, context.value).transpose(1, 2);
    // A row that sees nothing would be 0 / 0: it may see everything, and its result is dropped.
    const Tensor blind = context.exists.any(-1).logical_not();  // [B]
    const Tensor allowed = context.exists.logical_or(blind.unsqueeze(-1)).unsqueeze(1).unsqueeze(1);
    return at::scaled_dot_product_attention(q, context.key, context.value, allowed)
        .masked_fill(blind.view({blind.size(0), 1, 1, 1}), 0)
        .transpose(1, 2);
  }

  LinformerOptions options_;
  AttentionShape shape_;
  int64_t seed_;
  Tensor projection_;     // buffer [H or 1, k, N], or undefined
  Tensor keys_, values_;  // [H or 1, k, N], or of a convolution [H or 1, pool D, D]; the same one when shared
  bool borrows_ = false;  // the weights belong to another layer
};

void validate_linformer(const AttentionConfig& config, const AttentionShape&) {
  const auto own = read_options<LinformerOptions>(config);
  check<UsageError>(own.length >= 1 && own.length <= kLargestSize,
                    "attention.length must be between 1 and {}, not {}", kLargestSize, own.length);
  check<UsageError>(own.rank >= 1 && own.rank <= own.length,
                    "attention.rank must be between 1 and attention.length ({}), not {}", own.length,
                    own.rank);
  check<UsageError>(std::isfinite(own.delta), "attention.delta must be a finite number, not {}", own.delta);
}

double linformer_numbers(const AttentionConfig& config, const AttentionShape& shape) {
  const auto own = read_options<LinformerOptions>(config);
  const auto size = static_cast<double>(shape.head_size);
  if (own.reduce == "mean") return 0;
  const double of_head = own.reduce == "convolution"
                             ? static_cast<double>(pool_size(own)) * size * size
                             : static_cast<double>(own.rank) * static_cast<double>(own.length);
  const double matrix = own.sharing == "none" ? static_cast<double>(shape.heads) * of_head : of_head;
  // A layer makes one matrix at a time, in double precision where it is drawn; the first one's share is for
  // all.
  const double making = shape.layer == 0 ? 3 * matrix : 0;
  if (own.reduce == "random") return making + matrix;
  if (own.sharing == "layers") return shape.layer == 0 ? making + matrix : 0;
  return making + (own.sharing == "kv" ? matrix : 2 * matrix);
}

}  // namespace

AttentionKind linformer_kind() {
  AttentionKind kind;
  kind.name = "linformer";
  kind.summary = "softmax attention to keys and values projected along the length to k rows (Linformer)";
  kind.cost =
      "time and memory of a training step in proportion to T rank; its projections have length rank numbers";
  kind.group = KindGroup::baseline;
  kind.capabilities.causal = false;
  kind.capabilities.cross = true;
  kind.configured = [capabilities = kind.capabilities](const AttentionConfig& config) {
    Capabilities can = capabilities;
    can.redraws = read_options<LinformerOptions>(config).reduce == "random";
    return can;
  };
  kind.options = kind_options<LinformerOptions>();
  kind.validate = validate_linformer;
  kind.make = [](const AttentionConfig& config, const AttentionShape& shape) {
    return std::make_shared<LinformerAttention>(config, shape);
  };
  kind.numbers = linformer_numbers;
  kind.longest = [](const AttentionConfig& config) { return read_options<LinformerOptions>(config).length; };
  return kind;
}

}  // namespace performer::nn
