// SPDX-License-Identifier: Apache-2.0
// Whole training steps and forward passes of a language model, by what stands in the place of attention.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "performer/base/philox.h"
#include "performer/bench/cases.h"
#include "performer/bench/memory.h"
#include "performer/data/corpus.h"
#include "performer/models/sizes.h"
#include "performer/nn/attention/kind.h"
#include "performer/train/autocast.h"
#include "performer/train/evaluation.h"
#include "performer/train/language_model_task.h"

namespace performer::bench {
namespace {

constexpr int64_t kComparedTokens = 96;  // of the sequence whose logits are compared with double
// Through the layers of a model errors add up; gradients see them twice. In bfloat16 most models are within
// 0.02; causal ones with ReLU features reach 0.09, where the few keys of the first tokens share no positive
// feature with them and denominators are small.
constexpr double kModelBound = 1e-3, kHalfBound = 0.15;
// Where rounding decides which tokens attend to each other, single ones may differ by much; a wrong program
// differs by the size of what it computes.
constexpr double kDiscontinuousBound = 0.2;

// Random proteins that give batches of `batch` whole sequences of `length` tokens, markers included.
data::MemoryCorpus random_corpus(int64_t length, int64_t batch, bool causal) {
  PhiloxStream random(3);
  std::vector<std::vector<data::Token>> sequences(static_cast<size_t>(4 * batch));
  for (auto& sequence : sequences) {
    sequence.resize(static_cast<size_t>(length - (causal ? 1 : 2)));
    for (data::Token& token : sequence) token = static_cast<data::Token>(random.below(20));
  }
  return {sequences, data::Vocabulary::protein()};
}

// A model under training: what the trainer does in a step, without metrics and checkpoints.
class Trainee {
 public:
  Trainee(const Request& request, const Row& row)
      : config_(configure(request, row)),
        corpus_(random_corpus(row.length, row.batch, row.direction == "causal")),
        task_(config_, corpus_),
        adam_(task_.parameters(), train::AdamOptions{}),
        schedule_(train::make_schedule(config_.train)),
        batch_(task_.next()) {}

  void step() {
    task_.before_step(steps_++);
    adam_.zero_gradients();
    const std::unique_ptr<train::Batch> batch = task_.next();
    task_.backward(*batch, std::max(batch->weight, 1e-9));
    const double norm = train::global_norm(adam_.gradients());
    adam_.step(schedule_(steps_), train::clipping_scale(norm, config_.train.clip));
    task_.after_step();
  }
  // Logits of a batch in evaluation mode.
  void forward() {
    if (!tokens_.tokens.defined()) {
      const data::Batch content = data::BatchStream(corpus_, config_.data, config_.model.objective).next();
      tokens_ = train::to_tensors(content);
    }
    const at::NoGradGuard no_grad;
    LanguageModel model = task_.folder().model;
    model->eval();
    const train::AutocastScope autocast(bfloat16());
    model->forward(tokens_);
    model->train();
  }
  int64_t tokens() const { return batch_->tokens; }
  bool bfloat16() const { return config_.train.precision == "bfloat16"; }
  void verify(Row& row) const;
  // Operations of a forward pass per token in matrix products outside of attention.
  double dense_work() const;

 private:
  static train::LanguageModelConfig configure(const Request& request, const Row& row) {
    const Preset& size = preset(request.preset);
    train::LanguageModelConfig config;
    config.model = size.model;
    config.model.objective = row.direction == "causal" ? "causal" : "masked";
    config.attention = attention_of(row.kind, request.features, row.length);
    config.data = size.data;
    config.data.length = row.length;
    config.data.batch_tokens = row.length * row.batch;
    config.data.crop = "split";
    config.model.max_length = std::max(config.model.max_length, row.length);
    config.train.precision = row.dtype;
    config.train.warmup = 0;
    return config;
  }

