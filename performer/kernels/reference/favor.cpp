// SPDX-License-Identifier: Apache-2.0
// The definition of every result: one token at a time, in double. Read this before any other kernel. The
// trigonometric family has a file of its own.
#include <algorithm>
#include <cmath>
#include <vector>

#include "performer/kernels/element.h"
#include "performer/kernels/favor.h"
#include "performer/kernels/function.h"
#include "performer/kernels/reference/sums.h"
#include "performer/kernels/reference/trigonometric.h"

namespace performer::kernels {
namespace {

using reference::load_sum, reference::store_sum, reference::sum_type, reference::weight_of;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The feature map of one (sequence, head).
class Map {
 public:
  Map(const FeatureMap& map, const Shape& shape, int64_t sequence, int64_t head)
      : map_(map), d_(shape.head_size), m_(shape.features), x_(d_) {
    if (map.projection != nullptr) {
      projection_ =
          map.projection + sequence * map.projection_batch_stride + head * map.projection_head_stride;
    }
    if (map.offset != nullptr)
      offset_ = map.offset + sequence * map.offset_batch_stride + head * map.offset_head_stride;
  }
  bool exponential() const { return map_.family == Family::exponential; }

  // u_f of one row, and x'. The norm term, common to all features, is for keys only: for queries it cancels.
  void evaluate(const View& view, int64_t offset, bool key, std::vector<double>& u) {
    double squares = 0;
    for (int64_t i = 0; i < d_; ++i) {
      x_[i] = map_.scale * load(view, offset + i);
      squares += x_[i] * x_[i];
    }
    for (int64_t f = 0; f < m_; ++f) {
      double sum = 0;
      if (projection_ == nullptr)
        sum = x_[f];
      else
        for (int64_t i = 0; i < d_; ++i) sum += static_cast<double>(projection_[f * d_ + i]) * x_[i];
      if (offset_ != nullptr) sum += offset_[f];
      if (exponential() && key) sum -= map_.norm_weight * squares;
      u[f] = sum;
    }
  }
  double feature(double u) const { return apply_function(map_.function, u) + map_.epsilon; }
  double derivative(double u) const { return function_derivative(map_.function, u); }

  // Gradient of the row given that of u; x' must be that of the last evaluate().
  void store_gradient(const View& view, int64_t offset, bool key, const std::vector<double>& du) {
    double total = 0;
    for (double value : du) total += value;
    for (int64_t i = 0; i < d_; ++i) {
      double sum = 0;
      if (projection_ == nullptr)
        sum = du[i];
      else
        for (int64_t f = 0; f < m_; ++f) sum += du[f] * static_cast<double>(projection_[f * d_ + i]);
      if (exponential() && key) sum -= 2 * map_.norm_weight * total * x_[i];
      store(view, offset + i, map_.scale * sum);
    }
  }

 private:
  const FeatureMap& map_;
  int64_t d_, m_;
  std::vector<double> x_;
  const float* projection_ = nullptr;
  const float* offset_ = nullptr;
};

// Running sums with a log-scale per feature: the keys' (kv, key_sum), and in the backward pass their mirror,
// the queries' sums of output gradients.
struct Sums {
  int64_t m, e;
  std::vector<double> values, last, scale;  // [M, E], [M], [M]

  Sums(int64_t features, int64_t value_size)
      : m(features), e(value_size), values(m * e, 0.0), last(m, 0.0), scale(m, kEmptyLogScale) {}

  void load_state(const State& state, DataType type, int64_t index, bool exponential) {
    for (int64_t i = 0; i < m * e; ++i) values[i] = load_sum(state.kv, type, index * m * e + i);
    for (int64_t f = 0; f < m; ++f) {
      last[f] = load_sum(state.key_sum, type, index * m + f);
      if (exponential) scale[f] = load_sum(state.log_scale, type, index * m + f);
    }
  }
  void store_state(const State& state, DataType type, int64_t index, bool exponential) const {
    for (int64_t i = 0; i < m * e; ++i) store_sum(state.kv, type, index * m * e + i, values[i]);
    for (int64_t f = 0; f < m; ++f) {
      store_sum(state.key_sum, type, index * m + f, last[f]);
      store_sum(state.log_scale, type, index * m + f, exponential ? scale[f] : 0);
    }
  }
  // Adds exp(log_weight) * (row, tail) to feature f, keeping scale_f the largest log-weight so far.
  void add_scaled(int64_t f, double log_weight, const std::vector<double>& row, double tail) {
    if (log_weight > scale[f]) {
      const double factor = std::exp(scale[f] - log_weight);
      for (int64_t i = 0; i < e; ++i) values[f * e + i] *= factor;
      last[f] *= factor;
      scale[f] = log_weight;
    }
    add(f, std::exp(log_weight - scale[f]), row, tail);
  }
  void add(int64_t f, double weight, const std::vector<double>& row, double tail) {
    for (int64_t i = 0; i < e; ++i) values[f * e + i] += weight * row[i];
    last[f] += weight * tail;
  }
};

// One (sequence, head) of a forward or backward pass.
class Pass {
 public:
  Pass(const AttentionForward& p, int64_t sequence, int64_t head)
      : p_(p),
        head_(head),
        index_(sequence * p.shape.heads + head),
        map_(p.map, p.shape, sequence, head),
        m_(p.shape.features),
        e_(p.shape.value_size),
        queries_(query_rows(p.shape, sequence)),
        keys_(key_rows(p.shape, sequence)),
        state_(m_, e_),
        u_(m_),
        du_(m_),
        row_(e_) {
    if (p.initial) state_.load_state(p.initial, sums(), index_, map_.exponential());
  }

