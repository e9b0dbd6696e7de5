// SPDX-License-Identifier: Apache-2.0
// A random attention problem with guarded buffers, and its answer by the quadratic definition in any
// precision.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "performer/base/error.h"
#include "performer/base/philox.h"
#include "performer/kernels/element.h"
#include "performer/kernels/favor.h"
#include "performer/kernels/function.h"
#include "performer/kernels/projection.h"

namespace performer::kernels::test {

// What a test varies.
struct Spec {
  int64_t batch = 1, queries = 1, keys = 1, heads = 2, d = 8, e = 8, m = 16;
  bool projection = true, causal = false, offset = false, mask = false;
  bool hadamard = false;  // a projection of that kind, with its factors
  Family family = Family::exponential;
  Function function = Function::relu;
  double epsilon = 0, deviation = 1, norm_weight = 0.5;
  std::vector<int64_t> cu = {};  // packed when not empty
  DataType type = DataType::float32;
  int64_t chunk = 0, padding = 3;  // elements between rows
  uint64_t seed = 1;

  std::string text() const {
    return fmt::format("{} {} B{} T{} S{} H{} D{} E{} M{} std{} chunk{} {}{}{}{} seed{}",
                       family == Family::exponential     ? "exponential"
                       : family == Family::trigonometric ? "trigonometric"
                                                         : function_name(function),
                       causal ? "causal" : "bidirectional", batch, queries, keys, heads, d, e, m, deviation,
                       chunk,
                       hadamard     ? "hadamard "
                       : projection ? "projected "
                                    : "",
                       mask ? "masked " : "", cu.empty() ? "" : "packed ", offset ? "offset" : "", seed);
  }
};

constexpr float kGuard = -12345.75f;
constexpr int64_t kGuardBytes = 16384;  // behind the scratch memory

// Rows [B, T, H, size] with `padding` guard elements after each row; filled with NaN until written.
class Buffer {
 public:
  Buffer() = default;
  Buffer(int64_t batch, int64_t tokens, int64_t heads, int64_t size, int64_t padding, DataType type)
      : shape_{batch, tokens, heads, size}, ld_(size + padding), type_(type) {
    bytes_ = type == DataType::float64 ? 8 : type == DataType::float32 ? 4 : 2;
    data_.resize(static_cast<size_t>(batch * tokens * heads * ld_ * bytes_ + 16));
    const View v = view();
    for (int64_t i = 0; i < rows() * ld_; ++i) store(v, i, i % ld_ < size ? std::nan("") : kGuard);
  }
  View view() const {
    const int64_t head = ld_, token = head * shape_[2], batch = token * shape_[1];
    return {const_cast<std::byte*>(data_.data()), type_, batch, token, head};
  }
  int64_t rows() const { return shape_[0] * shape_[1] * shape_[2]; }
  int64_t size() const { return shape_[3]; }
  double at(int64_t row, int64_t i) const { return load(view(), row * ld_ + i); }
  void set(int64_t row, int64_t i, double value) { store(view(), row * ld_ + i, value); }
  void fill_normal(PhiloxStream& random, double deviation) {
    for (int64_t r = 0; r < rows(); ++r) {
      for (int64_t i = 0; i < size(); ++i) set(r, i, deviation * random.normal());
    }
  }
  bool guards_intact() const {
    Buffer fresh(shape_[0], shape_[1], shape_[2], shape_[3], ld_ - shape_[3], type_);
    for (int64_t r = 0; r < rows(); ++r) {
      for (int64_t i = size(); i < ld_; ++i) {
        if (load(view(), r * ld_ + i) != load(fresh.view(), r * ld_ + i)) return false;
      }
    }
    return true;
  }
  std::vector<double> values() const {
    std::vector<double> all;
    for (int64_t r = 0; r < rows(); ++r) {
      for (int64_t i = 0; i < size(); ++i) all.push_back(at(r, i));
    }
    return all;
  }

 private:
  int64_t shape_[4] = {0, 0, 0, 0}, ld_ = 0, bytes_ = 0;
  DataType type_ = DataType::float32;
  std::vector<std::byte> data_;
};

struct Answer {
  std::vector<double> out, dq, dk, dv;
};

struct Problem {
  Spec spec;
  Buffer q, k, v, g;
  std::vector<float> projection, factors, offset;
  std::vector<char> key_mask, query_mask;
  int64_t sequences;

