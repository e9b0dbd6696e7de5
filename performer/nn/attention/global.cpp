// SPDX-License-Identifier: Apache-2.0
// Windows, global tokens and random blocks: the pattern of Longformer (arXiv 2004.05150) and, with random
// blocks, of BigBird (arXiv 2007.14062, "internal transformer construction").
#include <ATen/ATen.h>

#include <algorithm>

#include "performer/base/error.h"
#include "performer/base/philox.h"
#include "performer/nn/attention/own_kinds.h"
#include "performer/nn/attention/position_pattern.h"

namespace performer::nn {
namespace {

struct GlobalOptions {
  int64_t window = 64;
  int64_t global_tokens = 16;
  int64_t random_blocks = 0;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("window", self.window,
          "a token sees so many tokens before it and, when bidirectional, as many after it");
    visit("global_tokens", self.global_tokens,
          "the first tokens of a sequence, which all see and, when bidirectional, which see all");
    visit("random_blocks", self.random_blocks,
          "blocks of `window` tokens beyond the window, drawn for each such block of queries by layer, head "
          "and attention.seed, that its tokens see");
  }
};

enum Part { kWindow, kToGlobal, kFromGlobal, kRandom };

// Parts: tokens within the window; the global tokens as keys, and as queries; random blocks. The global
// tokens are left out of the other parts.
class GlobalLayout final : public PositionLayout {
 public:
  GlobalLayout(const GlobalOptions& options, const AttentionConfig& config, const AttentionShape& shape)
      : window_(options.window),
        globals_(options.global_tokens),
        random_(options.random_blocks),
        seed_(static_cast<uint64_t>(config.seed)),
        layer_(static_cast<uint32_t>(shape.layer)),
        causal_(shape.causal) {}

  std::vector<PositionBlocks> blocks(int64_t tokens, int64_t head) const override {
    std::vector<PositionBlocks> all = {neighbouring_blocks(kWindow, tokens, window_, 1, causal_ ? 0 : 1)};
    const int64_t globals = std::min(globals_, tokens);
    if (globals > 0) all.push_back(to_globals(tokens, globals));
    if (globals > 0 && !causal_) all.push_back(from_globals(tokens, globals));
    const int64_t count = (tokens + window_ - 1) / window_, random = std::min(random_, count - 2);
    if (random > 0) {
      PositionBlocks part{kRandom, window_, random * window_, {}, {}};
      for (int64_t block = 0; block < count; ++block) {
        append_range(part.query_positions, block * window_, window_, tokens);
        std::vector<int64_t> chosen = draw(block, count, random, head);
        chosen.resize(static_cast<size_t>(random), count);  // a block that lies beyond the end
        for (const int64_t other : chosen) {
          append_range(part.key_positions, other * window_, window_, tokens);
        }
      }
      all.push_back(std::move(part));
    }
    return all;
  }

  at::Tensor visible(int part, const at::Tensor& i, const at::Tensor& j) const override {
    if (part == kFromGlobal) return j.ge(0);
    if (part == kToGlobal) return causal_ ? j.le(i) : i.ge(globals_).logical_and(j.ge(0));
    const at::Tensor not_global = causal_ ? j.ge(globals_) : i.ge(globals_).logical_and(j.ge(globals_));
    if (part == kRandom) return not_global;
    const at::Tensor distance = causal_ ? i - j : (i - j).abs_();
    const at::Tensor near = distance.le(window_).logical_and_(not_global);
    return causal_ ? near.logical_and(distance.ge(0)) : near;
  }

  std::vector<int64_t> seen_by(int64_t i, int64_t head) const override {
    std::vector<int64_t> seen;
    for (int64_t j = 0; j < std::min(globals_, i + 1); ++j) seen.push_back(j);
    for (int64_t j = std::max(globals_, i - window_); j <= i; ++j) seen.push_back(j);
    const int64_t own = i / window_;
    for (const int64_t other : draw(own, own + 1, random_, head)) {
      for (int64_t j = std::max(globals_, other * window_); j < (other + 1) * window_; ++j) seen.push_back(j);
    }
    return seen;
  }

 private:
  PositionBlocks to_globals(int64_t tokens, int64_t globals) const {
    const int64_t size = std::min(window_, tokens);
    PositionBlocks part{kToGlobal, size, globals, {}, {}};
    for (int64_t first = 0; first < tokens; first += size) {
      append_range(part.query_positions, first, size, tokens);
      append_range(part.key_positions, 0, globals, tokens);
    }
    return part;
  }

  PositionBlocks from_globals(int64_t tokens, int64_t globals) const {
    PositionBlocks part{kFromGlobal, globals, tokens, {}, {}};
    append_range(part.query_positions, 0, globals, tokens);
    append_range(part.key_positions, 0, tokens, tokens);
    return part;
  }

  // At most `wanted` different blocks out of `count` that are not neighbours of `block`, when causal of those
  // before it.
  std::vector<int64_t> draw(int64_t block, int64_t count, int64_t wanted, int64_t head) const {
    const int64_t before = std::max<int64_t>(0, block - 1),
                  after = causal_ ? 0 : std::max<int64_t>(0, count - block - 2);
    const int64_t candidates = before + after;
    std::vector<int64_t> chosen;
    PhiloxStream random(seed_, layer_, static_cast<uint32_t>(head), static_cast<uint32_t>(block));
    // The n-th draw goes to one of the first candidates - n places (Floyd's choice without repetition).
    for (int64_t top = std::max<int64_t>(0, candidates - wanted); top < candidates; ++top) {
      const auto drawn = static_cast<int64_t>(random.below(static_cast<uint64_t>(top + 1)));
      const bool taken = std::find(chosen.begin(), chosen.end(), drawn) != chosen.end();
      chosen.push_back(taken ? top : drawn);
    }
    for (int64_t& other : chosen) other += other < before ? 0 : block + 2 - before;
    return chosen;
  }

  int64_t window_, globals_, random_;
  uint64_t seed_;
  uint32_t layer_;
  bool causal_;
};

void validate_global(const AttentionConfig& config, const AttentionShape&) {
  const auto own = read_options<GlobalOptions>(config);
  const auto check_range = [](const char* key, int64_t value, int64_t smallest) {
    check<UsageError>(value >= smallest && value <= kLargestSize,
                      "attention.{} must be between {} and {}, not {}", key, smallest, kLargestSize, value);
  };
  check_range("window", own.window, 1);
  check_range("global_tokens", own.global_tokens, 0);
  check_range("random_blocks", own.random_blocks, 0);
}

}  // namespace

AttentionKind global_kind() {
  AttentionKind kind;
  kind.name = "global";
  kind.summary =
      "exact softmax attention within windows, to and from global tokens, and to random blocks (Longformer, "
      "BigBird)";
  kind.cost =
      "time in proportion to T (window (2 + random_blocks) + global_tokens), bidirectional a window "
      "and as many global tokens more; memory of a training step in proportion to T; a stream keeps all keys "
      "and values";
  kind.group = KindGroup::baseline;
  kind.capabilities.streams = true;
  kind.capabilities.rows = true;
  kind.options = kind_options<GlobalOptions>();
  kind.reads = [](const AttentionConfig& config, const std::string& name) {
    return name != "seed" || read_options<GlobalOptions>(config).random_blocks > 0;
  };
  kind.validate = validate_global;
  kind.make = [](const AttentionConfig& config, const AttentionShape& shape) {
    return std::make_shared<PositionAttention>(
        std::make_shared<GlobalLayout>(read_options<GlobalOptions>(config), config, shape));
  };
  return kind;
}

}  // namespace performer::nn
