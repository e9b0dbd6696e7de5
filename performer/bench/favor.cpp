// SPDX-License-Identifier: Apache-2.0
// The attention kernels by direction, pass, type of the inputs and CPU target.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "performer/bench/cases.h"
#include "performer/bench/memory.h"
#include "performer/ops/executor.h"

namespace performer::bench {
namespace {

// The double reference is slow: rows are compared with it over this many tokens, of two heads.
constexpr int64_t kReferenceTokens = 500, kReferenceHeads = 2;

// Inputs and outputs of all rows of one type: a shorter sequence uses the first part of the same memory, so
// that rows of all lengths can be timed by turns.
struct Buffers {
  Buffers(const Request& request, const std::string& type, const at::Tensor& random, int64_t size)
      : dtype(type), heads(request.heads), head_size(request.head_size), batch(request.batch) {
    const at::ScalarType scalar = scalar_type(type);
    query = random[0].to(scalar), key = random[1].to(scalar), value = random[2].to(scalar);
    grad = random[3].to(scalar);
    for (at::Tensor* each : {&out, &grad_query, &grad_key, &grad_value}) *each = at::zeros({size}, scalar);
    normalizer = at::zeros({size / head_size}, at::kFloat);
  }
  // [B, L, H, D] of the first tokens.
  at::Tensor rows(const at::Tensor& flat, int64_t length) const {
    return flat.narrow(0, 0, batch * length * heads * head_size).view({batch, length, heads, head_size});
  }

  std::string dtype;
  int64_t heads, head_size, batch;
  at::Tensor query, key, value, grad, out, grad_query, grad_key, grad_value, normalizer;
};

kernels::View view_of(const at::Tensor& rows) {
  static const std::map<at::ScalarType, kernels::DataType> types = {
      {at::kFloat, kernels::DataType::float32},
      {at::kDouble, kernels::DataType::float64},
      {at::kBFloat16, kernels::DataType::bfloat16},
      {at::kHalf, kernels::DataType::float16}};
  return {rows.data_ptr(), types.at(rows.scalar_type()), rows.stride(0), rows.stride(1), rows.stride(2)};
}

// A call of the kernels on tensors [B, T, H, D], which it keeps alive.
struct Call {
  Call(const KernelMap& map, bool causal, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
       const at::Tensor& g)
      : query(q), key(k), value(v), grad(g) {
    kernels::AttentionForward& p = backward.forward;
    p.shape.batch = q.size(0), p.shape.query_tokens = q.size(1), p.shape.key_tokens = k.size(1);
    p.shape.heads = q.size(2), p.shape.head_size = q.size(3), p.shape.value_size = v.size(3);
    p.shape.features = map.rows;
    p.map = map.map;
    p.causal = causal;
    p.query = view_of(q), p.key = view_of(k), p.value = view_of(v);
  }
  void write_to(const at::Tensor& o, const at::Tensor& dq, const at::Tensor& dk, const at::Tensor& dv,
                const at::Tensor& sums) {
    out = o, grad_query = dq, grad_key = dk, grad_value = dv, normalizer = sums;
    backward.forward.out = view_of(o);
    backward.forward.normalizer = sums.data_ptr();
    backward.grad_out = view_of(grad);
    backward.grad_query = view_of(dq), backward.grad_key = view_of(dk), backward.grad_value = view_of(dv);
  }
  // Outputs of its own, filled with NaN until they are written.
  void write_anew(at::ScalarType sums) {
    const auto nan = [](at::IntArrayRef shape, const at::Tensor& like) {
      return at::full(shape, std::nan(""), like.options());
    };
    const at::Tensor rows = nan({query.size(0), query.size(1), query.size(2), value.size(3)}, value);
    write_to(rows, nan(query.sizes(), query), nan(key.sizes(), key), nan(value.sizes(), value),
             at::full({query.size(0) * query.size(1) * query.size(2)}, std::nan(""), sums));
  }
  int64_t workspace(const kernels::FavorKernels& kernels, bool both) const {
    const int64_t forward = kernels.workspace(backward.forward, false);
    return (both ? std::max(forward, kernels.workspace(backward.forward, true)) : forward) *
           at::get_num_threads();
  }
  void run(const kernels::FavorKernels& kernels, bool both, void* scratch) const {
    ops::TorchExecutor executor;
    kernels.forward(backward.forward, executor, scratch);
    if (both) kernels.backward(backward, executor, scratch);
  }
  void run(const kernels::FavorKernels& kernels, bool both) const {
    const at::Tensor scratch = at::empty({workspace(kernels, both) + 1}, at::kChar);
    run(kernels, both, scratch.data_ptr());
  }

