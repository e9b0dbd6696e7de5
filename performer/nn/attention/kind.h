// SPDX-License-Identifier: Apache-2.0
// What an attention kind is, and the registry of all kinds.
//
// A kind takes queries, keys and values of each head and returns weighted values. Projections, positions and
// norms belong to the layer around it (performer/nn/attention.h). To add a kind, write one file that defines
// an Attention and a function that returns its AttentionKind, and one line in registry.cpp (or a call of
// register_kind() at run time).
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "performer/base/fields.h"
#include "performer/nn/config.h"
#include "performer/ops/favor.h"
#include "performer/ops/feature_maps.h"

namespace performer::nn {

// What a kind can do. Whoever needs one of these asks here and never by the name of the kind.
struct Capabilities {
  bool causal = true;         // each token sees itself and earlier ones
  bool bidirectional = true;  // each token sees all
  bool streams = false;       // can be fed one token at a time: begin() and step()
  bool chunks = false;        // goes on from a differentiable state of constant size: continue_from()
  bool cross = false;         // queries and keys of different sequences; with begin_cross() and read()
  bool grows = false;         // a kept context takes in further tokens: extend()
  bool quadratic = false;     // time grows with the square of the length, also of long sequences
  bool packed = true;         // segments side by side in one row (cu_query)
  bool masks = true;          // a mask of keys
  bool reads_queries = true;  // false: queries and keys are not computed at all
  bool own_keys = true;       // false: queries serve as keys, which are not computed
  bool continuous = true;     // false: rounding may change which tokens attend to each other
  bool redraws = false;       // has a random projection that redraw() replaces
  bool linear = false;        // linear attention: an estimate of, or a replacement for, softmax attention
  bool rows = false;          // gives rows of the matrix that it applies to the values: rows()
};

// Weights that the layers of one model share, by name: the first layer that asks makes and registers them.
using SharedWeights = std::map<std::string, at::Tensor>;

// For which layer a kind is made.
struct AttentionShape {
  int64_t heads = 1;
  int64_t head_size = 1;
  bool causal = true;                               // what forward() will be asked for
  int64_t layer = 0;                                // names random projections, together with attention.seed
  std::shared_ptr<SharedWeights> shared = nullptr;  // of the model; null for a layer on its own
};

// What streamed sequences have read so far. It belongs to a batch of sequences and holds everything that
// streaming needs, so that the module keeps nothing between calls: streams may be interleaved, and threads
// may share a module.
class Cache {
 public:
  virtual ~Cache() = default;
  // A copy that holds the sequences `rows` (int64) of this batch, in that order; a row may be named twice.
  virtual std::unique_ptr<Cache> select(const at::Tensor& rows) const = 0;
};

// Consecutive rows of a matrix of attention: those of the queries first .. first + count - 1.
struct RowRange {
  int64_t first = 0, count = 0;
};

class Attention : public torch::nn::Module {
 public:
  // query [B, T, H, D], key [B, S, H, D], value [B, S, H, E] -> [B, T, H, E]. Of `inputs` the masks,
  // cu_query, cu_key and causal are used; the state and return_state are for continue_from(). Rows that
  // query_mask hides come out as 0.
  virtual at::Tensor forward(const ops::AttentionInputs& inputs) = 0;

  // Streaming (Capabilities::streams): a cache of `batch` sequences without tokens, and their next tokens,
  // query and key [B, H, D], value [B, H, E] -> [B, H, E]. Without gradients. A cache keeps the projection
  // and the weights that it was begun with, whatever redraw() and optimizer steps do meanwhile.
  virtual std::unique_ptr<Cache> begin(int64_t batch) const;
  virtual at::Tensor step(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          Cache& cache) const;
  // The next T tokens at once, query and key [B, T, H, D], value [B, T, H, E] -> [B, T, H, E]: what T calls
  // of step() give, up to rounding. Kinds that have nothing better leave it at these calls.
  virtual at::Tensor advance(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                             Cache& cache) const;

  // As forward() and causal, from inputs.initial, with the state after the last token when
  // inputs.return_state (Capabilities::chunks). Differentiable in the state's kv and key_sum.
  virtual std::tuple<at::Tensor, ops::State> continue_from(const ops::AttentionInputs& inputs);

  // The state of keys alone, from which continue_from() goes on, also without `causal` and without keys of
  // its own (Capabilities::chunks). Differentiable.
  virtual ops::State key_state(const ops::KeyInputs& inputs);

  // Cross-attention of streamed sequences (Capabilities::cross): what is kept of a context, key
  // [B, S, H, D], value [B, S, H, E], and attention of query [B, T, H, D] to it.
  virtual std::unique_ptr<Cache> begin_cross(const at::Tensor& key, const at::Tensor& value,
                                             const std::optional<at::Tensor>& key_mask) const;
  virtual at::Tensor read(const at::Tensor& query, const Cache& cache) const;
  // Adds keys and values, unmasked, to a context of begin_cross() (Capabilities::grows): what read() then
  // gives is what it would give of one context of all of them, up to rounding. So a bidirectional model reads
  // a sequence of any length piece by piece: first all keys, then all queries.
  virtual void extend(const at::Tensor& key, const at::Tensor& value, Cache& cache) const;

