// SPDX-License-Identifier: Apache-2.0
#include "performer/references/performer_pytorch/autoregressive.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "performer/base/error.h"
#include "performer/base/philox.h"
#include "performer/nn/evaluation_scope.h"

namespace performer::references::performer_pytorch {

namespace pytorch_sampling {

constexpr double kNever = -std::numeric_limits<double>::infinity();

at::Tensor keep_top_k(const at::Tensor& logits, double threshold) {
  // In double and truncated, as there: 0.1 * 10 is not quite 1.
  const auto k = static_cast<int64_t>((1 - threshold) * static_cast<double>(logits.size(-1)));
  check<UsageError>(k >= 0 && k <= logits.size(-1),
                    "filter top_k with threshold {} cannot keep {} of {} tokens", threshold, k,
                    logits.size(-1));
  const auto [values, places] = logits.topk(k, -1);
  return at::full_like(logits, kNever).scatter(-1, places, values);
}

at::Tensor keep_top_p(const at::Tensor& logits, double threshold) {
  const auto [sorted, places] = logits.sort(-1, /*descending=*/true);
  const at::Tensor beyond = sorted.softmax(-1).cumsum(-1).gt(1 - threshold);
  // A token goes when those before it already exceed the bound; the first one never does.
  const at::Tensor gone = at::constant_pad_nd(beyond.narrow(-1, 0, beyond.size(-1) - 1), {1, 0}, false);
  return at::empty_like(logits).scatter(-1, places, sorted.masked_fill(gone, kNever));
}

at::Tensor penalize_repetition(const at::Tensor& logits, const at::Tensor& context, double theta) {
  const at::Tensor divisor = at::ones({logits.size(-1)}, logits.options().dtype(at::kFloat));
  divisor.index_fill_(0, context.flatten(), theta);
  return logits / divisor;
}

}  // namespace pytorch_sampling

void validate(const DecodingOptions& options) {
  check<UsageError>(options.temperature >= 0 && std::isfinite(options.temperature),
                    "temperature must be a finite number of at least 0, not {}", options.temperature);
  check<UsageError>(options.repetition_penalty > 0 && std::isfinite(options.repetition_penalty),
                    "repetition_penalty must be a finite number above 0 (1: none), not {}",
                    options.repetition_penalty);
  check<UsageError>(options.repetition_window >= 0, "repetition_window must be at least 0, not {}",
                    options.repetition_window);
  check<UsageError>(options.top_k >= 0, "top_k must be at least 0 (0: no limit), not {}", options.top_k);
  check<UsageError>(options.top_p > 0 && options.top_p <= 1, "top_p must be in (0, 1], not {}",
                    options.top_p);
  check<UsageError>(options.filter == "top_k" || options.filter == "top_p",
                    "filter '{}' is not known; choose top_k or top_p", options.filter);
  check<UsageError>(options.filter_threshold >= 0 && options.filter_threshold <= 1,
                    "filter_threshold must be in [0, 1], not {}", options.filter_threshold);
}

namespace decoding {

void penalize(at::Tensor& logits, const std::vector<int64_t>& recent, const DecodingOptions& options) {
  const auto seen = std::min<int64_t>(options.repetition_window, static_cast<int64_t>(recent.size()));
  if (options.repetition_penalty == 1 || seen == 0) return;
  const at::Tensor tokens = at::tensor(std::vector<int64_t>(recent.end() - seen, recent.end()), at::kLong);
  const at::Tensor values = logits.index_select(0, tokens);
  // A token seen twice is written twice, with the same value.
  logits.index_copy_(
      0, tokens,
      at::where(values > 0, values / options.repetition_penalty, values * options.repetition_penalty));
}

// The smallest token whose cumulative probability exceeds u in [0, 1), among those that are possible.
int64_t draw(const at::Tensor& probabilities, double u) {
  const double* p = probabilities.const_data_ptr<double>();
  double cumulative = 0;
  int64_t last = -1;
  for (int64_t token = 0; token < probabilities.numel(); ++token) {
    if (p[token] == 0) continue;
    cumulative += p[token];
    last = token;  // rounding may leave u above the last sum
    if (u < cumulative) break;
  }
  return last;
}

at::Tensor last_columns(const at::Tensor& x, int64_t count) {
  const int64_t kept = std::min(count, x.size(1));
  return x.narrow(1, x.size(1) - kept, kept);
}

// A row in the making.
struct Row {
  int64_t index;                // in the batch
  std::vector<int64_t> tokens;  // valid tokens of the start, then the new ones
  int64_t start_length;
  PhiloxStream random;
};

std::vector<int64_t> valid_tokens(const at::Tensor& tokens, const std::optional<at::Tensor>& mask,
                                  int64_t row) {
  at::Tensor kept = tokens[row];
  if (mask) kept = kept.masked_select((*mask)[row]);
  kept = kept.contiguous();
  const auto* first = kept.const_data_ptr<int64_t>();
  check<UsageError>(kept.numel() > 0, "row {} of the start has no token: give at least one to begin with",
                    row);
  return {first, first + kept.numel()};
}

at::Tensor window_of(const std::vector<Row*>& rows, int64_t longest) {
  std::vector<at::Tensor> windows;
  for (const Row* row : rows) {
    const auto length = std::min<int64_t>(longest, static_cast<int64_t>(row->tokens.size()));
    windows.push_back(
        at::tensor(std::vector<int64_t>(row->tokens.end() - length, row->tokens.end()), at::kLong));
  }
  return at::stack(windows);
}

// Of logits [rows, T, V] those after the last token.
at::Tensor last_row(const at::Tensor& logits) {
  return logits.select(1, logits.size(1) - 1);
}

// Logits [rows, V] after the tokens of `rows`, which are equally many. Up to max_length tokens the model
// reads each token once; of longer rows it sees the last max_length, whose positions change with every step.
at::Tensor next_logits(PerformerLM& net, PerformerLMInputs& read, const std::vector<Row*>& rows,
                       PerformerLMState& state) {
  const auto length = static_cast<int64_t>(rows.front()->tokens.size());
  const int64_t longest = net->options().max_length;
  at::Tensor logits;
  if (length <= longest) {
    read.tokens = window_of(rows, length - state.length);
    logits = net->continue_from(read, state);
  } else {
    read.tokens = window_of(rows, longest);
    logits = net(read);
  }
  return last_row(logits);
}

// The contexts of these rows, in their order.
void select_contexts(PerformerLMInputs& read, const at::Tensor& rows) {
  if (read.context) read.context = read.context->index_select(0, rows);
  if (read.context_mask) read.context_mask = read.context_mask->index_select(0, rows);
}

// Takes out the rows whose last token is `end_token`, and what the model reads for them and remembers of
// them.
void drop_ended(std::vector<Row*>& rows, PerformerLMInputs& read, PerformerLMState& state,
                int64_t end_token) {
  std::vector<Row*> kept;
  std::vector<int64_t> places;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i]->tokens.back() == end_token) continue;
    kept.push_back(rows[i]);
    places.push_back(static_cast<int64_t>(i));
  }
  if (kept.size() == rows.size()) return;
  rows = std::move(kept);
  const at::Tensor index = at::tensor(places, at::kLong);
  state = select_rows(state, index);
  select_contexts(read, index);
}

}  // namespace decoding

