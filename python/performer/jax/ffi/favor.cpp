// SPDX-License-Identifier: Apache-2.0
// performer_favor_forward and performer_favor_backward: the kernels of performer/kernels/favor.h as XLA calls
// them. Arguments and results are listed below in their order; the Python side is python/performer/jax.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "performer/kernels/favor.h"
#include "performer/kernels/projection.h"
#include "python/performer/jax/ffi/operand.h"
#include "python/performer/jax/ffi/pool_executor.h"

namespace performer::jax_ffi {
namespace {

namespace ffi = xla::ffi;

struct Attributes {
  std::string family, function;
  double scale = 1, norm_weight = 0.5, epsilon = 0;
  int64_t causal = 0, chunk = 0;
};

Operand argument(ffi::RemainingArgs& arguments, size_t index, size_t rank, const char* name) {
  const auto buffer = arguments.get<ffi::AnyBuffer>(index);
  check<UsageError>(buffer.has_value(), "argument {} of the attention handler, {}, is missing", index, name);
  return {*buffer, rank, name};
}

Operand result(ffi::RemainingRets& results, size_t index, size_t rank, const char* name) {
  auto buffer = results.get<ffi::AnyBuffer>(index);
  check<UsageError>(buffer.has_value(), "result {} of the attention handler, {}, is missing", index, name);
  return {**buffer, rank, name};
}

// kv [B, H, M, E], key_sum and log_scale [B, H, M].
struct StateOperands {
  Operand kv, key_sum, log_scale;
  kernels::State entry(int64_t n, const std::vector<int64_t>& all) const {
    return {kv.optional<void>(n, all), key_sum.optional<void>(n, all), log_scale.optional<void>(n, all)};
  }
};

// The first arguments of both handlers.
constexpr size_t kInputs = 10;
struct Inputs {
  Operand query, key, value;     // [B, T, H, D], [B, S, H, D], [B, S, H, E]
  Operand projection, offset;    // [B or 1, H or 1, M, D], [B or 1, H or 1, M] float32
  Operand key_mask, query_mask;  // [B, S], [B, T] bool
  StateOperands initial;

  explicit Inputs(ffi::RemainingArgs& a)
      : query(argument(a, 0, 4, "query")),
        key(argument(a, 1, 4, "key")),
        value(argument(a, 2, 4, "value")),
        projection(argument(a, 3, 4, "projection")),
        offset(argument(a, 4, 3, "offset")),
        key_mask(argument(a, 5, 2, "key_mask")),
        query_mask(argument(a, 6, 2, "query_mask")),
        initial{argument(a, 7, 4, "initial kv"), argument(a, 8, 3, "initial key_sum"),
                argument(a, 9, 3, "initial log_scale")} {
    check<UsageError>(query.size(0) == key.size(0) && key.size(0) == value.size(0) &&
                          key.size(1) == value.size(1) && query.size(2) == key.size(2) &&
                          key.size(2) == value.size(2) && query.size(3) == key.size(3),
                      "query [B, T, H, D], key [B, S, H, D] and value [B, S, H, E] do not fit each other");
  }
};

// A call, and in how many runs of the kernels it is done: one for all that jax.vmap mapped over where the
// buffers lie as one large batch, else one for each entry.
class Problem {
 public:
  Problem(const Inputs& inputs, const Operand& out, const Attributes& attributes, ffi::ThreadPool pool)
      : inputs_(inputs),
        attributes_(attributes),
        all_(out.mapped()),
        executor_(pool),
        table_(inputs.query.data_type() == kernels::DataType::float64 ? kernels::favor_reference()
                                                                      : kernels::favor_kernels()) {
    merged_ = product(all_) > 1 && one_batch();
  }

  int64_t runs() const { return merged_ ? 1 : product(all_); }
  const std::vector<int64_t>& all() const { return all_; }
  PoolExecutor& executor() { return executor_; }
  const kernels::FavorKernels& table() const { return table_; }