  train::LanguageModelConfig config_;
  data::MemoryCorpus corpus_;
  train::LanguageModelTask task_;
  train::Adam adam_;
  train::Schedule schedule_;
  std::unique_ptr<train::Batch> batch_;
  SequenceBatch tokens_;
  int64_t steps_ = 0;
};

// Logits and the gradient of all parameters, without dropout, against the same model in double.
void Trainee::verify(Row& row) const {
  LanguageModel model = task_.folder().model;
  LanguageModel precise(config_.model, config_.attention, model->vocabulary());
  set_model_state(precise, model_state(model), "the model");
  precise->to(at::kDouble);
  model->eval();
  precise->eval();
  row.verified_tokens = std::min(row.length, kComparedTokens);
  SequenceBatch batch;
  batch.positions = at::arange(row.verified_tokens, at::kLong).unsqueeze(0);
  batch.tokens = (batch.positions * 7).remainder(20);
  const at::Tensor weight = at::sin(at::arange(row.verified_tokens * model->vocabulary(), at::kDouble))
                                .view({1, row.verified_tokens, -1});
  const auto results = [&](LanguageModel& each, bool autocast_on) {
    const at::Tensor logits = [&] {
      const train::AutocastScope autocast(autocast_on);
      return each->forward(batch).to(at::kDouble);
    }();
    (logits * weight).sum().backward();
    std::vector<at::Tensor> gradients;
    for (const at::Tensor& parameter : each->parameters()) {
      if (!parameter.grad().defined()) continue;
      gradients.push_back(parameter.grad().to(at::kDouble).flatten());
      parameter.mutable_grad().reset();
    }
    return std::make_pair(logits.detach(), at::cat(gradients));
  };
  const bool continuous = nn::capabilities_of(config_.attention).continuous;
  const bool half = bfloat16() && continuous;  // bfloat16 would decide differently for many tokens
  const auto found = results(model, half), expected = results(precise, false);
  model->train();
  const double bound = !continuous ? kDiscontinuousBound : half ? kHalfBound : kModelBound;
  const auto relative = [&](const at::Tensor& a, const at::Tensor& b) {
    const double error = a.sizes() == b.sizes()
                             ? (a - b).norm().item<double>() / std::max(b.norm().item<double>(), 1e-30)
                             : std::numeric_limits<double>::infinity();
    if (!(error <= row.error)) row.error = error;
    return error;
  };
  const double logits = relative(found.first, expected.first),
               gradients = relative(found.second, expected.second);
  if (logits <= bound && gradients <= bound) return;
  row.failure = fmt::format(
      "logits and gradients differ from those of the model in double by {:.2g} and {:.2g} of their size, "
      "more than {:g}",
      logits, gradients, bound);
}

double Trainee::dense_work() const {
  const bool reads = nn::capabilities_of(config_.attention).reads_queries;
  double work = 0;
  for (const auto& item : task_.folder().model->named_parameters()) {
    const std::string& name = item.key();
    if (item.value().dim() != 2 || name.find("embedding") != std::string::npos) continue;
    if (!reads && (name.find("attention.query") != std::string::npos ||
                   name.find("attention.key") != std::string::npos))
      continue;
    work += 2 * static_cast<double>(item.value().numel());
  }
  return work;
}

Case train_case(const Request& request, Row row, const std::shared_ptr<Trainee>& trainee) {
  const bool both = row.pass != "forward";
  // A backward pass of matrix products costs twice the forward one.
  row.work = (both ? 3 : 1) * trainee->dense_work() / static_cast<double>(row.heads);
  row.batch = request.batch;
  const auto work = [trainee, both] { both ? trainee->step() : trainee->forward(); };
  const auto verify = [trainee, work](Row& out) {
    trainee->verify(out);
    work();  // makes what stays: moments of the optimizer
    out.extra_bytes = peak_tensor_bytes(work);
  };
  return {row, verify, work};
}

}  // namespace

std::vector<Case> train_cases(const Request& request, const Machine& machine, int64_t length) {
  const ModelConfig& size = preset(request.preset).model;
  std::vector<Case> cases;
  for (const std::string& dtype : request.dtypes) {
    for (const std::string& direction : request.directions) {
      for (const std::string& kind : request.kinds) {
        Row row;
        row.op = "train", row.kind = kind, row.direction = direction, row.dtype = dtype;
        row.target = kernels::favor_kernels().name;
        row.length = length, row.heads = size.heads, row.head_size = head_size(size),
        row.batch = request.batch;
        const AttentionConfig attention = attention_of(kind, request.features);
        if (attention.options.contains("features")) row.features = request.features;
        row.threads = at::get_num_threads();
        row.limit = machine.limit(dtype);
        const auto trainee = std::make_shared<Trainee>(request, row);
        check<UsageError>(trainee->tokens() == row.batch * row.length,
                          "a batch of {} sequences of {} tokens cannot be made: it has {} tokens", row.batch,
                          row.length, trainee->tokens());
        for (const std::string& pass : request.passes) {
          row.pass = pass;
          cases.push_back(train_case(request, row, trainee));
        }
      }
    }
  }
  return cases;
}

}  // namespace performer::bench