  at::Tensor query, key, value, grad, out, grad_query, grad_key, grad_value, normalizer;
  kernels::AttentionBackward backward;
};

// What rows are compared with, computed once for rows that need the same.
class References {
 public:
  // All results over the first tokens of two heads of the first sequence.
  const Call& whole(const std::string& kind, const KernelMap& map, bool causal, const Buffers& buffers,
                    int64_t length) {
    const auto key = std::make_tuple(kind, buffers.dtype, causal, length);
    const auto known = whole_.find(key);
    if (known != whole_.end()) return known->second;
    Call call = part(map, causal, buffers, length, at::kDouble);
    call.write_anew(at::kDouble);
    call.run(kernels::favor_reference(), true);
    return whole_.emplace(key, std::move(call)).first->second;
  }
  // The same as a call with inputs of `type` and without outputs. Heads keep their strides.
  static Call part(const KernelMap& map, bool causal, const Buffers& buffers, int64_t length,
                   at::ScalarType type) {
    const auto of = [&](const at::Tensor& flat) {
      const at::Tensor rows =
          buffers.rows(flat, length).narrow(0, 0, 1).narrow(2, 0, std::min(kReferenceHeads, buffers.heads));
      return type == rows.scalar_type() ? rows : rows.to(type);
    };
    return {map, causal, of(buffers.query), of(buffers.key), of(buffers.value), of(buffers.grad)};
  }
  // The output of the very last query, which sees all keys in both directions.
  const at::Tensor& last(const std::string& kind, const KernelMap& map, const Buffers& buffers,
                         int64_t length) {
    const auto key = std::make_tuple(kind, buffers.dtype, length);
    const auto known = last_.find(key);
    if (known != last_.end()) return known->second;
    const int64_t head = buffers.heads - 1;
    const auto of = [&](const at::Tensor& flat, int64_t first) {
      return buffers.rows(flat, length)
          .narrow(0, buffers.batch - 1, 1)
          .narrow(2, head, 1)
          .narrow(1, first, length - first)
          .to(at::kDouble);
    };
    KernelMap alone = map;
    if (alone.map.projection != nullptr) alone.map.projection += head * alone.map.projection_head_stride;
    alone.map.factors = nullptr;  // of all heads; the reference has no use for them
    if (alone.map.offset != nullptr) alone.map.offset += head * alone.map.offset_head_stride;
    Call call(alone, false, of(buffers.query, length - 1), of(buffers.key, 0), of(buffers.value, 0), {});
    call.grad = at::zeros({1, 1, 1, buffers.head_size}, at::kDouble);
    call.write_anew(at::kDouble);
    call.run(kernels::favor_reference(), false);
    return last_.emplace(key, call.out).first->second;
  }

 private:
  std::map<std::tuple<std::string, std::string, bool, int64_t>, Call> whole_;
  std::map<std::tuple<std::string, std::string, int64_t>, at::Tensor> last_;
};

// Useful operations per token and head of a forward pass; a backward pass computes features and sums again
// and three gradients, which makes both passes together three times as many.
double favor_work(const KernelMap& map, double d, bool causal) {
  const double m = static_cast<double>(map.features);
  // Of a row of a projection: its product with a query or a key, or its share of three transforms and four
  // diagonals.
  const double row = map.factors.defined() ? 3 * std::log2(d) + 4 : 2 * d;
  const double projection = map.projected ? 2 * row * static_cast<double>(map.rows) : 0;
  return projection + (causal ? 4 * m * (d + 1) : 4 * m * d);
}

double exact_work(double length, double d, bool causal) {
  return causal ? 2 * (length + 1) * d : 4 * length * d;
}

class Builder {
 public:
  Builder(const Request& request, const Machine& machine) : request_(request), machine_(machine) {
    int64_t longest = 0;
    for (const int64_t length : request.lengths) longest = std::max(longest, length);
    const int64_t size = request.batch * longest * request.heads * request.head_size;
    const at::Tensor random = at::randn({4, size}, at::detail::createCPUGenerator(1));
    for (const std::string& dtype : request.dtypes)
      buffers_.push_back(std::make_shared<Buffers>(request, dtype, random, size));
    references_ = std::make_shared<References>();
  }

