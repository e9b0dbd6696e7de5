// SPDX-License-Identifier: Apache-2.0
// The trigonometric family, one token at a time, in double.
//
// With W_ij = w_j sum_f cos(u_f(q_i) - u_f(k_j)), the output of a row is sum_j W_ij v_j / S_i. S_i is
// sum_j W_ij, or where that is below the floor c sum_j w_j (c = kTrigonometricFloor * M) the floor with its
// sign. Let G_i = g_i / S_i. Then d v_j = sum_i W_ij G_i and
//   d W_ij = G_i.v_j + h_i,   h_i = -(g_i.out_i) / S_i, or 0 where the floor stands for the denominator,
//   d w_j gets z_i = -(+-c) (g_i.out_i) / S_i from each row with a floor that sees the key.
// Rows of the queries' mirror state are sum_i psi_f(q_i) [G_i, h_i], and [0, sum_i z_i] for the constant.
#include "performer/kernels/reference/trigonometric.h"

#include <limits>
#include <vector>

#include "performer/kernels/reference/sums.h"

namespace performer::kernels::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Sums for cosines, sines and the constant 1; the true ones are exp(scale) times these.
struct Sums {
  int64_t features, e;
  std::vector<double> values, last;  // [2M + 1, E], [2M + 1]
  double scale = kEmptyLogScale;

  Sums(int64_t count, int64_t value_size)
      : features(count), e(value_size), values(features * e, 0.0), last(features, 0.0) {}

  void load_state(const State& state, DataType type, int64_t index) {
    for (int64_t i = 0; i < features * e; ++i) values[i] = load_sum(state.kv, type, index * features * e + i);
    for (int64_t f = 0; f < features; ++f) last[f] = load_sum(state.key_sum, type, index * features + f);
    scale = load_sum(state.log_scale, type, index * features + features - 1);
  }
  void store_state(const State& state, DataType type, int64_t index) const {
    for (int64_t i = 0; i < features * e; ++i) store_sum(state.kv, type, index * features * e + i, values[i]);
    for (int64_t f = 0; f < features; ++f) {
      store_sum(state.key_sum, type, index * features + f, last[f]);
      store_sum(state.log_scale, type, index * features + f, scale);
    }
  }
  // Brings the scale up to `log_weight` and returns the weight of something of that log-weight.
  double weight_at(double log_weight) {
    if (log_weight > scale) {
      const double factor = std::exp(scale - log_weight);
      for (double& value : values) value *= factor;
      for (double& value : last) value *= factor;
      scale = log_weight;
    }
    return std::exp(log_weight - scale);
  }
  void add(int64_t f, double weight, const std::vector<double>& row, double tail) {
    for (int64_t i = 0; i < e; ++i) values[f * e + i] += weight * row[i];
    last[f] += weight * tail;
  }
};

class Pass {
 public:
  Pass(const AttentionForward& p, int64_t sequence, int64_t head)
      : p_(p),
        head_(head),
        index_(sequence * p.shape.heads + head),
        m_(p.shape.features),
        d_(p.shape.head_size),
        e_(p.shape.value_size),
        queries_(query_rows(p.shape, sequence)),
        keys_(key_rows(p.shape, sequence)),
        type_(sum_type(p.query)),
        state_(2 * m_ + 1, e_),
        x_(d_),
        psi_(2 * m_ + 1),
        du_(m_),
        row_(e_) {
    const FeatureMap& map = p.map;
    if (map.projection != nullptr)
      projection_ =
          map.projection + sequence * map.projection_batch_stride + head * map.projection_head_stride;
    if (map.offset != nullptr)
      offset_ = map.offset + sequence * map.offset_batch_stride + head * map.offset_head_stride;
    if (p.initial) state_.load_state(p.initial, type_, index_);
  }

  void forward() {
    if (!p_.causal)
      for (int64_t j = 0; j < keys_.count; ++j) absorb(j);
    for (int64_t i = 0; i < queries_.count; ++i) {
      if (p_.causal) absorb(i);
      read(i);
    }
    if (p_.final) state_.store_state(p_.final, type_, index_);
  }

