// SPDX-License-Identifier: Apache-2.0
// KernelAttention's own attention: what the reference's options mean, without its faults.
#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "performer/base/error.h"
#include "performer/references/keras/kernel_attention.h"

namespace performer::references::keras {
namespace kernel_own {  // file-local in effect; a name because sources are compiled together
namespace {

using at::Tensor;

constexpr double kReluEpsilon = 1e-3;
const double kReferenceLength = std::log(512.0);  // at which scale_by_length changes nothing

Tensor factor_of_length(const Tensor& keys) {
  return keys.clamp_min(1).log() / kReferenceLength;  // rows without keys are zero whatever their factor
}

// Rows `begin`.. of the call, [B, count, H, E], zero where the mask of all rows says so.
Tensor masked_rows(const Tensor& x, const std::optional<Tensor>& query_mask, int64_t begin, int64_t count) {
  if (!query_mask) return x;
  const Tensor out = query_mask->narrow(1, begin, count).logical_not();
  return x.masked_fill(out.unsqueeze(-1).unsqueeze(-1), 0);
}

Tensor scores_of(const Tensor& query, const Tensor& key) {
  return at::einsum("bthd,bshd->bhts", {query, key});
}

// Weighted means over the tokens of x [B, T, H, D] of x and |x|^2: [B, H, D] and [B, H].
struct Means {
  Tensor value, square;
};

Means means(const Tensor& x, const Tensor& weights) {
  const Tensor total = weights.sum(1).clamp_min(1e-30).unsqueeze(-1);  // [B, 1]
  return {at::einsum("bthd,bt->bhd", {x, weights}) / total.unsqueeze(-1),
          at::einsum("bthd,bt->bh", {x.square(), weights}) / total};
}

// Tokens of a call as whole chunks.
struct Layout {
  int64_t front = 0, back = 0;  // tokens of padding
  int64_t chunks = 0;
};

Layout layout_of(const KernelAttentionOptions& options, int64_t tokens, const KernelCache& cache) {
  check<UsageError>(!cache.closed, "the sequence ended with an incomplete chunk; start with a new cache");
  const int64_t size = options.causal_chunk_length, over = tokens % size;
  Layout layout;
  if (over != 0) {
    const bool front = options.causal_padding == "left" && cache.chunks == 0;
    check<UsageError>(front || options.causal_padding == "right",
                      "{} tokens cannot be cut into chunks of {}: {}", tokens, size,
                      options.causal_padding == "left"
                          ? "with causal_padding left only the first call of a sequence may be incomplete"
                          : "use causal_padding left or right");
    (front ? layout.front : layout.back) = size - over;
  }
  layout.chunks = (tokens + layout.front + layout.back) / size;
  return layout;
}

// `fill` before and after the tokens of x [B, T, ...].
Tensor padded(const Tensor& x, const Layout& layout, double fill = 0) {
  if (layout.front + layout.back == 0) return x;
  std::vector<int64_t> amounts(static_cast<size_t>(2 * (x.dim() - 1)), 0);
  amounts[amounts.size() - 2] = layout.front;
  amounts[amounts.size() - 1] = layout.back;
  return at::constant_pad_nd(x, amounts, fill);
}

Tensor appended(const Tensor& before, const Tensor& after) {
  return before.defined() ? at::cat({before, after}, 1) : after;
}

Tensor ending(const Tensor& x, int64_t count) {  // the last `count` of dimension 1; undefined for none
  return count == 0 ? Tensor()
                    : x.narrow(1, std::max<int64_t>(0, x.size(1) - count), std::min(count, x.size(1)));
}

// What a windowed call works with.
struct Run {
  Layout layout;
  int64_t chunk, window;  // window 0: all chunks
  double log_decay;
  bool pairs;                            // windows shorter than a row of the sums: from single keys
  Tensor query, key, value, log_weight;  // whole chunks; key, value and weight with those kept before
  Tensor factor;                         // [B, tokens, 1, 1] of scale_by_length, undefined without
};

windowed::Features cut(const windowed::Features& x, int64_t chunk) {
  return {x.values.unflatten(1, {x.values.size(1) / chunk, chunk}), x.logarithms};
}

Tensor cut(const Tensor& x, int64_t chunk) {
  return x.unflatten(1, {x.size(1) / chunk, chunk});
}

Tensor by_pairs(const Run& run, const windowed::Features& query, const windowed::Features& key) {
  const int64_t count = run.layout.chunks;
  const auto gather = [&](const Tensor& x, double fill) {
    return windowed::window_tokens(cut(x, run.chunk), run.window, count, fill);
  };
  const Tensor age = at::arange(run.window - 1, -1, -1, run.log_weight.options())
                         .repeat_interleave(run.chunk);  // of each token of a window, in chunks
  const Tensor log_weight = gather(run.log_weight, windowed::kLogZero) + age * run.log_decay;
  return windowed::pair_attention(cut(query, run.chunk), {gather(key.values, 0), key.logarithms},
                                  gather(run.value, 0), log_weight)
      .flatten(1, 2);
}

Tensor by_sums(const Run& run, const windowed::Features& query, const windowed::Features& key,
               KernelCache& cache) {
  const int64_t count = run.layout.chunks;
  const auto latest = [&](const Tensor& x) { return cut(ending(x, count * run.chunk), run.chunk); };
  const windowed::Sums own =
      windowed::chunk_sums({latest(key.values), key.logarithms}, latest(run.value), latest(run.log_weight));
  const windowed::Sums every = windowed::joined(cache.sums, own);
  const int64_t window = run.window == 0 ? every.kv.size(1) : run.window;
  const windowed::Sums seen = windowed::last(windowed::window_sums(every, window, run.log_decay), count);
  if (run.window == 0) {
    cache.sums = windowed::last(seen, 1);
  } else {
    cache.sums = run.window == 1 ? windowed::Sums() : windowed::last(every, run.window - 1);
  }
  return windowed::read_out(cut(query, run.chunk), seen).flatten(1, 2);
}

// Softmax of the first rows over the keys of their windows, decayed like them.
Tensor first_rows(const Run& run, const Tensor& query, int64_t chunks_before, double scale) {
  const Tensor q =
      run.factor.defined() ? query * run.factor.narrow(1, run.layout.front, query.size(1)) : query;
  const auto options = run.log_weight.options();
  const int64_t kept = run.key.size(1) / run.chunk - run.layout.chunks;
  const Tensor query_chunk =
      at::floor((at::arange(query.size(1), options) + run.layout.front) / run.chunk) + chunks_before;
  const Tensor key_chunk =
      at::floor(at::arange(run.key.size(1), options) / run.chunk) + (chunks_before - kept);
  const Tensor age = query_chunk.unsqueeze(-1) - key_chunk;
  Tensor outside = age.lt(0);
  if (run.window > 0) outside = outside.logical_or(age.ge(run.window));
  const Tensor band = (age * run.log_decay).masked_fill(outside, windowed::kLogZero);
  return windowed::softmax_attention(scores_of(q * scale, run.key),
                                     run.log_weight.unsqueeze(1).unsqueeze(1) + band, run.value);
}

// Causal linear attention by the fused kernel, from the cached sums on.
Tensor token_by_token(const Run& run, const ops::FeatureMap& map, const Tensor& query, const Tensor& key,
                      const std::optional<Tensor>& key_mask, bool keeps, KernelCache& cache) {
  const bool exponential = map.family == "exponential";
  ops::AttentionInputs inputs;
  inputs.query = query;
  inputs.key = ending(key, query.size(1));
  inputs.value = ending(run.value, query.size(1));
  inputs.causal = true;
  inputs.key_mask = key_mask;
  inputs.return_state = keeps;
  if (cache.sums.defined()) {
    const windowed::Sums& sums = cache.sums;
    const Tensor factor = exponential ? at::ones_like(sums.log_scale) : sums.log_scale.exp();
    inputs.initial =
        ops::State{(sums.kv * factor.unsqueeze(-1)).squeeze(1), (sums.key_sum * factor).squeeze(1),
                   exponential ? sums.log_scale.squeeze(1) : at::zeros_like(sums.key_sum.squeeze(1))};
  }
  const auto [out, state] = ops::favor_attention(inputs, map);
  if (keeps) {
    const Tensor scale = state.log_scale.unsqueeze(1);
    cache.sums = {state.kv.unsqueeze(1), state.key_sum.unsqueeze(1),
                  exponential ? scale : at::zeros_like(scale.narrow(2, 0, 1).narrow(3, 0, 1))};
  }
  return out;
}

// The call's tokens with those kept before, in whole chunks.
Run make_run(const KernelAttentionOptions& options, const Tensor& query, const Tensor& key,
             const Tensor& value, const Tensor& log_weight, const KernelCache& cache) {
  const double decay = options.causal_window_decay.value_or(1);
  Run run;
  run.layout = layout_of(options, query.size(1), cache);
  run.chunk = options.causal_chunk_length;
  run.window = decay == 0 ? 1 : options.causal_window_length;  // 0^0 = 1: the own chunk only
  run.log_decay = decay == 0 ? 0 : std::log(decay);
  run.pairs = run.window > 0 && run.window * run.chunk <= options.value_dim;
  run.query = padded(query, run.layout);
  run.key = appended(cache.key, padded(key, run.layout));
  run.value = appended(cache.value, padded(value, run.layout));
  run.log_weight = appended(cache.log_weight, padded(log_weight, run.layout, windowed::kLogZero));
  return run;
}

// Factors of scale_by_length. The length that a token knows is what it sees, not that of the sequence.
void count_keys(Run& run, KernelCache& cache) {
  const int64_t chunks = run.layout.chunks;
  const Tensor latest = ending(run.log_weight, chunks * run.chunk).exp();
  const Tensor every = appended(cache.counts, cut(latest, run.chunk).sum(-1));
  const Tensor seen = windowed::window_sums(every, run.window == 0 ? every.size(1) : run.window);
  cache.counts = run.window == 0 ? ending(seen, 1) : ending(every, run.window - 1);
  const Tensor factor = factor_of_length(ending(seen, chunks)).repeat_interleave(run.chunk, 1);
  run.factor = factor.unsqueeze(-1).unsqueeze(-1).to(run.query.scalar_type());
}

void keep_tokens(const Run& run, int64_t tokens, int64_t begin_kernel, KernelCache& cache) {
  cache.tokens += tokens;
  cache.chunks += run.layout.chunks;
  cache.closed = run.layout.back > 0;
  int64_t keep = run.pairs ? (run.window - 1) * run.chunk : 0;
  if (cache.tokens < begin_kernel) keep = run.key.size(1);  // rows by softmax are still to come
  cache.key = ending(run.key, keep);
  cache.value = ending(run.value, keep);
  cache.log_weight = ending(run.log_weight, keep);
}

}  // namespace
}  // namespace kernel_own

using at::Tensor;

KernelAttentionImpl::Call KernelAttentionImpl::prepare(const Heads& heads,
                                                       const KernelAttentionInputs& inputs) const {
  const Tensor& key = heads.key;
  Call call{inputs, {}, {}, {}};
  const at::ScalarType type = key.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  if (inputs.attention_mask) {
    const Tensor& mask = *inputs.attention_mask;
    check<UsageError>(mask.dim() == 2 && mask.size(0) == key.size(0) && mask.size(1) == key.size(1),
                      "attention_mask must be [{}, {}] (batch, keys), found [{}]", key.size(0), key.size(1),
                      fmt::join(mask.sizes(), ", "));
    call.log_weight = windowed::log_weights(mask, type);
    if (!mask.is_floating_point()) call.key_keep = mask.ne(0);
  } else {
    call.log_weight = at::zeros({key.size(0), key.size(1)}, key.options().dtype(type));
  }
  if (inputs.query_mask) {
    const Tensor& mask = *inputs.query_mask;
    check<UsageError>(mask.dim() == 2 && mask.size(0) == heads.query.size(0) &&
                          mask.size(1) == heads.query.size(1) && mask.scalar_type() == at::kBool,
                      "query_mask must be bool [{}, {}] (batch, queries), found {} [{}]", heads.query.size(0),
                      heads.query.size(1), c10::toString(mask.scalar_type()), fmt::join(mask.sizes(), ", "));
  }
  if (options_.scale_by_length && !options_.use_causal_windowed) {
    call.length_factor =
        kernel_own::factor_of_length(call.log_weight.exp().sum(-1)).to(key.scalar_type()).view({-1, 1, 1, 1});
  }
  return call;
}

Tensor KernelAttentionImpl::moment(const Heads& scaled, const Call& call) const {
  const at::NoGradGuard no_grad;
  const Tensor key_weights = call.log_weight.exp();
  const at::ScalarType type = key_weights.scalar_type();
  Tensor query_weights = at::ones({scaled.query.size(0), scaled.query.size(1)}, key_weights.options());
  if (call.inputs.query_mask) {
    const Tensor& mask = *call.inputs.query_mask;  // of all rows; begin_kernel may have taken the first
    query_weights = mask.slice(1, mask.size(1) - scaled.query.size(1)).to(type);
  }
  const kernel_own::Means q = kernel_own::means(scaled.query.to(type), query_weights),
                          k = kernel_own::means(scaled.key.to(type), key_weights);
  return (q.square + k.square + 2 * (q.value * k.value).sum(-1)).clamp_min(0);
}

// FAVOR++: exp(B u + A |w|^2 - |x|^2 / 2) is unbiased for every A < 1/8 when queries and keys share it; the
// best one depends on the moment. rho is written so that it needs no division by the moment.
ops::FeatureMap KernelAttentionImpl::feature_map(const Heads& scaled, const Call* call) const {
  const std::string& name = options_.feature_transform;
  ops::FeatureMap map;
  if (projection_.defined()) map.projection = projection_;
  if (name == "elu") map.family = "elu+1";
  if (name == "relu" || name == "square" || name == "identity") map.family = name;
  if (name == "relu") map.epsilon = kernel_own::kReluEpsilon;
  if (name == "expmod") map.norm_weight = 0;  // its exp(-sqrt(d) / 2) is common to all features
  if (name != "expplus") return map;
  const bool frozen = statistics_.ge(0).all().item<bool>();
  check<UsageError>(frozen || call != nullptr,
                    "expplus with windows needs statistics that do not reach beyond the present token: call "
                    "freeze_statistics(measure_statistics(inputs)) first");
  const Tensor phi = frozen ? statistics_ : moment(scaled, *call);  // [H] or [B, H]
  const auto d = static_cast<double>(options_.key_dim);
  const Tensor rho = 2 * d / (((2 * phi + d).square() + 8 * d * phi).sqrt() + 2 * phi + d);
  const Tensor a = (1 - 1 / rho) / 8;
  const Tensor w = projection_.to(a.scalar_type());
  map.projection = (1 - 4 * a).sqrt().unsqueeze(-1).unsqueeze(-1) * w;
  map.offset = a.unsqueeze(-1) * w.square().sum(-1);
  return map;
}

KernelAttentionImpl::Parts KernelAttentionImpl::attention(const Heads& heads, const Call& call) const {
  if (options_.use_causal_windowed) return windowed_attention(heads, call);
  const int64_t tokens = heads.query.size(1), first = std::min(options_.begin_kernel, tokens);
  Parts parts;
  const at::ScalarType type = heads.value.scalar_type();
  if (first > 0) {
    Tensor query = heads.query.narrow(1, 0, first) * scale_;
    if (call.length_factor.defined()) query = query * call.length_factor;
    const Tensor rows = windowed::softmax_attention(kernel_own::scores_of(query, heads.key),
                                                    call.log_weight.unsqueeze(1).unsqueeze(1), heads.value);
    parts.softmax = kernel_own::masked_rows(rows, call.inputs.query_mask, 0, first).to(type);
  }
  if (first < tokens || tokens == 0) {
    const Heads rest{heads.query.slice(1, first), heads.key, heads.value};
    const Tensor rows = options_.is_short_seq ? short_attention(rest, call) : long_attention(rest, call);
    parts.kernel = kernel_own::masked_rows(rows, call.inputs.query_mask, first, tokens - first).to(type);
  }
  return parts;
}

Tensor KernelAttentionImpl::long_attention(const Heads& heads, const Call& call) const {
  Heads scaled{heads.query * std::sqrt(scale_), heads.key * std::sqrt(scale_), heads.value};
  if (call.length_factor.defined()) {
    const Tensor root = call.length_factor.sqrt();
    scaled.query = scaled.query * root;
    scaled.key = scaled.key * root;
  }
  const ops::FeatureMap map = feature_map(scaled, &call);
  if (call.inputs.attention_mask && !call.key_keep.defined()) {  // weights: one chunk of all keys
    const windowed::Features k = windowed::features(scaled.key, map, false),
                             q = windowed::features(scaled.query, map, true);
    const windowed::Sums sums = windowed::chunk_sums({k.values.unsqueeze(1), k.logarithms},
                                                     scaled.value.unsqueeze(1), call.log_weight.unsqueeze(1));
    return windowed::read_out({q.values.unsqueeze(1), q.logarithms}, sums).squeeze(1);
  }
  ops::AttentionInputs inputs;
  inputs.query = scaled.query;
  inputs.key = scaled.key;
  inputs.value = scaled.value;
  if (call.key_keep.defined()) inputs.key_mask = call.key_keep;
  return std::get<0>(ops::favor_attention(inputs, map));
}

// The softmax makes scores of features a temperature, so exponential features need a scale that no other
// row and no masked key decides: a query's largest feature is 1, and so is the largest of the head's keys.
Tensor KernelAttentionImpl::short_attention(const Heads& heads, const Call& call) const {
  Heads scaled{heads.query * scale_, heads.key, heads.value};
  if (call.length_factor.defined()) scaled.query = scaled.query * call.length_factor;
  const ops::FeatureMap map = feature_map(scaled, &call);
  const windowed::Features queries = windowed::features(scaled.query, map, true),
                           keys = windowed::features(scaled.key, map, false);
  Tensor q = queries.values, k = keys.values;
  if (queries.logarithms) {
    const Tensor absent = call.log_weight.le(windowed::kLogZero / 2).unsqueeze(-1).unsqueeze(-1);
    const Tensor logs = k.masked_fill(absent, windowed::kLogZero);
    k = at::exp(logs - at::amax(logs, {1, 3}, /*keepdim=*/true));
    q = at::exp(q - at::amax(q, {-1}, /*keepdim=*/true));
  }
  Tensor scores = kernel_own::scores_of(q, k);
  if (projection_.defined()) scores = scores / static_cast<double>(options_.num_random_features);
  return windowed::softmax_attention(scores, call.log_weight.unsqueeze(1).unsqueeze(1), heads.value);
}

KernelAttentionImpl::Parts KernelAttentionImpl::windowed_attention(const Heads& heads,
                                                                   const Call& call) const {
  const int64_t tokens = heads.query.size(1);
  check<UsageError>(tokens == heads.key.size(1) && tokens >= 1,
                    "windowed attention needs as many keys as queries, at least one; found {} and {}",
                    heads.key.size(1), tokens);
  KernelCache fresh;
  KernelCache& cache = call.inputs.cache != nullptr ? *call.inputs.cache : fresh;
  kernel_own::Run run =
      kernel_own::make_run(options_, heads.query, heads.key, heads.value, call.log_weight, cache);
  if (options_.scale_by_length) kernel_own::count_keys(run, cache);
  const at::ScalarType type = heads.value.scalar_type();

  Parts parts;
  const int64_t first = std::clamp<int64_t>(options_.begin_kernel - cache.tokens, 0, tokens);
  if (first > 0) {
    const Tensor rows = kernel_own::first_rows(run, heads.query.narrow(1, 0, first), cache.chunks, scale_);
    parts.softmax = kernel_own::masked_rows(rows, call.inputs.query_mask, 0, first).to(type);
  }
  const double root = std::sqrt(scale_);
  Heads scaled{run.query * root, run.key * root, run.value};
  if (run.factor.defined()) scaled.query = scaled.query * run.factor;
  const ops::FeatureMap map = feature_map(scaled, nullptr);
  const bool weighted = call.inputs.attention_mask && !call.key_keep.defined();
  const bool by_token = run.window == 0 && run.chunk == 1 && run.log_decay == 0 && !weighted;
  Tensor out;
  if (by_token) {
    std::optional<Tensor> key_mask;
    if (call.key_keep.defined()) key_mask = call.key_keep;
    out = kernel_own::token_by_token(run, map, scaled.query, scaled.key, key_mask,
                                     call.inputs.cache != nullptr, cache);
  } else {
    const windowed::Features query = windowed::features(scaled.query, map, true),
                             key = windowed::features(scaled.key, map, false);
    out = run.pairs ? kernel_own::by_pairs(run, query, key) : kernel_own::by_sums(run, query, key, cache);
  }
  if (first < tokens) {
    const Tensor rows = out.narrow(1, run.layout.front + first, tokens - first);
    parts.kernel = kernel_own::masked_rows(rows, call.inputs.query_mask, first, tokens - first).to(type);
  }
  kernel_own::keep_tokens(run, tokens, options_.begin_kernel, cache);
  return parts;
}

Tensor KernelAttentionImpl::measure_statistics(const KernelAttentionInputs& inputs) {
  check<UsageError>(statistics_.defined(), "statistics belong to expplus in the default mode, not to {}{}",
                    options_.feature_transform, options_.compatible ? " in compatible mode" : "");
  check_inputs(inputs);
  const at::NoGradGuard no_grad;
  const Heads heads = project(inputs);
  const int64_t first = std::min(options_.begin_kernel, heads.query.size(1));
  const double of_query = options_.is_short_seq ? scale_ : std::sqrt(scale_),
               of_key = options_.is_short_seq ? 1 : std::sqrt(scale_);
  return moment({heads.query.slice(1, first) * of_query, heads.key * of_key, heads.value},
                prepare(heads, inputs))
      .mean(0);
}

void KernelAttentionImpl::freeze_statistics(const Tensor& statistics) {
  check<UsageError>(statistics_.defined(), "statistics belong to expplus in the default mode, not to {}{}",
                    options_.feature_transform, options_.compatible ? " in compatible mode" : "");
  check<UsageError>(statistics.sizes() == statistics_.sizes() &&
                        statistics.ge(0).logical_and(statistics.isfinite()).all().item<bool>(),
                    "statistics must be [{}], finite and not negative, found [{}]", options_.num_heads,
                    fmt::join(statistics.sizes(), ", "));
  const at::NoGradGuard no_grad;
  statistics_.copy_(statistics);
}

}  // namespace performer::references::keras