at::Tensor next_token_probabilities(const at::Tensor& logits, const std::vector<int64_t>& recent,
                                    const DecodingOptions& options) {
  at::Tensor x = logits.to(at::kCPU, at::kDouble, /*non_blocking=*/false, /*copy=*/true);
  check(!x.isnan().any().item<bool>() && x.max().item<double>() < -pytorch_sampling::kNever,
        "the model's logits are not finite: its weights are damaged, or training diverged");
  check(x.max().item<double>() > pytorch_sampling::kNever, "no token may be drawn: all logits are -infinity");
  if (options.temperature > 0) x /= options.temperature;
  decoding::penalize(x, recent, options);
  if (options.temperature == 0) {
    const int64_t best = x.eq(x.max()).nonzero().min().item<int64_t>();
    return at::zeros_like(x).index_fill_(0, at::tensor({best}, at::kLong), 1);
  }
  if (options.top_k > 0 && options.top_k < x.numel()) {
    x.masked_fill_(x < std::get<0>(x.topk(options.top_k)).min(), pytorch_sampling::kNever);
  }
  at::Tensor p = x.softmax(0);
  if (options.top_p < 1) {
    const auto [sorted, places] = p.sort(/*stable=*/true, 0, /*descending=*/true);
    const at::Tensor before = sorted.cumsum(0) - sorted;
    p.index_fill_(0, places.masked_select(before >= options.top_p), 0);
    p /= p.sum();
  }
  return p;
}