  explicit Problem(const Spec& s)
      : spec(s), sequences(s.cu.empty() ? s.batch : static_cast<int64_t>(s.cu.size()) - 1) {
    PhiloxStream random(s.seed);
    if (!s.cu.empty()) spec.batch = 1, spec.queries = spec.keys = s.cu.back();
    if (!s.projection) spec.m = s.d;
    q = Buffer(spec.batch, spec.queries, s.heads, s.d, s.padding, s.type);
    k = Buffer(spec.batch, spec.keys, s.heads, s.d, s.padding, s.type);
    v = Buffer(spec.batch, spec.keys, s.heads, s.e, s.padding, s.type);
    g = Buffer(spec.batch, spec.queries, s.heads, s.e, s.padding, s.type);
    q.fill_normal(random, s.deviation);
    k.fill_normal(random, s.deviation);
    v.fill_normal(random, 1);
    g.fill_normal(random, 1);
    if (s.projection) {
      projection.resize(static_cast<size_t>(s.heads * spec.m * s.d));
      for (float& x : projection) x = static_cast<float>(random.normal());
    }
    if (s.hadamard) draw_hadamard();
    if (s.offset) {
      offset.resize(static_cast<size_t>(spec.m));
      for (float& x : offset) x = static_cast<float>(random.normal());
    }
    if (s.mask) {
      for (int64_t i = 0; i < spec.batch * spec.keys; ++i) key_mask.push_back(random.uniform() < 0.7);
      for (int64_t i = 0; i < spec.batch * spec.queries; ++i) query_mask.push_back(random.uniform() < 0.9);
    }
  }

  void draw_hadamard() {
    for (int64_t h = 0; h < spec.heads; ++h) {
      const auto rows = draw_projection(ProjectionKind::hadamard, RowNorm::chi, spec.m, spec.d,
                                        {.seed = spec.seed, .head = static_cast<uint32_t>(h)});
      const auto of_head = hadamard_factors(rows.data(), spec.m, spec.d);
      EXPECT_EQ(of_head.size(), static_cast<size_t>(spec.m / spec.d * 4 * spec.d)) << spec.text();
      std::copy(rows.begin(), rows.end(), projection.begin() + h * spec.m * spec.d);
      factors.insert(factors.end(), of_head.begin(), of_head.end());
    }
  }

  FeatureMap map() const {
    FeatureMap map;
    map.family = spec.family;
    map.function = spec.function;
    map.epsilon = spec.epsilon;
    map.norm_weight = spec.norm_weight;
    map.scale = spec.family != Family::elementwise ? std::pow(static_cast<double>(spec.d), -0.25) : 1.0;
    if (!projection.empty()) {
      map.projection = projection.data();
      map.projection_head_stride = spec.m * spec.d;
    }
    if (!factors.empty()) {
      map.factors = factors.data();
      map.factors_head_stride = spec.m / spec.d * 4 * spec.d;
    }
    if (!offset.empty()) map.offset = offset.data();
    return map;
  }

  AttentionForward params() const {
    AttentionForward p;
    p.shape.batch = sequences;
    p.shape.query_tokens = spec.queries;
    p.shape.key_tokens = spec.keys;
    p.shape.heads = spec.heads;
    p.shape.head_size = spec.d;
    p.shape.value_size = spec.e;
    p.shape.features = spec.m;
    if (!spec.cu.empty()) p.shape.cu_query = p.shape.cu_key = spec.cu.data();
    p.map = map();
    p.causal = spec.causal;
    p.chunk = spec.chunk;
    p.query = q.view();
    p.key = k.view();
    p.value = v.view();
    if (!key_mask.empty()) {
      p.key_mask = reinterpret_cast<const bool*>(key_mask.data());
      p.query_mask = reinterpret_cast<const bool*>(query_mask.data());
    }
    return p;
  }