  void backward(const AttentionBackward& b) {
    if (!p_.causal)
      for (int64_t j = 0; j < keys_.count; ++j) absorb(j);
    for (int64_t i = 0; i < queries_.count; ++i) {
      if (p_.causal) absorb(i);
      scales_.push_back(state_.scale);
      floors_.push_back(floor());
      query_gradient(b, i);
    }
    Sums mirror(2 * m_ + 1, e_);
    if (b.grad_final) {
      mirror.load_state({b.grad_final.kv, b.grad_final.key_sum, p_.final.log_scale}, type_, index_);
      mirror.scale = -mirror.scale;
    }
    if (!p_.causal)
      for (int64_t i = 0; i < queries_.count; ++i) mirror_query(b, i, mirror);
    for (int64_t j = keys_.count - 1; j >= 0; --j) {
      if (p_.causal) mirror_query(b, j, mirror);
      key_gradient(b, j, mirror);
    }
    if (!b.grad_initial) return;
    const int64_t features = 2 * m_ + 1;
    const double initial = load_sum(p_.initial.log_scale, type_, index_ * features + features - 1);
    const double factor = weight_of(initial + mirror.scale);
    for (int64_t i = 0; i < features * e_; ++i)
      store_sum(b.grad_initial.kv, type_, index_ * features * e_ + i, factor * mirror.values[i]);
    for (int64_t f = 0; f < features; ++f)
      store_sum(b.grad_initial.key_sum, type_, index_ * features + f, factor * mirror.last[f]);
  }

 private:
  int64_t normalizer_index(int64_t i) const {
    return row_index(queries_, i, p_.shape.query_tokens) * p_.shape.heads + head_;
  }
  bool keeps_key(int64_t j) const {
    return p_.key_mask == nullptr || p_.key_mask[row_index(keys_, j, p_.shape.key_tokens)];
  }
  bool keeps_query(int64_t i) const {
    return p_.query_mask == nullptr || p_.query_mask[row_index(queries_, i, p_.shape.query_tokens)];
  }

  // psi: cosines, sines and 1 of a row, x' and the log of its weight.
  double evaluate(const View& view, int64_t at) {
    double squares = 0;
    for (int64_t i = 0; i < d_; ++i) {
      x_[i] = p_.map.scale * load(view, at + i);
      squares += x_[i] * x_[i];
    }
    for (int64_t f = 0; f < m_; ++f) {
      double u = projection_ == nullptr ? x_[f] : 0;
      for (int64_t i = 0; projection_ != nullptr && i < d_; ++i)
        u += static_cast<double>(projection_[f * d_ + i]) * x_[i];
      if (offset_ != nullptr) u += offset_[f];
      psi_[f] = std::cos(u);
      psi_[m_ + f] = std::sin(u);
    }
    psi_[2 * m_] = 1;
    return -p_.map.norm_weight * squares;
  }

  // Gradient of the row of the last evaluate(), given that of u and that of the log of its weight.
  void store_gradient(const View& view, int64_t at, double log_weight) const {
    for (int64_t i = 0; i < d_; ++i) {
      double sum = projection_ == nullptr ? du_[i] : 0;
      for (int64_t f = 0; projection_ != nullptr && f < m_; ++f)
        sum += du_[f] * static_cast<double>(projection_[f * d_ + i]);
      sum -= 2 * p_.map.norm_weight * log_weight * x_[i];
      store(view, at + i, p_.map.scale * sum);
    }
  }

  void absorb(int64_t j) {
    if (!keeps_key(j)) return;
    const double weight = state_.weight_at(evaluate(p_.key, keys_.at(p_.key, j, head_)));
    for (int64_t i = 0; i < e_; ++i) row_[i] = load(p_.value, keys_.at(p_.value, j, head_) + i);
    for (int64_t f = 0; f <= 2 * m_; ++f) state_.add(f, weight * psi_[f], row_, 1);
  }

  // The floor of denominators that see the present state.
  double floor() const { return kTrigonometricFloor * static_cast<double>(m_) * state_.last[2 * m_]; }

  void read(int64_t i) {
    double denominator = 0, normalizer = 0;
    std::fill(row_.begin(), row_.end(), 0.0);
    if (keeps_query(i) && state_.last[2 * m_] != 0) {
      evaluate(p_.query, queries_.at(p_.query, i, head_));
      for (int64_t f = 0; f < 2 * m_; ++f) {
        denominator += psi_[f] * state_.last[f];
        for (int64_t k = 0; k < e_; ++k) row_[k] += psi_[f] * state_.values[f * e_ + k];
      }
      normalizer = denominator;
      if (std::abs(denominator) < floor()) {
        normalizer = denominator < 0 ? -kInfinity : kInfinity;
        denominator = std::copysign(floor(), normalizer);
      }
      for (double& value : row_) value /= denominator;
    }
    for (int64_t k = 0; k < e_; ++k) store(p_.out, queries_.at(p_.out, i, head_) + k, row_[k]);
    if (p_.normalizer != nullptr) store_sum(p_.normalizer, type_, normalizer_index(i), normalizer);
  }