  kernels::AttentionForward run(int64_t n) {
    kernels::AttentionForward p;
    const int64_t batch = inputs_.query.size(0);
    const bool projected = inputs_.projection.given();
    p.shape.batch = merged_ ? batch * product(all_) : batch;
    p.shape.query_tokens = inputs_.query.size(1);
    p.shape.key_tokens = inputs_.key.size(1);
    p.shape.heads = inputs_.query.size(2);
    p.shape.head_size = inputs_.query.size(3);
    p.shape.value_size = inputs_.value.size(3);
    p.shape.features = projected ? inputs_.projection.size(2) : p.shape.head_size;
    set_map(p.map, n);
    if (projected) set_factors(p);
    p.causal = attributes_.causal != 0;
    p.chunk = attributes_.chunk;
    p.query = inputs_.query.view(n, all_);
    p.key = inputs_.key.view(n, all_);
    p.value = inputs_.value.view(n, all_);
    p.key_mask = inputs_.key_mask.optional<bool>(n, all_);
    p.query_mask = inputs_.query_mask.optional<bool>(n, all_);
    p.initial = inputs_.initial.entry(n, all_);
    return p;
  }

  // Scratch memory of all workers.
  std::unique_ptr<void, decltype(&std::free)> scratch(const kernels::AttentionForward& p, bool backward) {
    constexpr size_t kAlignment = 64;
    const auto bytes = static_cast<size_t>(table_.workspace(p, backward) * executor_.workers());
    void* memory = std::aligned_alloc(
        kAlignment, std::max(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment));
    if (memory == nullptr) throw std::bad_alloc();
    return {memory, &std::free};
  }

 private:
  bool one_batch() const {
    const int64_t batch = inputs_.query.size(0);
    const auto whole = [&](const Operand& x) { return !x.given() || x.whole(all_, batch); };
    const auto constant = [&](const Operand& x) { return whole(x) || x.shared(); };
    return whole(inputs_.query) && whole(inputs_.key) && whole(inputs_.value) && whole(inputs_.key_mask) &&
           whole(inputs_.query_mask) && whole(inputs_.initial.kv) && whole(inputs_.initial.key_sum) &&
           whole(inputs_.initial.log_scale) && constant(inputs_.projection) && constant(inputs_.offset);
  }

  void set_map(kernels::FeatureMap& map, int64_t n) const {
    map.family =
        attributes_.family == "exponential" ? kernels::Family::exponential : kernels::Family::elementwise;
    if (map.family == kernels::Family::elementwise) {
      map.function = kernels::function_from_name(attributes_.function);
    }
    map.scale = attributes_.scale;
    map.norm_weight = attributes_.norm_weight;
    map.epsilon = attributes_.epsilon;
    const auto strides = [&](const Operand& x, int64_t size, int64_t& batch, int64_t& head) {
      if (x.size(1) > 1) head = size;
      if (x.size(0) > 1 || (merged_ && !x.shared())) batch = size * x.size(1);
    };
    if (inputs_.projection.given()) {
      const Operand& x = inputs_.projection;
      map.projection = x.optional<const float>(n, all_);
      strides(x, x.size(2) * x.size(3), map.projection_batch_stride, map.projection_head_stride);
    }
    if (inputs_.offset.given()) {
      const Operand& x = inputs_.offset;
      map.offset = x.optional<const float>(n, all_);
      strides(x, x.size(2), map.offset_batch_stride, map.offset_head_stride);
    }
  }

  // Those of a Hadamard projection, with which products are transforms.
  void set_factors(kernels::AttentionForward& p) {
    const Operand& x = inputs_.projection;
    if (p.map.projection == nullptr || table_.name == "reference") return;
    const bool for_all = merged_ && !x.shared();  // of jax.vmap
    const int64_t matrices = x.size(0) * x.size(1) * (for_all ? product(all_) : 1);
    const int64_t blocks = p.shape.features / p.shape.head_size * 4 * p.shape.head_size;
    if (searched_ != p.map.projection) {
      const int64_t tokens = p.shape.batch * std::max(p.shape.query_tokens, p.shape.key_tokens);
      factors_ = kernels::factors_for_tokens(p.map.projection, matrices, p.shape.features, p.shape.head_size,
                                             tokens * p.shape.heads / matrices, executor_);
      searched_ = p.map.projection;
    }
    if (factors_.empty()) return;
    p.map.factors = factors_.data();
    if (p.map.projection_head_stride > 0) p.map.factors_head_stride = blocks;
    if (p.map.projection_batch_stride > 0) p.map.factors_batch_stride = blocks * x.size(1);
  }

