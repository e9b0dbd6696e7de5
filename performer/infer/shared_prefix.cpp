// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/shared_prefix.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <utility>

namespace performer {
namespace {

// States take memory beside tokens: so many side by side at most.
constexpr int64_t kMostSideBySide = 64;

class SharedPrefixReader {
 public:
  SharedPrefixReader(LanguageModel& model, const data::Vocabulary& vocabulary,
                     const std::vector<data::Token>& common)
      : model_(model), vocabulary_(vocabulary), common_(common), state_(model->begin(1)) {
    sums_.push_back(0);
    const std::vector<std::vector<float>> found = causal_log_probabilities(model, vocabulary, {&common});
    for (const float value : found[0]) sums_.push_back(sums_.back() + value);
  }

  // The log-likelihood of the first `length` tokens of the common sequence.
  double sum_of(int64_t length) const { return sums_[static_cast<size_t>(length)]; }

  // The same of the tokens behind place `begin`, of sequences of one length that leave the common one there.
  // Places must not go down from call to call.
  std::vector<double> rest_of(const TokenSequences& group, int64_t begin) {
    go_to(begin);
    const auto rows = static_cast<int64_t>(group.size()), length = std::ssize(*group[0]) - begin;
    at::Tensor inputs = at::empty({rows, length}, at::kLong), targets = at::empty({rows, length}, at::kLong);
    auto input = inputs.accessor<int64_t, 2>();
    auto target = targets.accessor<int64_t, 2>();
    for (int64_t row = 0; row < rows; ++row) {
      const std::vector<data::Token>& tokens = *group[static_cast<size_t>(row)];
      for (int64_t i = 0; i < length; ++i) {
        input[row][i] = begin + i == 0 ? vocabulary_.bos() : tokens[static_cast<size_t>(begin + i - 1)];
        target[row][i] = tokens[static_cast<size_t>(begin + i)];
      }
    }
    DecodeState own = state_.select(at::zeros({rows}, at::kLong));
    const at::Tensor logits = model_->logits(model_->advance(inputs, own));
    const at::Tensor chosen =
        at::log_softmax(logits, -1, at::kFloat).gather(2, targets.unsqueeze(-1)).squeeze(-1);
    const at::Tensor totals = chosen.sum(1, /*keepdim=*/false, at::kDouble).contiguous();
    return {totals.data_ptr<double>(), totals.data_ptr<double>() + rows};
  }

 private:
  // Reads the inputs of the tokens before `place`: the start marker and all but the last of them.
  void go_to(int64_t place) {
    if (place == read_) return;
    std::vector<int64_t> inputs;
    for (int64_t i = read_; i < place; ++i) {
      inputs.push_back(i == 0 ? vocabulary_.bos() : common_[static_cast<size_t>(i - 1)]);
    }
    model_->advance(at::tensor(inputs, at::kLong).unsqueeze(0), state_);
    read_ = place;
  }

  LanguageModel& model_;
  const data::Vocabulary& vocabulary_;
  const std::vector<data::Token>& common_;
  DecodeState state_;
  int64_t read_ = 0;
  std::vector<double> sums_;  // of the first i tokens
};

}  // namespace

bool shares_prefixes(const LanguageModel& model) {
  const nn::Capabilities can = nn::capabilities_of(model->attention_config());
  return model->streams() && (can.chunks || can.grows);
}

std::vector<double> log_likelihoods_along(LanguageModel& model, const data::Vocabulary& vocabulary,
                                          const std::vector<data::Token>& common,
                                          const TokenSequences& sequences, int64_t batch_tokens,
                                          const std::function<void(int64_t)>& progress) {
  const at::NoGradGuard no_gradients;
  SharedPrefixReader reader(model, vocabulary, common);
  std::map<std::pair<int64_t, int64_t>, std::vector<size_t>> groups;  // by place of leaving, and length
  for (size_t i = 0; i < sequences.size(); ++i) {
    const int64_t place = std::ranges::mismatch(common, *sequences[i]).in1 - common.begin();
    groups[{place, std::ssize(*sequences[i])}].push_back(i);
  }
  std::vector<double> sums(sequences.size());
  int64_t done = 0;
  for (const auto& [key, all] : groups) {
    const auto [place, length] = key;
    const int64_t rows =
        std::clamp<int64_t>(batch_tokens / std::max<int64_t>(1, length - place), 1, kMostSideBySide);
    for (size_t first = 0; first < all.size(); first += static_cast<size_t>(rows)) {
      const std::vector<size_t> some(
          all.begin() + static_cast<std::ptrdiff_t>(first),
          all.begin() + static_cast<std::ptrdiff_t>(std::min(first + static_cast<size_t>(rows), all.size())));
      TokenSequences group;
      for (const size_t i : some) group.push_back(sequences[i]);
      const std::vector<double> rest =
          length > place ? reader.rest_of(group, place) : std::vector<double>(group.size(), 0.0);
      for (size_t n = 0; n < some.size(); ++n) sums[some[n]] = reader.sum_of(place) + rest[n];
      done += std::ssize(some);
      if (progress) progress(done);
    }
  }
  return sums;
}

}  // namespace performer
