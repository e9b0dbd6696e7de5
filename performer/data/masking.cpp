// SPDX-License-Identifier: Apache-2.0
#include "performer/data/masking.h"

#include "performer/base/error.h"

namespace performer::data {
namespace {

// Draws for one token: two uniform numbers in [0, 1) and the symbol that may replace it.
struct Draw {
  float choose, mix;
  int64_t replacement;
};

// The thresholds as protein_lm compares them: sums are made in double, comparisons in float32.
struct Thresholds {
  float rate, mask, random;
  Thresholds(double rate, const Corruption& corruption)
      : rate(static_cast<float>(rate)),
        mask(static_cast<float>(corruption.mask)),
        random(static_cast<float>(corruption.mask + corruption.random)) {}
};

// Returns the weight.
float corrupt_token(int64_t& token, const Draw& draw, const Thresholds& thresholds,
                    const MaskingMarkers& markers) {
  if (token == markers.pad || !(draw.choose < thresholds.rate)) return 0;
  if (draw.mix < thresholds.mask) {
    token = markers.mask;
  } else if (draw.mix < thresholds.random) {
    token = draw.replacement;
  }
  return 1;
}

float to_uniform(uint32_t word) {
  return static_cast<float>(word >> 8) * 0x1.0p-24f;
}

}  // namespace

Corruption corruption_from_name(const std::string& name) {
  if (name == "bert") return {0.8, 0.1};
  if (name == "protein-lm") return {0.1, 0.8};
  throw UsageError(fmt::format("data.corruption must be bert or protein-lm, found \"{}\"", name));
}

std::vector<float> corrupt(std::vector<int64_t>& tokens, const std::vector<float>& choose,
                           const std::vector<float>& mix, const std::vector<int64_t>& replacement,
                           double rate, const Corruption& corruption, const MaskingMarkers& markers) {
  const size_t size = tokens.size();
  check(choose.size() == size && mix.size() == size && replacement.size() == size,
        "masking {} tokens needs as many draws of each kind, found {}, {} and {}", size, choose.size(),
        mix.size(), replacement.size());
  const Thresholds thresholds(rate, corruption);
  std::vector<float> weights(size);
  for (size_t i = 0; i < size; ++i) {
    weights[i] = corrupt_token(tokens[i], {choose[i], mix[i], replacement[i]}, thresholds, markers);
  }
  return weights;
}

void corrupt_symbols(std::span<int64_t> tokens, std::span<float> weights, PhiloxStream draws, int64_t first,
                     double rate, const Corruption& corruption, const Vocabulary& vocabulary) {
  const auto symbols = static_cast<uint64_t>(vocabulary.symbols());
  const MaskingMarkers markers{vocabulary.pad(), vocabulary.mask()};
  const Thresholds thresholds(rate, corruption);
  draws.seek(4 * static_cast<uint64_t>(first));
  for (size_t i = 0; i < tokens.size(); ++i) {
    const float choose = to_uniform(draws.next());
    const float mix = to_uniform(draws.next());
    // The upper half of a 64-bit product: uniform over n symbols to n parts in 2^64.
    const auto replacement =
        static_cast<int64_t>((static_cast<unsigned __int128>(draws.next64()) * symbols) >> 64);
    const bool is_symbol = tokens[i] >= 0 && static_cast<uint64_t>(tokens[i]) < symbols;
    weights[i] = is_symbol ? corrupt_token(tokens[i], {choose, mix, replacement}, thresholds, markers) : 0;
  }
}

}  // namespace performer::data
