// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/model_input.h"

#include <ATen/ATen.h>

namespace performer::studies {

std::vector<int64_t> model_input(const std::string& objective, const data::Vocabulary& vocabulary,
                                 const std::vector<data::Token>& sequence, bool whole) {
  std::vector<int64_t> tokens = {vocabulary.bos()};
  tokens.insert(tokens.end(), sequence.begin(), sequence.end());
  if (objective != "causal") {
    tokens.push_back(vocabulary.eos());
  } else if (!whole) {
    tokens.pop_back();
  }
  return tokens;
}

SequenceBatch as_batch(const std::vector<int64_t>& tokens) {
  SequenceBatch batch;
  batch.tokens = at::tensor(tokens, at::kLong).unsqueeze(0);
  batch.positions = at::arange(static_cast<int64_t>(tokens.size())).unsqueeze(0);
  return batch;
}

void observe_during(LanguageModel& model, const LanguageModelImpl::LayerObserver& observer,
                    const std::function<void()>& pass) {
  model->observe_attention(observer);
  try {
    pass();
  } catch (...) {
    model->observe_attention({});
    throw;
  }
  model->observe_attention({});
}

}  // namespace performer::studies
