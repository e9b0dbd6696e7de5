// SPDX-License-Identifier: Apache-2.0
// protein_lm's sampling (sampling.py), with its recorded uniform draws.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "performer/infer/generate.h"
#include "tests/golden/cases.h"
#include "tests/golden/golden.h"

namespace performer::golden {
namespace {

std::vector<float> row(const at::Tensor& table, int64_t index) {
  const at::Tensor values = table[index].to(at::kFloat).contiguous();
  return {values.data_ptr<float>(), values.data_ptr<float>() + values.numel()};
}

std::vector<int64_t> integers(const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kLong).contiguous();
  return {values.data_ptr<int64_t>(), values.data_ptr<int64_t>() + values.numel()};
}

// Penalised logits of one row up to a constant: filter_logits normalises, and so is the reference here.
at::Tensor penalized(const Case& item) {
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

SamplingOptions sampling_options(const Case& item) {
  SamplingOptions options;
  options.temperature = option_or(item, "temperature", 1.0);
  options.top_k = option_or<int64_t>(item, "top_k", 0);
  options.repetition_penalty = option_or(item, "repetition_penalty", 1.0);
  options.repetition_window = option_or<int64_t>(item, "repetition_window", 4);
  return options;
}

// What is drawn after `tokens`.
int64_t drawn(const Case& item, const std::vector<int64_t>& tokens, double uniform) {
  SamplingOptions options = sampling_options(item);
  const auto forbidden = option_or(item, "masked_tokens", std::vector<int64_t>{});
  std::vector<float> logits = row(item.tensor("table"), tokens.back());
  if (options.repetition_penalty != 1 && option_or(item, "repetition_penalty_normalize", false)) {
    // The reference's option to normalise before the penalty, as a caller has it: what is forbidden has no
    // part in it, and the temperature comes first.
    SamplingOptions first;
    first.temperature = std::exchange(options.temperature, 1.0);
    const std::vector<double> normal = filter_logits(logits, {}, first, forbidden);
    for (size_t i = 0; i < logits.size(); ++i)
      logits[i] = std::isfinite(normal[i]) ? static_cast<float>(normal[i]) : logits[i];
  }
  return draw_token(filter_logits(logits, tokens, options, forbidden), uniform);
}

// The sampling loop over a table of next-token logits. Step i fills place i + 1 of all sequences; while one
// of them runs, the ended ones are padded, prompts and the last place included, which the reference fills
// twice more.
at::Tensor sampled(const Case& item) {
  const at::Tensor prompt = item.tensor("prompt"), uniforms = item.tensor("uniforms");
  const int64_t end = option_or<int64_t>(item, "eos_token", -1);
  const int64_t pad = option_or<int64_t>(item, "pad_token", end);
  const auto length = item.option<int64_t>("max_decode_len");
  const int64_t sequences = prompt.size(0), given = prompt.size(1);
  std::vector<std::vector<int64_t>> tokens;
  for (int64_t i = 0; i < sequences; ++i) tokens.push_back(integers(prompt[i]));
  std::vector<bool> ended(sequences, false);
  for (int64_t step = 0; step <= length && std::count(ended.begin(), ended.end(), false) > 0; ++step) {
    const int64_t place = std::min(step + 1, length - 1);
    for (int64_t i = 0; i < sequences; ++i) {
      const bool open = place >= given && place == static_cast<int64_t>(tokens[i].size());
      if (open)
        tokens[i].push_back(ended[i] ? pad : drawn(item, tokens[i], uniforms[i][step].item<double>()));
      int64_t& token = tokens[i][place];
      if (ended[i]) token = pad;
      ended[i] = ended[i] || token == end;
    }
  }
  at::Tensor result = at::full({sequences, length}, pad, at::kInt);
  for (int64_t i = 0; i < sequences; ++i)
    result[i].slice(0, 0, static_cast<int64_t>(tokens[i].size())).copy_(at::tensor(tokens[i], at::kLong));
  return result;
}

TEST(GoldenSampling, AgreesWithTheReference) {
  run_group("plm_sampling", [&](Group& group, const Case& item) {
    if (item.has("penalized_logits")) {
      // Both normalised: the recorded logits are not, and a constant does not matter to what is drawn.
      const at::Tensor shift = at::logsumexp(item.tensor("penalized_logits64"), {1}, true);
      const at::Tensor result = penalized(item) + shift;
      // Logits go in as float32: normalised ones are rounded, so that the result holds to that precision
      // only.
      group.expect(item, "penalized_logits", item.option<bool>("normalize") ? result.to(at::kFloat) : result);
    } else if (item.has("table")) {
      expect_known_options(
          item, {"seed", "max_decode_len", "eos_token", "pad_token", "masked_tokens", "top_k", "temperature",
                 "repetition_penalty", "repetition_window", "repetition_penalty_normalize"});
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
  });
}

}  // namespace
}  // namespace performer::golden