  size_t state_size() const {
    return static_cast<size_t>(sequences * spec.heads * state_features(spec.family, spec.m));
  }
  size_t sum_bytes() const { return spec.type == DataType::float64 ? 8 : 4; }
};

// Runs a table; checks guards; gradients too when asked.
// `keep_state`: the backward pass gets the state that the forward pass ended with.
inline Answer run(const FavorKernels& kernels, const Problem& problem, bool gradients,
                  Executor* executor = nullptr, bool keep_state = false) {
  SerialExecutor serial;
  Executor& threads = executor != nullptr ? *executor : serial;
  const Spec& s = problem.spec;
  AttentionForward p = problem.params();
  Buffer out(s.batch, s.queries, s.heads, s.e, s.padding, s.type);
  std::vector<double> normalizer(static_cast<size_t>(s.batch * s.queries * s.heads + 1), std::nan(""));
  p.out = out.view();
  p.normalizer = normalizer.data();
  const int64_t bytes = std::max(kernels.workspace(p, false), kernels.workspace(p, true)) * threads.workers();
  std::vector<char> scratch(static_cast<size_t>(bytes + kGuardBytes), 0x7f);
  const auto scratch_intact = [&] {
    return std::count(scratch.begin() + bytes, scratch.end(), 0x7f) == kGuardBytes;
  };
  std::vector<float> kv(keep_state ? problem.state_size() * static_cast<size_t>(s.e) : 0),
      key_sum(keep_state ? problem.state_size() : 0), log_scale(key_sum.size());
  if (keep_state) p.final = {kv.data(), key_sum.data(), log_scale.data()};
  kernels.forward(p, threads, scratch.data());
  EXPECT_TRUE(out.guards_intact() && scratch_intact()) << "out: " << s.text();
  Answer answer;
  answer.out = out.values();
  if (!gradients) return answer;
  Buffer dq(s.batch, s.queries, s.heads, s.d, s.padding, s.type),
      dk(s.batch, s.keys, s.heads, s.d, s.padding, s.type),
      dv(s.batch, s.keys, s.heads, s.e, s.padding, s.type);
  AttentionBackward b;
  b.forward = p;
  b.grad_out = problem.g.view();
  b.grad_query = dq.view();
  b.grad_key = dk.view();
  b.grad_value = dv.view();
  kernels.backward(b, threads, scratch.data());
  EXPECT_TRUE(dq.guards_intact() && dk.guards_intact() && dv.guards_intact() && scratch_intact())
      << "gradients: " << s.text();
  answer.dq = dq.values();
  answer.dk = dk.values();
  answer.dv = dv.values();
  return answer;
}

// One head of one sequence in the definition below.
template <class T>
class QuadraticHead {
 public:
  QuadraticHead(const Problem& problem, int64_t n, int64_t h, Answer& answer)
      : problem_(problem), s_(problem.spec), p_(problem.params()), h_(h), a_(answer) {
    qr_ = query_rows(p_.shape, n);
    kr_ = key_rows(p_.shape, n);
  }

  void run() {
    std::vector<std::vector<T>> xq(qr_.count), xk(kr_.count);
    for (int64_t i = 0; i < qr_.count; ++i) uq_.push_back(logits(problem_.q, q_row(i), false, xq[i]));
    for (int64_t j = 0; j < kr_.count; ++j) uk_.push_back(logits(problem_.k, k_row(j), true, xk[j]));
    duq_.assign(qr_.count, std::vector<T>(s_.m));
    duk_.assign(kr_.count, std::vector<T>(s_.m));
    dlog_.assign(kr_.count, 0);
    for (const auto& u : uq_) waves_q_.push_back(waves_of(u));
    for (const auto& u : uk_) waves_k_.push_back(waves_of(u));
    for (const auto& x : xk) {
      T squares = 0;
      for (T value : x) squares += value * value;
      log_.push_back(-static_cast<T>(s_.norm_weight) * squares);
    }
    for (int64_t i = 0; i < qr_.count; ++i) {
      if (problem_.query_mask.empty() || problem_.query_mask[qr_.batch * s_.queries + qr_.first + i])
        trigonometric() ? waves(i) : query(i);
    }
    for (int64_t i = 0; i < qr_.count; ++i) pull(duq_[i], xq[i], false, 0, q_row(i), a_.dq);
    for (int64_t j = 0; j < kr_.count; ++j) pull(duk_[j], xk[j], true, dlog_[j], k_row(j), a_.dk);
  }

 private:
  bool exponential() const { return s_.family == Family::exponential; }
  bool trigonometric() const { return s_.family == Family::trigonometric; }
  int64_t q_row(int64_t i) const { return (qr_.batch * s_.queries + qr_.first + i) * s_.heads + h_; }
  int64_t k_row(int64_t j) const { return (kr_.batch * s_.keys + kr_.first + j) * s_.heads + h_; }
  T phi(T u) const { return apply_function(s_.function, u) + static_cast<T>(s_.epsilon); }
  T projection(int64_t f, int64_t i) const {
    return static_cast<T>(problem_.projection[(h_ * s_.m + f) * s_.d + i]);
  }
  bool sees(int64_t i, int64_t j) const {
    return (!s_.causal || j <= i) &&
           (problem_.key_mask.empty() || problem_.key_mask[kr_.batch * s_.keys + kr_.first + j]);
  }