  const Inputs& inputs_;
  const Attributes& attributes_;
  std::vector<int64_t> all_;  // sizes of the dimensions of jax.vmap
  bool merged_ = false;
  PoolExecutor executor_;
  const kernels::FavorKernels& table_;
  std::vector<float> factors_;       // of the projection
  const float* searched_ = nullptr;  // that was searched for them
};

// Results: out [B, T, H, E], normalizer [B, T, H], and the final state.
void forward(ffi::ThreadPool pool, ffi::RemainingArgs& arguments, ffi::RemainingRets& results,
             const Attributes& attributes) {
  const Inputs inputs(arguments);
  const Operand out = result(results, 0, 4, "out"), normalizer = result(results, 1, 3, "normalizer");
  const StateOperands final{result(results, 2, 4, "final kv"), result(results, 3, 3, "final key_sum"),
                            result(results, 4, 3, "final log_scale")};
  Problem problem(inputs, out, attributes, pool);
  for (int64_t n = 0; n < problem.runs(); ++n) {
    kernels::AttentionForward p = problem.run(n);
    p.out = out.view(n, problem.all());
    p.normalizer = normalizer.entry(n, problem.all());
    p.final = final.entry(n, problem.all());
    const auto scratch = problem.scratch(p, false);
    problem.table().forward(p, problem.executor(), scratch.get());
  }
}

// Arguments: those of the forward pass, its out and normalizer, the gradient of out, the final state, and the
// gradients of its kv and key_sum. Results: gradients of query, key, value, and of the initial state's kv and
// key_sum.
void backward(ffi::ThreadPool pool, ffi::RemainingArgs& arguments, ffi::RemainingRets& results,
              const Attributes& attributes) {
  const Inputs inputs(arguments);
  const auto input = [&](size_t index, size_t rank, const char* name) {
    return argument(arguments, kInputs + index, rank, name);
  };
  const Operand out = input(0, 4, "out"), normalizer = input(1, 3, "normalizer"),
                grad_out = input(2, 4, "grad_out");
  const StateOperands final{input(3, 4, "final kv"), input(4, 3, "final key_sum"),
                            input(5, 3, "final log_scale")};
  const Operand grad_kv = input(6, 4, "grad_kv"), grad_key_sum = input(7, 3, "grad_key_sum");
  const Operand query = result(results, 0, 4, "grad_query"), key = result(results, 1, 4, "grad_key"),
                value = result(results, 2, 4, "grad_value"), kv = result(results, 3, 4, "grad_initial_kv"),
                key_sum = result(results, 4, 3, "grad_initial_key_sum");
  Problem problem(inputs, query, attributes, pool);
  const std::vector<int64_t>& all = problem.all();
  for (int64_t n = 0; n < problem.runs(); ++n) {
    kernels::AttentionBackward b;
    b.forward = problem.run(n);
    b.forward.out = out.view(n, all);
    b.forward.normalizer = normalizer.entry(n, all);
    b.forward.final = final.entry(n, all);
    b.grad_out = grad_out.view(n, all);
    b.grad_query = query.view(n, all);
    b.grad_key = key.view(n, all);
    b.grad_value = value.view(n, all);
    b.grad_final = {grad_kv.optional<void>(n, all), grad_key_sum.optional<void>(n, all), nullptr};
    b.grad_initial = {kv.optional<void>(n, all), key_sum.optional<void>(n, all), nullptr};
    const auto scratch = problem.scratch(b.forward, true);
    problem.table().backward(b, problem.executor(), scratch.get());
  }
}

template <auto run>
ffi::Error handle(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                  std::string_view family, std::string_view function, double scale, double norm_weight,
                  double epsilon, int64_t causal, int64_t chunk) {
  return reported([&] {
    const Attributes attributes{
        std::string(family), std::string(function), scale, norm_weight, epsilon, causal, chunk};
    run(pool, arguments, results, attributes);
  });
}

auto attention_binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .RemainingArgs()
      .RemainingRets()
      .Attr<std::string_view>("family")
      .Attr<std::string_view>("function")
      .Attr<double>("scale")
      .Attr<double>("norm_weight")
      .Attr<double>("epsilon")
      .Attr<int64_t>("causal")
      .Attr<int64_t>("chunk");
}

}  // namespace

PERFORMER_EXPORT_HANDLER(performer_favor_forward);
XLA_FFI_DEFINE_HANDLER_SYMBOL(performer_favor_forward, handle<forward>, attention_binding());
PERFORMER_EXPORT_HANDLER(performer_favor_backward);
XLA_FFI_DEFINE_HANDLER_SYMBOL(performer_favor_backward, handle<backward>, attention_binding());

}  // namespace performer::jax_ffi