  void forward() {
    if (!p_.causal)
      for (int64_t j = 0; j < keys_.count; ++j) absorb(j);
    for (int64_t i = 0; i < queries_.count; ++i) {
      if (p_.causal) absorb(i);
      read(i);
    }
    if (p_.final) state_.store_state(p_.final, sums(), index_, map_.exponential());
  }

  void backward(const AttentionBackward& b) {
    if (!p_.causal)
      for (int64_t j = 0; j < keys_.count; ++j) absorb(j);
    for (int64_t i = 0; i < queries_.count; ++i) {
      if (p_.causal) absorb(i);
      query_gradient(b, i);
    }
    Sums mirror(m_, e_);
    if (b.grad_final) {
      mirror.load_state({b.grad_final.kv, b.grad_final.key_sum, p_.final.log_scale}, sums(), index_,
                        map_.exponential());
      for (double& scale : mirror.scale) scale = -scale;
    }
    if (!p_.causal)
      for (int64_t i = 0; i < queries_.count; ++i) mirror_query(b, i, mirror);
    for (int64_t j = keys_.count - 1; j >= 0; --j) {
      if (p_.causal) mirror_query(b, j, mirror);
      key_gradient(b, j, mirror);
    }
    if (b.grad_initial) {
      for (int64_t f = 0; f < m_; ++f) {
        const double factor =
            map_.exponential()
                ? weight_of(load_sum(p_.initial.log_scale, sums(), index_ * m_ + f) + mirror.scale[f])
                : 1;
        for (int64_t i = 0; i < e_; ++i) {
          store_sum(b.grad_initial.kv, sums(), (index_ * m_ + f) * e_ + i,
                    factor * mirror.values[f * e_ + i]);
        }
        store_sum(b.grad_initial.key_sum, sums(), index_ * m_ + f, factor * mirror.last[f]);
      }
    }
  }

 private:
  DataType sums() const { return sum_type(p_.query); }
  int64_t normalizer_index(int64_t i) const {
    return row_index(queries_, i, p_.shape.query_tokens) * p_.shape.heads + head_;
  }
  bool keeps_key(int64_t j) const {
    return p_.key_mask == nullptr || p_.key_mask[row_index(keys_, j, p_.shape.key_tokens)];
  }
  bool keeps_query(int64_t i) const {
    return p_.query_mask == nullptr || p_.query_mask[row_index(queries_, i, p_.shape.query_tokens)];
  }

  void absorb(int64_t j) {
    if (!keeps_key(j)) return;
    map_.evaluate(p_.key, keys_.at(p_.key, j, head_), true, u_);
    for (int64_t i = 0; i < e_; ++i) row_[i] = load(p_.value, keys_.at(p_.value, j, head_) + i);
    for (int64_t f = 0; f < m_; ++f) {
      if (map_.exponential())
        state_.add_scaled(f, u_[f], row_, 1);
      else
        state_.add(f, map_.feature(u_[f]), row_, 1);
    }
  }

  void read(int64_t i) {
    double denominator = 0, shift = 0;
    std::fill(row_.begin(), row_.end(), 0.0);
    bool empty = !keeps_query(i);
    if (!empty) {
      map_.evaluate(p_.query, queries_.at(p_.query, i, head_), false, u_);
      if (map_.exponential()) {
        shift = -kInfinity;
        for (int64_t f = 0; f < m_; ++f) {
          const double exponent = u_[f] + state_.scale[f];
          if (std::isnan(exponent) || exponent > shift) shift = exponent;
          if (std::isnan(exponent)) break;
        }
        empty = shift < kEmptyLogScale / 2;
      }
    }
    for (int64_t f = 0; f < m_ && !empty; ++f) {
      const double weight =
          map_.exponential() ? std::exp(u_[f] + state_.scale[f] - shift) : map_.feature(u_[f]);
      denominator += weight * state_.last[f];
      for (int64_t k = 0; k < e_; ++k) row_[k] += weight * state_.values[f * e_ + k];
    }
    empty = empty || vanishes(denominator);
    for (int64_t k = 0; k < e_; ++k) {
      store(p_.out, queries_.at(p_.out, i, head_) + k, empty ? 0 : row_[k] / denominator);
    }
    if (p_.normalizer == nullptr) return;
    const double none = map_.exponential() ? kInfinity : 0;
    const double normalizer = map_.exponential() ? shift + std::log(denominator) : denominator;
    store_sum(p_.normalizer, sums(), normalizer_index(i), empty ? none : normalizer);
  }