  std::vector<Case> cases() {
    for (const auto& buffers : buffers_) {
      for (const int64_t length : request_.lengths) {
        for (const std::string& direction : request_.directions) {
          for (const std::string& pass : request_.passes) {
            for (const std::string& kind : request_.kinds)
              add(kind, row_of(*buffers, length, direction, pass), buffers);
          }
        }
      }
    }
    return std::move(cases_);
  }

 private:
  Row row_of(const Buffers& buffers, int64_t length, const std::string& direction,
             const std::string& pass) const {
    Row row;
    row.op = "favor";
    row.direction = direction, row.pass = pass, row.dtype = buffers.dtype;
    row.length = length, row.heads = request_.heads, row.head_size = request_.head_size;
    row.batch = request_.batch, row.threads = at::get_num_threads();
    row.limit = machine_.limit(row.dtype);
    return row;
  }

  void add(const std::string& kind, Row row, const std::shared_ptr<Buffers>& buffers) {
    row.kind = kind;
    if (kind == "exact") return cases_.push_back(exact(row, buffers));
    if (kind == "identity") return cases_.push_back(identity(row, buffers));
    for (const kernels::FavorKernels* target : machine_.targets) {
      row.target = target->name;
      cases_.push_back(favor(row, buffers, *target));
    }
  }

  const std::shared_ptr<const KernelMap>& map_of(const std::string& kind) {
    auto& map = maps_[kind];
    if (!map) {
      map = std::make_shared<const KernelMap>(
          kernel_map(kind, request_.heads, request_.head_size, request_.features));
    }
    return map;
  }

  Case favor(Row row, const std::shared_ptr<Buffers>& buffers, const kernels::FavorKernels& target) {
    const std::shared_ptr<const KernelMap> map = map_of(row.kind);
    const bool causal = row.direction == "causal", both = row.pass != "forward";
    row.features = map->features;
    row.work = (both ? 3 : 1) * favor_work(*map, static_cast<double>(row.head_size), causal);
    const auto rows = [&](const at::Tensor& flat) { return buffers->rows(flat, row.length); };
    auto call = std::make_shared<Call>(*map, causal, rows(buffers->query), rows(buffers->key),
                                       rows(buffers->value), rows(buffers->grad));
    call->write_to(rows(buffers->out), rows(buffers->grad_query), rows(buffers->grad_key),
                   rows(buffers->grad_value), buffers->normalizer);
    if (!both) call->backward.forward.normalizer = nullptr;
    const int64_t scratch = call->workspace(target, both);
    row.extra_bytes = scratch + (both ? row.batch * row.length * row.heads * 4 : 0);
    if (scratch_bytes_ == nullptr) scratch_bytes_ = std::make_shared<at::Tensor>();
    if (!scratch_bytes_->defined() || scratch_bytes_->numel() < scratch + 1) {
      *scratch_bytes_ = at::zeros({scratch + 1}, at::kChar);
    }
    const auto verify = [map, buffers, call, causal, both, &target, references = references_](Row& row) {
      row.verified_tokens = std::min(row.length, kReferenceTokens);
      const Call& expected = references->whole(row.kind, *map, causal, *buffers, row.verified_tokens);
      Call found = References::part(*map, causal, *buffers, row.verified_tokens, scalar_type(row.dtype));
      found.write_anew(at::kFloat);
      found.run(target, both);
      compare(row, found.out, expected.out, "outputs");
      if (both) {
        compare(row, found.grad_query, expected.grad_query, "gradients of queries");
        compare(row, found.grad_key, expected.grad_key, "gradients of keys");
        compare(row, found.grad_value, expected.grad_value, "gradients of values");
      }
      if (row.verified_tokens == row.length) return;
      call->out.fill_(std::nan(""));
      call->run(target, false);
      const at::Tensor last = call->out.narrow(0, row.batch - 1, 1).narrow(1, row.length - 1, 1);
      compare(row, last.narrow(2, row.heads - 1, 1), references->last(row.kind, *map, *buffers, row.length),
              "outputs of the last token");
    };
    return {row, verify, [call, both, &target, scratch = scratch_bytes_] {
              call->run(target, both, scratch->data_ptr());
            }};
  }