  // Rows of the matrix that forward(inputs) applies to the values (Capabilities::rows): float64 [B, H, count,
  // S], computed in float64 and in memory of that size. Weights of keys that are masked, in other segments or
  // not yet seen are 0, as are the rows of masked queries; other rows add up to 1. Of inputs.value only the
  // number of tokens matters. Without gradients. Throws Error where the range leaves the queries.
  virtual at::Tensor rows(const ops::AttentionInputs& inputs, const RowRange& range);

  // Replaces random projections in place by draw number `index` (a fresh module has number 0).
  virtual void redraw(int64_t /*index*/) {}
  // Called after every optimizer step, for example to update running statistics.
  virtual void after_step() {}
  // Buffers that after_step() moves towards what was measured in the last training batch: running means over
  // its sequences.
  virtual std::vector<at::Tensor> statistics() const { return {}; }
  // Parameters of other layers that forward() reads (AttentionShape::shared).
  virtual std::vector<at::Tensor> borrowed() const { return {}; }
};

enum class KindGroup { own, baseline, reference };
const char* group_name(KindGroup group);  // "own", "baselines", "references"

struct AttentionKind {
  std::string name;
  std::string summary;  // one line for `performer info --kinds`
  // Time and memory of a head in terms of the tokens T of a sequence and the options; may be empty.
  std::string cost = {};
  KindGroup group = KindGroup::own;
  Capabilities capabilities = {};
  // What options change of them, where they do; may be empty.
  std::function<Capabilities(const AttentionConfig&)> configured = {};
  // The kind's own keys of the section [attention], with their defaults and help.
  std::vector<FieldInfo> options = {};
  // Whether one of its own options, or attention.seed, decides anything with the others as they are; empty:
  // all of its own do, and the seed does where there is a random projection.
  std::function<bool(const AttentionConfig&, const std::string& name)> reads = {};
  // Throws UsageError for options that are impossible or exclude each other; may be empty.
  std::function<void(const AttentionConfig&, const AttentionShape&)> validate = {};
  std::function<std::shared_ptr<Attention>(const AttentionConfig&, const AttentionShape&)> make = {};
  // At least as many numbers as make() holds at one time, those that the module keeps included, and not many
  // times more: a model is refused when its layers' sum is far beyond its weights (models/bounds.h). What
  // layers share, or take one after another, is layer 0's. Asked before a model of a configuration from
  // outside is built; empty for kinds that keep nothing.
  std::function<double(const AttentionConfig&, const AttentionShape&)> numbers = {};
  // The longest sequence in tokens; empty: any.
  std::function<int64_t(const AttentionConfig&)> longest = {};
  // The feature map, for kinds that are linear attention with a map of performer/ops/feature_maps.h.
  std::function<ops::FeatureMapOptions(const AttentionConfig&)> feature_map = {};
  // A sentence for the user of a model, where the kind decides something that the configuration does not
  // show; may be empty.
  std::function<std::string(const AttentionConfig&, const AttentionShape&)> notice = {};
};

// Adds a kind. Throws UsageError when the name is taken.
void register_kind(AttentionKind kind);
// Throws UsageError with the nearest known name for an unknown one.
const AttentionKind& find_kind(const std::string& name);
std::vector<std::string> kind_names();  // in the order of registration
// What the kind of a configuration can do with its options.
Capabilities capabilities_of(const AttentionConfig& config);
// The keys of [attention] that decide something in a model of this configuration, with their values: those of
// list_fields() without, for example, what belongs to a random projection where there is none.
std::vector<FieldInfo> fields_in_use(const std::string& section, const AttentionConfig& config);
// What there is to say about the kind of a configuration in a model, or "".
std::string notice_of(const ModelConfig& model, const AttentionConfig& attention);

// The longest sequence in tokens that the kind of a configuration takes, if there is a limit.
std::optional<int64_t> longest_of(const AttentionConfig& config);

// Whether a kind has an option of its own of that name.
bool has_option(const AttentionKind& kind, const std::string& name);

// Throws UsageError naming kind and capability unless `has` is true:
// require("favor-relu", caps.cross, "cross-attention", "choose exact").
void require(const std::string& kind, bool has, const std::string& capability, const std::string& cure);

// The checked module of a configuration.
std::shared_ptr<Attention> make_attention(const AttentionConfig& config, const AttentionShape& shape);

// A config struct's fields as the options of a kind.
template <class Options>
std::vector<FieldInfo> kind_options() {
  return list_fields("attention", Options{});
}
// The options that a configuration sets, and the defaults of the others.
template <class Options>
Options read_options(const AttentionConfig& config) {
  Options options;
  Options::fields(options, [&](const char* name, auto& value, const char*, const Choices& = {}) {
    const auto found = config.options.find(name);
    if (found != config.options.end()) {
      value = std::get<std::remove_cvref_t<decltype(value)>>(found->second);
    }
  });
  return options;
}

}  // namespace performer::nn