  std::vector<T> logits(const Buffer& x, int64_t row, bool key, std::vector<T>& scaled) const {
    std::vector<T> u(static_cast<size_t>(s_.m));
    scaled.resize(static_cast<size_t>(s_.d));
    T squares = 0;
    for (int64_t i = 0; i < s_.d; ++i) {
      scaled[i] = static_cast<T>(p_.map.scale) * static_cast<T>(x.at(row, i));
      squares += scaled[i] * scaled[i];
    }
    for (int64_t f = 0; f < s_.m; ++f) {
      if (!s_.projection) u[f] = scaled[f];
      for (int64_t i = 0; s_.projection && i < s_.d; ++i) u[f] += projection(f, i) * scaled[i];
      if (s_.offset) u[f] += static_cast<T>(problem_.offset[f]);
      if (exponential() && key) u[f] -= static_cast<T>(s_.norm_weight) * squares;
    }
    return u;
  }

  // The output of a query, and what it adds to the gradients.
  void query(int64_t i) {
    T shift = -std::numeric_limits<T>::infinity(), total = 0;
    for (int64_t j = 0; j < kr_.count; ++j) {
      for (int64_t f = 0; sees(i, j) && f < s_.m; ++f) shift = std::max(shift, uq_[i][f] + uk_[j][f]);
    }
    std::vector<T> weight(kr_.count), row(s_.e);
    for (int64_t j = 0; j < kr_.count; ++j) {
      for (int64_t f = 0; sees(i, j) && f < s_.m; ++f) {
        weight[j] +=
            exponential() ? std::exp(uq_[i][f] + uk_[j][f] - shift) : phi(uq_[i][f]) * phi(uk_[j][f]);
      }
      total += weight[j];
      for (int64_t c = 0; c < s_.e; ++c) row[c] += weight[j] * static_cast<T>(problem_.v.at(k_row(j), c));
    }
    if (vanishes(static_cast<double>(total))) return;
    T dot = 0;
    for (int64_t c = 0; c < s_.e; ++c) {
      row[c] /= total;
      a_.out[q_row(i) * s_.e + c] = row[c];
      dot += static_cast<T>(problem_.g.at(q_row(i), c)) * row[c];
    }
    for (int64_t j = 0; j < kr_.count; ++j) {
      if (sees(i, j)) key_of_query(i, j, weight[j], total, shift, dot);
    }
  }

  void key_of_query(int64_t i, int64_t j, T weight, T total, T shift, T dot) {
    T t = -dot;
    for (int64_t c = 0; c < s_.e; ++c) {
      const T g = static_cast<T>(problem_.g.at(q_row(i), c));
      t += g * static_cast<T>(problem_.v.at(k_row(j), c));
      a_.dv[k_row(j) * s_.e + c] += weight / total * g;
    }
    for (int64_t f = 0; f < s_.m; ++f) {
      if (exponential()) {
        const T w = std::exp(uq_[i][f] + uk_[j][f] - shift) / total * t;
        duq_[i][f] += w;
        duk_[j][f] += w;
      } else {
        duq_[i][f] += function_derivative(s_.function, uq_[i][f]) * phi(uk_[j][f]) / total * t;
        duk_[j][f] += function_derivative(s_.function, uk_[j][f]) * phi(uq_[i][f]) / total * t;
      }
    }
  }

  // Cosines of arguments, then their sines.
  std::vector<T> waves_of(const std::vector<T>& u) const {
    std::vector<T> both;
    for (T value : u) both.push_back(std::cos(value));
    for (T value : u) both.push_back(std::sin(value));
    return both;
  }