  // For row i: psi, G_i (row_), h_i and z_i, in units of its scale; false when the row has no gradient.
  bool load_query(const AttentionBackward& b, int64_t i, double& h, double& z) {
    const double normalizer = load_sum(p_.normalizer, type_, normalizer_index(i));
    evaluate(p_.query, queries_.at(p_.query, i, head_));
    h = z = 0;
    if (normalizer == 0) return false;
    const bool floored = std::isinf(normalizer);
    const double denominator = floored ? std::copysign(floors_[i], normalizer) : normalizer;
    double dot = 0;
    for (int64_t k = 0; k < e_; ++k) {
      const double g = load(b.grad_out, queries_.at(b.grad_out, i, head_) + k);
      dot += g * load(p_.out, queries_.at(p_.out, i, head_) + k);
      row_[k] = g / denominator;
    }
    if (floored)
      z = std::copysign(kTrigonometricFloor * static_cast<double>(m_), normalizer) * -dot / denominator;
    else
      h = -dot / denominator;
    return true;
  }

  void query_gradient(const AttentionBackward& b, int64_t i) {
    double h = 0, z = 0;
    const bool live = load_query(b, i, h, z);
    const auto pull = [&](int64_t f) {
      double sum = h * state_.last[f];
      for (int64_t k = 0; k < e_; ++k) sum += row_[k] * state_.values[f * e_ + k];
      return sum;
    };
    for (int64_t f = 0; f < m_; ++f) du_[f] = live ? psi_[f] * pull(m_ + f) - psi_[m_ + f] * pull(f) : 0;
    store_gradient(b.grad_query, queries_.at(b.grad_query, i, head_), 0);
  }

  void mirror_query(const AttentionBackward& b, int64_t i, Sums& mirror) {
    double h = 0, z = 0;
    if (!load_query(b, i, h, z)) return;
    const double weight = mirror.weight_at(-scales_[i]);
    for (int64_t f = 0; f < 2 * m_; ++f) mirror.add(f, weight * psi_[f], row_, h);
    mirror.last[2 * m_] += weight * z;
  }

  void key_gradient(const AttentionBackward& b, int64_t j, const Sums& mirror) {
    const double log_weight = evaluate(p_.key, keys_.at(p_.key, j, head_));
    const double weight = keeps_key(j) ? weight_of(log_weight + mirror.scale) : 0;
    std::fill(row_.begin(), row_.end(), 0.0);
    std::vector<double> pulled(2 * m_ + 1, 0.0);
    double total = 0;
    for (int64_t f = 0; f <= 2 * m_ && keeps_key(j); ++f) {
      double sum = mirror.last[f];
      for (int64_t k = 0; k < e_; ++k) {
        sum += mirror.values[f * e_ + k] * load(p_.value, keys_.at(p_.value, j, head_) + k);
        row_[k] += weight * psi_[f] * mirror.values[f * e_ + k];
      }
      pulled[f] = weight * sum;
      total += psi_[f] * pulled[f];
    }
    for (int64_t f = 0; f < m_; ++f) du_[f] = psi_[f] * pulled[m_ + f] - psi_[m_ + f] * pulled[f];
    store_gradient(b.grad_key, keys_.at(b.grad_key, j, head_), total);
    for (int64_t k = 0; k < e_; ++k) store(b.grad_value, keys_.at(b.grad_value, j, head_) + k, row_[k]);
  }

  const AttentionForward& p_;
  int64_t head_, index_, m_, d_, e_;
  Rows queries_, keys_;
  DataType type_;
  Sums state_;
  std::vector<double> x_, psi_, du_, row_;
  std::vector<double> scales_, floors_;  // of the state that each query sees
  const float* projection_ = nullptr;
  const float* offset_ = nullptr;
};

}  // namespace

void trigonometric_forward(const AttentionForward& pass, int64_t sequence, int64_t head) {
  Pass(pass, sequence, head).forward();
}

void trigonometric_backward(const AttentionBackward& pass, int64_t sequence, int64_t head) {
  Pass(pass.forward, sequence, head).backward(pass);
}

}  // namespace performer::kernels::reference
