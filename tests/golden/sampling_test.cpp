// SPDX-License-Identifier: Apache-2.0
// protein_lm's sampling (sampling.py), with its recorded uniform draws.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "performer/infer/generate.h"
#include "tests/golden/golden.h"

namespace performer {
namespace {

std::vector<float> row(const at::Tensor& table, int64_t index) {
  const at::Tensor values = table[index].to(at::kFloat).contiguous();
  return {values.data_ptr<float>(), values.data_ptr<float>() + values.numel()};
}

std::vector<int64_t> integers(const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kLong).contiguous();
  return {values.data_ptr<int64_t>(), values.data_ptr<int64_t>() + values.numel()};
}

template <class T>
T option_or(const golden::Case& item, const std::string& name, T otherwise) {
  return item.options.contains(name) ? item.option<T>(name) : otherwise;
}

// Penalised logits of one row up to a constant: filter_logits normalises, and so is the reference here.
at::Tensor penalized(const golden::Case& item) {
  const at::Tensor given = item.tensor("logits"), sequences = item.tensor("sequences");
  // Normalising before the penalty is an option of the reference; here a caller may do it.
  const at::Tensor logits = item.option<bool>("normalize") ? at::log_softmax(given, 1) : given;
  SamplingOptions options;
  options.repetition_penalty = item.option<double>("penalty");
  options.repetition_window = item.option<int64_t>("window");
  const auto at = item.option<int64_t>("i");
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < logits.size(0); ++i) {
    std::vector<int64_t> recent = integers(sequences[i]);
    recent.resize(at + 1);
    rows.push_back(at::tensor(filter_logits(row(logits, i), recent, options, {}), at::kDouble));
  }
  return at::stack(rows);
}

// The sampling loop over a table of next-token logits.
at::Tensor sampled(const golden::Case& item) {
  const at::Tensor table = item.tensor("table"), prompt = item.tensor("prompt"),
                   uniforms = item.tensor("uniforms");
  SamplingOptions options;
  options.temperature = option_or(item, "temperature", 1.0);
  options.top_k = option_or<int64_t>(item, "top_k", 0);
  options.repetition_penalty = option_or(item, "repetition_penalty", 1.0);
  options.repetition_window = option_or<int64_t>(item, "repetition_window", 4);
  const auto forbidden = option_or(item, "masked_tokens", std::vector<int64_t>{});
  const int64_t end = option_or<int64_t>(item, "eos_token", -1),
                pad = option_or<int64_t>(item, "pad_token", -1);
  const auto length = item.option<int64_t>("max_decode_len");
  at::Tensor result = at::empty({prompt.size(0), length}, at::kInt);
  for (int64_t i = 0; i < prompt.size(0); ++i) {
    std::vector<int64_t> tokens = integers(prompt[i]);
    while (static_cast<int64_t>(tokens.size()) < length) {
      const int64_t last = tokens.back(), step = static_cast<int64_t>(tokens.size()) - 1;
      if (end >= 0 && (last == end || last == pad)) {
        tokens.push_back(pad);
        continue;
      }
      const auto log_probabilities = filter_logits(row(table, last), tokens, options, forbidden);
      tokens.push_back(draw_token(log_probabilities, uniforms[i][step].item<double>()));
    }
    result[i].copy_(at::tensor(tokens, at::kLong));
  }
  return result;
}

TEST(GoldenSampling, AgreesWithTheReference) {
  golden::Group group("plm_sampling");
  if (group.empty()) GTEST_SKIP() << golden::kMissing;
  for (const golden::Case& item : group.cases()) {
    if (item.has("penalized_logits")) {
      // Both normalised: the recorded logits are not, and a constant does not matter to what is drawn.
      const at::Tensor shift = at::logsumexp(item.tensor("penalized_logits64"), {1}, true);
      const at::Tensor result = penalized(item) + shift;
      // Logits go in as float32: normalised ones are rounded, so that the result holds to that precision
      // only.
      group.expect(item, "penalized_logits", item.option<bool>("normalize") ? result.to(at::kFloat) : result);
    } else if (item.has("table")) {
      group.expect(item, "sequences", sampled(item));
    } else {
      // The last row has u = 1, outside the generator's range, where the reference may return token 0.
      const at::Tensor logits = item.tensor("logits"), u = item.tensor("u");
      at::Tensor samples = item.tensor("samples").clone();
      for (int64_t i = 0; i < logits.size(0); ++i) {
        const double draw = u[i][0].item<double>();
        const int64_t token = draw_token(filter_logits(row(logits, i), {}, {}, {}), draw);
        if (draw < 1) samples[i] = token;
        EXPECT_GE(token, 0);
        if (draw == 1) {
          EXPECT_GT(token, 0);
        }
      }
      group.expect(item, "samples", samples);
    }
  }
  group.finish();
}

}  // namespace
}  // namespace performer