AutoregressiveImpl::AutoregressiveImpl(PerformerLM net, const AutoregressiveOptions& options)
    : options_(options) {
  check<UsageError>(net->options().stack.causal && net->options().output,
                    "an autoregressive model must be causal and have an output layer");
  net_ = register_module("net", std::move(net));
}

at::Tensor AutoregressiveImpl::forward(const PerformerLMInputs& inputs) {
  const at::Tensor& tokens = inputs.tokens;
  check<UsageError>(tokens.dim() == 2 && tokens.size(1) >= 2,
                    "a loss needs tokens [B, T] with T of at least 2, not [{}]",
                    fmt::join(tokens.sizes(), ", "));
  const int64_t length = tokens.size(1) - 1;
  at::Tensor targets = tokens.narrow(1, 1, length);
  PerformerLMInputs read = inputs;
  read.tokens = tokens.narrow(1, 0, length);
  const bool compatible = net_->options().stack.compatible;
  if (inputs.mask && inputs.mask->dim() == 2 && inputs.mask->size(1) == length + 1) {
    read.mask = inputs.mask->narrow(1, 0, length);
    if (!compatible) targets = targets.masked_fill(~inputs.mask->narrow(1, 1, length), options_.ignore_index);
  }
  const at::Tensor logits = net_(read);
  if (!compatible && targets.eq(options_.ignore_index).all().item<bool>()) return logits.sum() * 0;
  return at::cross_entropy_loss(logits.flatten(0, 1), targets.flatten(), {}, at::Reduction::Mean,
                                options_.ignore_index);
}

at::Tensor AutoregressiveImpl::generate_compatible(const PerformerLMInputs& start, int64_t steps,
                                                   const DecodingOptions& options) {
  const int64_t longest = net_->options().max_length;
  at::Tensor tokens = start.tokens;
  at::Tensor mask = start.mask ? *start.mask : at::ones_like(tokens, at::kBool);
  PerformerLMInputs read = start;
  if (start.context && !start.context_mask) {
    read.context_mask = at::ones({start.context->size(0), start.context->size(1)}, mask.options());
  }
  for (int64_t step = 0; step < steps; ++step) {
    read.tokens = decoding::last_columns(tokens, longest);
    mask = decoding::last_columns(mask, longest);
    read.mask = mask;
    at::Tensor logits = decoding::last_row(net_(read));
    if (options.repetition_penalty > 1) {
      const int64_t rows = std::min(options.repetition_window, tokens.size(0));
      const at::Tensor seen = rows == 0 ? tokens : tokens.narrow(0, tokens.size(0) - rows, rows);
      logits = pytorch_sampling::penalize_repetition(logits, seen, options.repetition_penalty);
    }
    logits = options.filter == "top_k" ? pytorch_sampling::keep_top_k(logits, options.filter_threshold)
                                       : pytorch_sampling::keep_top_p(logits, options.filter_threshold);
    check<UsageError>(
        !logits.isinf().all(-1).any().item<bool>(),
        "filter {} with threshold {} keeps none of {} tokens; choose a threshold that keeps one",
        options.filter, options.filter_threshold, logits.size(-1));
    const at::Tensor sample = (logits / options.temperature).softmax(-1).multinomial(1);
    tokens = at::cat({tokens, sample}, 1);
    mask = at::constant_pad_nd(mask, {0, 1}, true);
    if (options.end_token >= 0 && sample.eq(options.end_token).all().item<bool>()) break;
  }
  return tokens.narrow(1, start.tokens.size(1), tokens.size(1) - start.tokens.size(1));
}