  // The same in the trigonometric family, where a denominator may be replaced by the floor.
  void waves(int64_t i) {
    const std::vector<T>& wq = waves_q_[i];
    T most = static_cast<T>(kEmptyLogScale), total = 0, weights = 0;
    for (int64_t j = 0; j < kr_.count; ++j) {
      if (sees(i, j)) most = std::max(most, log_[j]);
    }
    std::vector<T> w(kr_.count), pair(kr_.count), row(s_.e);
    for (int64_t j = 0; j < kr_.count; ++j) {
      if (!sees(i, j)) continue;
      w[j] = std::exp(log_[j] - most);
      const std::vector<T>& wk = waves_k_[j];
      for (int64_t f = 0; f < s_.m; ++f) pair[j] += w[j] * (wq[f] * wk[f] + wq[s_.m + f] * wk[s_.m + f]);
      total += pair[j];
      weights += w[j];
      for (int64_t c = 0; c < s_.e; ++c) row[c] += pair[j] * static_cast<T>(problem_.v.at(k_row(j), c));
    }
    if (weights == 0) return;
    const T share = static_cast<T>(kTrigonometricFloor) * static_cast<T>(s_.m);
    const bool floored = std::abs(total) < share * weights;
    const T sign = total < 0 ? T(-1) : T(1);
    if (floored) total = sign * share * weights;
    T dot = 0;
    for (int64_t c = 0; c < s_.e; ++c) {
      a_.out[q_row(i) * s_.e + c] = row[c] / total;
      dot += static_cast<T>(problem_.g.at(q_row(i), c)) * row[c] / total;
    }
    for (int64_t j = 0; j < kr_.count; ++j) {
      if (!sees(i, j)) continue;
      const std::vector<T>& wk = waves_k_[j];
      T t = floored ? T(0) : -dot;
      for (int64_t c = 0; c < s_.e; ++c) {
        const T g = static_cast<T>(problem_.g.at(q_row(i), c));
        t += g * static_cast<T>(problem_.v.at(k_row(j), c));
        a_.dv[k_row(j) * s_.e + c] += pair[j] / total * g;
      }
      t /= total;
      dlog_[j] += pair[j] * t + (floored ? w[j] * sign * share * -dot / total : T(0));
      for (int64_t f = 0; f < s_.m; ++f) {
        const T turn = w[j] * t * (wk[s_.m + f] * wq[f] - wk[f] * wq[s_.m + f]);
        duq_[i][f] += turn;
        duk_[j][f] -= turn;
      }
    }
  }

  // From gradients of u, and that of the key's log-weight, to those of the input.
  void pull(const std::vector<T>& du, const std::vector<T>& x, bool key, T dlog, int64_t row,
            std::vector<double>& out) const {
    T sum = 0;
    for (T value : du) sum += value;
    if (trigonometric()) sum = dlog;
    for (int64_t i = 0; i < s_.d; ++i) {
      T d = s_.projection ? 0 : du[i];
      for (int64_t f = 0; s_.projection && f < s_.m; ++f) d += du[f] * projection(f, i);
      if (s_.family != Family::elementwise && key) d -= 2 * static_cast<T>(s_.norm_weight) * sum * x[i];
      out[row * s_.d + i] = static_cast<T>(p_.map.scale) * d;
    }
  }

  const Problem& problem_;
  const Spec& s_;
  const AttentionForward p_;
  int64_t h_;
  Answer& a_;
  Rows qr_, kr_;
  std::vector<std::vector<T>> uq_, uk_, duq_, duk_;
  std::vector<std::vector<T>> waves_q_, waves_k_;
  std::vector<T> log_, dlog_;  // trigonometric: log-weights of keys and their gradients
};

// The definition as a masked quadratic form, computed in T: independent of states, scales and chunks.
template <class T>
Answer quadratic(const Problem& problem) {
  const Spec& s = problem.spec;
  Answer a;
  a.out.assign(static_cast<size_t>(s.batch * s.queries * s.heads * s.e), 0);
  a.dq.assign(static_cast<size_t>(s.batch * s.queries * s.heads * s.d), 0);
  a.dk.assign(static_cast<size_t>(s.batch * s.keys * s.heads * s.d), 0);
  a.dv.assign(static_cast<size_t>(s.batch * s.keys * s.heads * s.e), 0);
  for (int64_t n = 0; n < problem.sequences; ++n) {
    for (int64_t h = 0; h < s.heads; ++h) QuadraticHead<T>(problem, n, h, a).run();
  }
  return a;
}

inline double largest(const std::vector<double>& x) {
  double most = 0;
  for (double value : x) most = std::max(most, std::abs(value));
  return most;
}

// Largest difference; infinite when sizes differ or anything is not finite.
inline double difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) return std::numeric_limits<double>::infinity();
    most = std::max(most, std::abs(a[i] - b[i]));
  }
  return most;
}

}  // namespace performer::kernels::test