  // Softmax attention as LibTorch computes it, from the same memory.
  Case exact(Row row, const std::shared_ptr<Buffers>& buffers) const {
    const bool causal = row.direction == "causal", both = row.pass != "forward";
    row.target = "libtorch";
    row.work = (both ? 3.5 : 1) *
               exact_work(static_cast<double>(row.length), static_cast<double>(row.head_size), causal);
    const auto attend = [causal, both](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const at::Tensor& g) -> std::vector<at::Tensor> {
      const auto input = [both](const at::Tensor& x) {
        return x.transpose(1, 2).detach().requires_grad_(both);
      };
      const std::vector<at::Tensor> inputs = {input(q), input(k), input(v)};
      const at::AutoGradMode gradients(both);
      const at::Tensor out =
          at::scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], {}, 0.0, causal);
      if (!both) return {out};
      auto all = torch::autograd::grad({out}, inputs, {g.transpose(1, 2)});
      all.insert(all.begin(), out.detach());
      return all;
    };
    const auto work = [buffers, attend, length = row.length] {
      attend(buffers->rows(buffers->query, length), buffers->rows(buffers->key, length),
             buffers->rows(buffers->value, length), buffers->rows(buffers->grad, length));
    };
    const auto verify = [buffers, attend, work, causal, both](Row& row) {
      row.verified_tokens = std::min(row.length, kReferenceTokens);
      const auto part = [&](const at::Tensor& flat) {
        return buffers->rows(flat, row.length).narrow(0, 0, 1).narrow(1, 0, row.verified_tokens);
      };
      const std::vector<at::Tensor> found =
          attend(part(buffers->query), part(buffers->key), part(buffers->value), part(buffers->grad));
      const std::vector<at::Tensor> expected = softmax_attention(
          part(buffers->query), part(buffers->key), part(buffers->value), part(buffers->grad), causal);
      const char* names[] = {"outputs", "gradients of queries", "gradients of keys", "gradients of values"};
      for (size_t i = 0; i < found.size(); ++i) compare(row, found[i], expected[i], names[i]);
      const int64_t outputs =
          (both ? 4 : 1) * buffers->rows(buffers->out, row.length).numel() * buffers->out.element_size();
      row.extra_bytes = std::max<int64_t>(0, peak_tensor_bytes(work) - outputs);
    };
    return {row, verify, work};
  }

  // By its definition, in double: outputs and gradients [B, H, T, D].
  static std::vector<at::Tensor> softmax_attention(const at::Tensor& q, const at::Tensor& k,
                                                   const at::Tensor& v, const at::Tensor& g, bool causal) {
    const auto input = [](const at::Tensor& x) {
      return x.to(at::kDouble).transpose(1, 2).detach().requires_grad_(true);
    };
    const std::vector<at::Tensor> inputs = {input(q), input(k), input(v)};
    at::Tensor scores =
        inputs[0].matmul(inputs[1].transpose(-1, -2)) / std::sqrt(static_cast<double>(q.size(3)));
    if (causal) {
      const at::Tensor future = at::ones({q.size(1), q.size(1)}, at::kBool).triu(1);
      scores = scores.masked_fill(future, -std::numeric_limits<double>::infinity());
    }
    const at::Tensor out = scores.softmax(-1).matmul(inputs[2]);
    auto all = torch::autograd::grad({out}, inputs, {g.to(at::kDouble).transpose(1, 2)});
    all.insert(all.begin(), out.detach());
    return all;
  }

  // The values themselves: the bound "X (OPT)" of any attention.
  Case identity(Row row, const std::shared_ptr<Buffers>& buffers) const {
    const bool both = row.pass != "forward";
    row.target = "copy";
    row.work = 0;
    const auto rows = [&](const at::Tensor& flat) { return buffers->rows(flat, row.length); };
    const auto work = [value = rows(buffers->value), grad = rows(buffers->grad), out = rows(buffers->out),
                       grad_value = rows(buffers->grad_value), both] {
      out.copy_(value);
      if (both) grad_value.copy_(grad);
    };
    const auto verify = [work, buffers](Row& row) {
      work();
      row.verified_tokens = row.length;
      compare(row, buffers->rows(buffers->out, row.length),
              buffers->rows(buffers->value, row.length).to(at::kDouble), "outputs");
    };
    return {row, verify, work};
  }

  const Request& request_;
  const Machine& machine_;
  std::vector<std::shared_ptr<Buffers>> buffers_;
  std::map<std::string, std::shared_ptr<const KernelMap>> maps_;
  std::shared_ptr<References> references_;
  std::shared_ptr<at::Tensor> scratch_bytes_;  // the largest that a row needs, shared by all
  std::vector<Case> cases_;
};

}  // namespace

std::vector<Case> favor_cases(const Request& request, const Machine& machine) {
  return Builder(request, machine).cases();
}

}  // namespace performer::bench