at::Tensor AutoregressiveImpl::generate_own(const PerformerLMInputs& start, int64_t steps,
                                            const DecodingOptions& options) {
  std::vector<decoding::Row> rows;
  for (int64_t i = 0; i < start.tokens.size(0); ++i) {
    std::vector<int64_t> tokens = decoding::valid_tokens(start.tokens, start.mask, i);
    const auto length = static_cast<int64_t>(tokens.size());
    rows.push_back({i, std::move(tokens), length,
                    PhiloxStream(options.seed, static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32))});
  }
  // Rows with starts of the same length run together: no padding, hence each as if alone.
  std::map<int64_t, std::vector<decoding::Row*>> groups;
  for (decoding::Row& row : rows) groups[row.start_length].push_back(&row);
  for (auto& [length, active] : groups) {
    PerformerLMState state;
    PerformerLMInputs read = start;
    read.mask.reset();
    std::vector<int64_t> places;
    for (const decoding::Row* row : active) places.push_back(row->index);
    decoding::select_contexts(read, at::tensor(places, at::kLong));
    for (int64_t step = 0; step < steps && !active.empty(); ++step) {
      const at::Tensor logits = decoding::next_logits(net_, read, active, state);
      for (size_t i = 0; i < active.size(); ++i) {
        decoding::Row& row = *active[i];
        const at::Tensor p = next_token_probabilities(logits[static_cast<int64_t>(i)], row.tokens, options);
        row.tokens.push_back(decoding::draw(p, row.random.uniform()));
      }
      decoding::drop_ended(active, read, state, options.end_token);
    }
  }
  int64_t longest = 0;
  for (const decoding::Row& row : rows) {
    longest = std::max(longest, static_cast<int64_t>(row.tokens.size()) - row.start_length);
  }
  at::Tensor result = at::full({start.tokens.size(0), longest}, options_.pad_token, at::kLong);
  for (const decoding::Row& row : rows) {
    const std::vector<int64_t> drawn(row.tokens.begin() + row.start_length, row.tokens.end());
    result[row.index].narrow(0, 0, static_cast<int64_t>(drawn.size())).copy_(at::tensor(drawn, at::kLong));
  }
  return result;
}

at::Tensor AutoregressiveImpl::generate(const PerformerLMInputs& start, int64_t steps,
                                        const DecodingOptions& options) {
  validate(options);
  check<UsageError>(steps >= 0, "the number of tokens to generate must be at least 0, not {}", steps);
  check<UsageError>(
      start.tokens.dim() == 2 && start.tokens.scalar_type() == at::kLong && start.tokens.size(1) >= 1,
      "the start must be int64 [B, T] with at least one token, not {} [{}]",
      toString(start.tokens.scalar_type()), fmt::join(start.tokens.sizes(), ", "));
  check<UsageError>(!start.mask || (start.mask->scalar_type() == at::kBool &&
                                    start.mask->sizes().equals(start.tokens.sizes())),
                    "the mask of the start must be bool [{}]", fmt::join(start.tokens.sizes(), ", "));
  const at::NoGradGuard no_grad;
  const EvaluationScope evaluation(*net_);
  if (!net_->options().stack.compatible) return generate_own(start, steps, options);
  check<UsageError>(options.temperature > 0, "temperature must be above 0 in compatible mode");
  return generate_compatible(start, steps, options);
}

}  // namespace performer::references::performer_pytorch
