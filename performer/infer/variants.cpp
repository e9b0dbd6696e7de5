// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/variants.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "performer/base/error.h"
#include "performer/infer/likelihood.h"
#include "performer/infer/shared_prefix.h"

namespace performer {
namespace {

using Tokens = std::vector<data::Token>;

bool is_causal(const LanguageModel& model) {
  return model->model_config().objective == "causal";
}

bool is_marginal(VariantScore kind) {
  return kind == VariantScore::masked_marginal || kind == VariantScore::wild_type_marginal;
}

double sum_of(const std::vector<float>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

// The part of two sequences that differs: [begin, wild_end) and [begin, variant_end).
struct Span {
  int64_t begin = 0, wild_end = 0, variant_end = 0;
  int64_t longest() const { return std::max(wild_end, variant_end) - begin; }
};
Span changed_span(const Tokens& wild, const Tokens& variant) {
  const int64_t shorter = std::min(std::ssize(wild), std::ssize(variant));
  Span span;
  while (span.begin < shorter && wild[span.begin] == variant[span.begin]) ++span.begin;
  int64_t same = 0;  // at the end
  while (same < shorter - span.begin && *(wild.end() - 1 - same) == *(variant.end() - 1 - same)) ++same;
  span.wild_end = std::ssize(wild) - same;
  span.variant_end = std::ssize(variant) - same;
  return span;
}

std::vector<int64_t> changed_places(const Tokens& wild, const Tokens& variant) {
  std::vector<int64_t> places;
  for (int64_t i = 0; i < std::ssize(wild); ++i) {
    if (wild[i] != variant[i]) places.push_back(i);
  }
  return places;
}

// Scores variants of one wild type.
class VariantScorer {
 public:
  VariantScorer(LanguageModel& model, const data::Vocabulary& vocabulary, const Tokens& wild,
                const std::vector<Variant>& variants, const VariantRequest& request)
      : model_(model),
        vocabulary_(vocabulary),
        wild_(wild),
        variants_(variants),
        request_(request),
        room_(variant_window(model)),
        results_(variants.size()) {}

  std::vector<VariantResult> run() {
    std::vector<size_t> by_place, whole;
    for (size_t i = 0; i < variants_.size(); ++i) {
      (is_marginal(request_.kind) && variants_[i].aligned ? by_place : whole).push_back(i);
    }
    windows_ = std::ranges::any_of(whole, [&](size_t i) {
      return std::max(std::ssize(wild_), std::ssize(variants_[i].tokens)) > room_;
    });
    // Work in passes over a sequence: marginal scores have one a place at most, scores of whole sequences one
    // for the wild type, or in windows one for each variant's.
    const auto sequences = static_cast<double>(whole.size());
    work_ = static_cast<double>(by_place.empty() ? 0 : std::ssize(wild_)) +
            (windows_ ? 2 * sequences : sequences + (whole.empty() ? 0 : 1));
    score_by_place(by_place);
    score_whole(whole);
    for (size_t i = 0; i < results_.size(); ++i) {
      check(std::isfinite(results_[i].score),
            "the score of variant '{}' is {}: the model's weights are not sound", variants_[i].name,
            results_[i].score);
    }
    return std::move(results_);
  }

 private:
  // Marginal scores: distributions at each changed place.
  void score_by_place(const std::vector<size_t>& chosen) {
    if (chosen.empty()) return;
    std::vector<int64_t> places;
    for (const size_t i : chosen) {
      const std::vector<int64_t> own = changed_places(wild_, variants_[i].tokens);
      places.insert(places.end(), own.begin(), own.end());
    }
    std::ranges::sort(places);
    places.erase(std::unique(places.begin(), places.end()), places.end());
    const at::Tensor table = distributions(places);
    const auto log_p = table.accessor<float, 2>();
    for (const size_t i : chosen) {
      VariantResult& result = results_[i];
      result.kind = request_.kind;
      for (const int64_t place : changed_places(wild_, variants_[i].tokens)) {
        const int64_t row = std::ranges::lower_bound(places, place) - places.begin();
        result.score +=
            static_cast<double>(log_p[row][variants_[i].tokens[place]]) - log_p[row][wild_[place]];
        ++result.changes;
      }
      result.unnormalized = result.score;
    }
    done_ = static_cast<double>(std::ssize(wild_));
    tell(0);
  }

  // [places, vocabulary]. Places that share a window of the wild type are seen together.
  at::Tensor distributions(const std::vector<int64_t>& places) {
    std::map<int64_t, std::vector<int64_t>> windows;  // begin -> places
    for (const int64_t place : places) windows[window_begin(place)].push_back(place);
    std::vector<at::Tensor> parts = {at::empty({0, vocabulary_.size()}, at::kFloat)};
    int64_t done = 0;
    for (const auto& [begin, all] : windows) {
      const int64_t end = std::min(begin + std::min(room_, std::ssize(wild_)), std::ssize(wild_));
      const Tokens window(wild_.begin() + begin, wild_.begin() + end);
      std::vector<int64_t> own;
      for (const int64_t place : all) own.push_back(place - begin);
      if (request_.kind == VariantScore::wild_type_marginal) {
        parts.push_back(unmasked_distributions(model_, vocabulary_, window, own));
      } else {
        const auto told = [&](int64_t now) {
          tell(static_cast<double>(done + now) * static_cast<double>(std::ssize(wild_)) /
               static_cast<double>(places.size()));
        };
        parts.push_back(masked_distributions(model_, vocabulary_, window, own, request_.batch_tokens, told));
      }
      done += std::ssize(own);
    }
    return at::cat(parts);
  }

  // Where the window begins that has a place in its middle. Windows of one pass over several places move by
  // half their length, so that each place has at least a quarter of it on both sides; those of hidden places
  // by one.
  int64_t window_begin(int64_t place) const {
    const int64_t length = std::ssize(wild_);
    if (length <= room_) return 0;
    int64_t begin = place - room_ / 2;
    if (request_.kind == VariantScore::wild_type_marginal) {
      const int64_t stride = std::max<int64_t>(1, room_ / 2);
      begin = (place - room_ / 4) / stride * stride;
    }
    return std::clamp<int64_t>(begin, 0, length - room_);
  }

  // Scores of whole sequences.
  void score_whole(const std::vector<size_t>& chosen) {
    const VariantScore kind = is_marginal(request_.kind) ? VariantScore::one_pass : request_.kind;
    if (chosen.empty()) return;
    if (kind == VariantScore::log_ratio && !windows_ && shares_prefixes(model_)) return score_along(chosen);
    const double wild_sum = windows_ ? 0 : sums_of({wild_}, kind)[0];
    for (size_t first = 0; first < chosen.size();) {
      std::vector<Tokens> wild_parts, parts;
      size_t end = first;
      for (int64_t tokens = 0; end < chosen.size() && (end == first || tokens < request_.batch_tokens);
           ++end) {
        const Variant& variant = variants_[chosen[end]];
        const Span span = changed_span(wild_, variant.tokens);
        wild_parts.push_back(windows_ ? part(wild_, span, span.wild_end, variant) : Tokens{});
        parts.push_back(windows_ ? part(variant.tokens, span, span.variant_end, variant) : variant.tokens);
        tokens += std::ssize(parts.back()) + std::ssize(wild_parts.back());
      }
      const std::vector<double> sums = sums_of(parts, kind);
      const std::vector<double> wild_sums =
          windows_ ? sums_of(wild_parts, kind) : std::vector(parts.size(), wild_sum);
      for (size_t i = first; i < end; ++i) {
        const auto wild_length = static_cast<double>(windows_ ? wild_parts[i - first].size() : wild_.size());
        results_[chosen[i]] =
            compare(variants_[chosen[i]], kind, sums[i - first], static_cast<double>(parts[i - first].size()),
                    wild_sums[i - first], wild_length);
      }
      first = end;
    }
  }

  // Log-ratios of variants that begin like the wild type, of which only the rest is read.
  void score_along(const std::vector<size_t>& chosen) {
    TokenSequences sequences = {&wild_};
    for (const size_t i : chosen) sequences.push_back(&variants_[i].tokens);
    const std::vector<double> sums =
        log_likelihoods_along(model_, vocabulary_, wild_, sequences, request_.batch_tokens,
                              [&](int64_t done) { tell(static_cast<double>(done)); });
    for (size_t i = 0; i < chosen.size(); ++i) {
      const Variant& variant = variants_[chosen[i]];
      results_[chosen[i]] =
          compare(variant, VariantScore::log_ratio, sums[i + 1], static_cast<double>(variant.tokens.size()),
                  sums[0], static_cast<double>(wild_.size()));
    }
  }

  VariantResult compare(const Variant& variant, VariantScore kind, double sum, double length, double wild_sum,
                        double wild_length) const {
    VariantResult result;
    result.kind = kind;
    result.unnormalized = sum - wild_sum;
    result.score =
        length == wild_length ? result.unnormalized : wild_length * (sum / length - wild_sum / wild_length);
    result.changes = variant.aligned ? std::ssize(changed_places(wild_, variant.tokens))
                                     : changed_span(wild_, variant.tokens).longest();
    return result;
  }

  // What the model sees of a sequence whose changed part is [span.begin, end): as much as fits, the change in
  // its middle, with the same context of the wild type and of the variant.
  Tokens part(const Tokens& sequence, const Span& span, int64_t end, const Variant& variant) const {
    const int64_t before = span.begin, behind = std::ssize(wild_) - span.wild_end, changed = span.longest();
    check<InputError>(
        changed <= room_,
        "variant '{}'{} changes a part of {} {}, but this model's positions cover {}: leave it out, or use "
        "a model with rotary or sinusoidal positions",
        variant.name, variant.line > 0 ? fmt::format(" (line {})", variant.line) : "", changed,
        vocabulary_.unit(), room_);
    int64_t left = std::min(before, (room_ - changed) / 2);
    const int64_t right = std::min(behind, room_ - changed - left);
    left = std::min(before, room_ - changed - right);
    return {sequence.begin() + (span.begin - left), sequence.begin() + (end + right)};
  }

  std::vector<double> sums_of(const std::vector<Tokens>& sequences, VariantScore kind) {
    std::vector<double> sums;
    TokenSequences group;
    int64_t tokens = 0;
    const auto flush = [&] {
      for (const std::vector<float>& values : log_probabilities(group, kind)) sums.push_back(sum_of(values));
      done_ += static_cast<double>(group.size());
      tell(0);
      group.clear();
      tokens = 0;
    };
    for (const Tokens& sequence : sequences) {
      if (tokens + std::ssize(sequence) > request_.batch_tokens && !group.empty()) flush();
      group.push_back(&sequence);
      tokens += std::ssize(sequence);
    }
    if (!group.empty()) flush();
    return sums;
  }

  std::vector<std::vector<float>> log_probabilities(const TokenSequences& group, VariantScore kind) {
    if (kind == VariantScore::log_ratio) return causal_log_probabilities(model_, vocabulary_, group);
    if (kind == VariantScore::one_pass) return unmasked_log_probabilities(model_, vocabulary_, group);
    std::vector<std::vector<float>> each;
    for (const Tokens* sequence : group) {
      const auto told = [&](int64_t now) {
        tell(static_cast<double>(each.size()) +
             static_cast<double>(now) / static_cast<double>(sequence->size()));
      };
      each.push_back(masked_log_probabilities(model_, vocabulary_, *sequence, request_.batch_tokens, told));
    }
    return each;
  }

  void tell(double now) const {
    if (request_.progress) request_.progress(std::min(1.0, (done_ + now) / work_));
  }

  LanguageModel& model_;
  const data::Vocabulary& vocabulary_;
  const Tokens& wild_;
  const std::vector<Variant>& variants_;
  const VariantRequest& request_;
  int64_t room_;
  std::vector<VariantResult> results_;
  bool windows_ = false;
  double work_ = 1, done_ = 0;
};

}  // namespace

const std::vector<std::string>& variant_score_names() {
  static const std::vector<std::string> names = {"masked-marginal", "wild-type-marginal", "pseudo-likelihood",
                                                 "log-ratio"};
  return names;
}

std::string to_text(VariantScore kind) {
  if (kind == VariantScore::one_pass) return "one-pass-pseudo-likelihood";
  return variant_score_names()[static_cast<size_t>(kind)];
}

VariantScore parse_variant_score(const std::string& name, const LanguageModel& model) {
  const bool causal = is_causal(model);
  if (name.empty()) return causal ? VariantScore::log_ratio : VariantScore::masked_marginal;
  const auto found = std::ranges::find(variant_score_names(), name);
  check<UsageError>(found != variant_score_names().end(), "--score must be {}, not '{}'",
                    fmt::join(variant_score_names(), ", "), name);
  const auto kind = static_cast<VariantScore>(found - variant_score_names().begin());
  check<UsageError>(causal == (kind == VariantScore::log_ratio),
                    "--score {} is for {} models, but this one is {}: take {}", name,
                    causal ? "masked" : "causal", causal ? "causal" : "masked",
                    causal ? "log-ratio" : "masked-marginal");
  return kind;
}

int64_t variant_window(const LanguageModel& model) {
  const ModelConfig& config = model->model_config();
  if (!limits_length(config)) return std::numeric_limits<int64_t>::max();
  return config.max_length - (is_causal(model) ? 0 : 2);
}

std::vector<VariantResult> score_variants(LanguageModel& model, const data::Vocabulary& vocabulary,
                                          const Tokens& wild_type, const std::vector<Variant>& variants,
                                          const VariantRequest& request) {
  const at::NoGradGuard no_gradients;
  if (model->is_training()) model->eval();
  check<UsageError>(model->vocabulary() == vocabulary.size(),
                    "the model has {} tokens, the vocabulary {} has {} with its markers", model->vocabulary(),
                    vocabulary.name(), vocabulary.size());
  check<InputError>(!wild_type.empty(), "the wild type has no {}", vocabulary.unit());
  for (const Variant& variant : variants) {
    check<InputError>(!variant.tokens.empty(), "variant '{}' leaves nothing of the wild type", variant.name);
    check(!variant.aligned || variant.tokens.size() == wild_type.size(),
          "variant '{}' is aligned but has another length", variant.name);
  }
  return VariantScorer(model, vocabulary, wild_type, variants, request).run();
}

}  // namespace performer