  // For row i: its u, its output gradient (row_) and g.out; false when the row has no gradient.
  bool load_query(const AttentionBackward& b, int64_t i, double& normalizer, double& dot) {
    normalizer = load_sum(p_.normalizer, sums(), normalizer_index(i));
    if (map_.exponential() ? normalizer == kInfinity : normalizer == 0) return false;
    map_.evaluate(p_.query, queries_.at(p_.query, i, head_), false, u_);
    dot = 0;
    for (int64_t k = 0; k < e_; ++k) {
      row_[k] = load(b.grad_out, queries_.at(b.grad_out, i, head_) + k);
      dot += row_[k] * load(p_.out, queries_.at(p_.out, i, head_) + k);
    }
    return true;
  }

  void query_gradient(const AttentionBackward& b, int64_t i) {
    double normalizer = 0, dot = 0;
    std::fill(du_.begin(), du_.end(), 0.0);
    const bool live = load_query(b, i, normalizer, dot);
    for (int64_t f = 0; f < m_ && live; ++f) {
      double inner = -dot * state_.last[f];
      for (int64_t k = 0; k < e_; ++k) inner += row_[k] * state_.values[f * e_ + k];
      const double weight = map_.exponential() ? weight_of(u_[f] + state_.scale[f] - normalizer)
                                               : map_.derivative(u_[f]) / normalizer;
      du_[f] = weight * inner;
    }
    map_.store_gradient(b.grad_query, queries_.at(b.grad_query, i, head_), false, du_);
  }

  void mirror_query(const AttentionBackward& b, int64_t i, Sums& mirror) {
    double normalizer = 0, dot = 0;
    if (!load_query(b, i, normalizer, dot)) return;
    for (int64_t f = 0; f < m_; ++f) {
      if (map_.exponential())
        mirror.add_scaled(f, u_[f] - normalizer, row_, -dot);
      else
        mirror.add(f, map_.feature(u_[f]) / normalizer, row_, -dot);
    }
  }

  void key_gradient(const AttentionBackward& b, int64_t j, const Sums& mirror) {
    const bool live = keeps_key(j);
    std::fill(du_.begin(), du_.end(), 0.0);
    std::fill(row_.begin(), row_.end(), 0.0);
    map_.evaluate(p_.key, keys_.at(p_.key, j, head_), true, u_);
    for (int64_t f = 0; f < m_ && live; ++f) {
      const double weight = map_.exponential() ? weight_of(u_[f] + mirror.scale[f]) : map_.feature(u_[f]);
      double inner = mirror.last[f];
      for (int64_t k = 0; k < e_; ++k) {
        inner += mirror.values[f * e_ + k] * load(p_.value, keys_.at(p_.value, j, head_) + k);
        row_[k] += weight * mirror.values[f * e_ + k];
      }
      du_[f] = (map_.exponential() ? weight : map_.derivative(u_[f])) * inner;
    }
    map_.store_gradient(b.grad_key, keys_.at(b.grad_key, j, head_), true, du_);
    for (int64_t k = 0; k < e_; ++k) store(b.grad_value, keys_.at(b.grad_value, j, head_) + k, row_[k]);
  }

  const AttentionForward& p_;
  int64_t head_, index_;
  Map map_;
  int64_t m_, e_;
  Rows queries_, keys_;
  Sums state_;
  std::vector<double> u_, du_, row_;
};

template <class Work>
void for_each_head(const Shape& shape, Executor& executor, Work&& work) {
  executor.parallel_for(shape.batch * shape.heads, [&](int64_t begin, int64_t end, int) {
    for (int64_t item = begin; item < end; ++item) work(item / shape.heads, item % shape.heads);
  });
}

int64_t workspace(const AttentionForward&, bool) {
  return 0;
}

int64_t step_workspace(const AttentionStep&) {
  return 0;
}

void forward(const AttentionForward& p, Executor& executor, void*) {
  for_each_head(p.shape, executor, [&](int64_t sequence, int64_t head) {
    if (p.map.family == Family::trigonometric)
      reference::trigonometric_forward(p, sequence, head);
    else
      Pass(p, sequence, head).forward();
  });
}

void backward(const AttentionBackward& b, Executor& executor, void*) {
  for_each_head(b.forward.shape, executor, [&](int64_t sequence, int64_t head) {
    if (b.forward.map.family == Family::trigonometric)
      reference::trigonometric_backward(b, sequence, head);
    else
      Pass(b.forward, sequence, head).backward(b);
  });
}

void step(const AttentionStep& p, Executor& executor, void*) {
  AttentionForward forward_pass;
  forward_pass.shape = p.shape;
  forward_pass.shape.query_tokens = forward_pass.shape.key_tokens = 1;
  forward_pass.map = p.map;
  forward_pass.causal = true;
  forward_pass.query = p.query;
  forward_pass.key = p.key;
  forward_pass.value = p.value;
  forward_pass.out = p.out;
  forward_pass.initial = forward_pass.final = p.state;
  forward(forward_pass, executor, nullptr);
}

}  // namespace

const FavorKernels& favor_reference() {
  static const FavorKernels kernels{"reference", workspace, forward, backward, step, step_workspace};
  return kernels;
}

}  // namespace performer::kernels
