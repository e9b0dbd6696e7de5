// SPDX-License-Identifier: Apache-2.0
// The contract of the attention kernels: below it no LibTorch, above it no raw pointers.
//
// Linear attention is one feature map and one state (docs/architecture.md). With x' = scale * x,
//
//   exponential family:   phi_f(x) = exp(u_f),      u_f = P_f.x' + c_f - eta |x'|^2
//   element-wise family:  phi_f(x) = g(u_f) + eps,  u_f = P_f.x' + c_f
//   trigonometric family: phi(x) = exp(-eta |x'|^2) (cos u_1, ..., cos u_M, sin u_1, ..., sin u_M), u_f as
//                         element-wise; eta = -1/2 estimates softmax attention
//
//   out_i = sum_j (phi(q_i).phi(k_j)) v_j / sum_j (phi(q_i).phi(k_j)),   j <= i when causal.
//
// State of one (sequence, head): kv = sum_j phi(k_j) v_j^T (M x E), key_sum = sum_j phi(k_j) (M) and, in the
// exponential family, log_scale (M): the true sums are exp(log_scale_f) * (kv_f, key_sum_f), log_scale_f
// being the largest u_f of any key so far. Hence key_sum_f >= 1, a query that shifts by max_f(u_f +
// log_scale_f) divides by at least 1, and neither an epsilon nor a guard is needed. A factor common to all
// features of a query cancels, so queries leave out eta |q'|^2 and any 1/sqrt(M).
//
// Trigonometric features have both signs, so their state has one more, the constant 1: 2M + 1 in all, whose
// last key_sum is the sum of the keys' weights w_j = exp(-eta |k_j'|^2). A denominator is a sum of w_j times
// M cosines; where it is smaller than kTrigonometricFloor * M * sum_j w_j it is replaced by that floor with
// its own sign (zero counts as positive). All log-scales of a state are equal: the largest -eta |k'|^2 so
// far.
//
// Letters: B sequences, T tokens, H heads, D head size, E value size, M features.
// All sums are in fp32 (reference: double) whatever the input type is. Nothing here allocates unless
// a function says so, throws inside a parallel loop, or starts threads of its own.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "performer/base/executor.h"

namespace performer::kernels {

enum class DataType : uint8_t { float32, bfloat16, float16, float64 };

// A read-only or writable tensor of logical shape [B, T, H, size] with the last dimension contiguous. Strides
// count elements. In packed form B is 1 and T runs over all sequences.
struct View {
  void* data = nullptr;
  DataType type = DataType::float32;
  int64_t batch_stride = 0, token_stride = 0, head_stride = 0;
};

enum class Family : uint8_t { exponential, elementwise, trigonometric };
enum class Function : uint8_t {
  relu,
  elu1,
  square,
  abs,
  requ,
  gelu,
  sigmoid,
  tanh,
  cos,
  sin,
  identity,
  exp,
  leaky_relu
};

// Name of an element-wise function as users write it ("relu", "elu+1", ...), and back. Throws UsageError with
// the known names for an unknown one.
const char* function_name(Function function);
Function function_from_name(const std::string& name);

struct FeatureMap {
  Family family = Family::exponential;
  Function function = Function::relu;  // element-wise family only
  double scale = 1;                    // multiplies queries and keys first: d^(-1/4) for softmax
  double norm_weight = 0.5;            // eta; not in the element-wise family
  double epsilon = 0;                  // element-wise family only
  // P: [B or 1, H or 1, M, D] rows contiguous, float32; null: u = x' and M = D.
  const float* projection = nullptr;
  int64_t projection_batch_stride = 0, projection_head_stride = 0;
  // Null, or the same matrix in factors, where it has such a form (hadamard_factors, kernels/projection.h):
  // [B or 1, H or 1, M / D (rounded down), 4, D] float32. Rows bD .. bD + D - 1 of P are
  //   diag(f_3) H diag(f_2) H diag(f_1) H diag(f_0),   f_i = factors[b, i],   H_ij = (-1)^popcount(i AND j),
  // up to rounding. D is a power of two. Kernels may use it for products with P, and need not; P defines
  // them.
  const float* factors = nullptr;
  int64_t factors_batch_stride = 0, factors_head_stride = 0;
  // c: [B or 1, H or 1, M] float32; null: 0. It applies to queries and keys alike.
  const float* offset = nullptr;
  int64_t offset_batch_stride = 0, offset_head_stride = 0;
};

inline constexpr double kTrigonometricFloor = 1e-4;

// Features of a state whose map has `rows` features, or frequencies, M.
constexpr int64_t state_features(Family family, int64_t rows) {
  return family == Family::trigonometric ? 2 * rows + 1 : rows;
}

// Contiguous float32 (double for the reference in double): kv [B, H, M, E], key_sum and log_scale [B, H, M],
// in the trigonometric family with 2M + 1 instead of M.
// In the element-wise family log_scale is not read and is written as 0. An empty state is all zeros with
// log_scale = kEmptyLogScale (exponential and trigonometric family). Null kv: no state.
struct State {
  void* kv = nullptr;
  void* key_sum = nullptr;
  void* log_scale = nullptr;
  explicit operator bool() const { return kv != nullptr; }
};

// Stands for minus infinity as a log-scale: finite, so that differences of two of them are 0 and not NaN.
inline constexpr float kEmptyLogScale = -1e30f;

struct Shape {
  int64_t batch = 1;         // sequences; with cu_seqlens the number of segments
  int64_t query_tokens = 0;  // T of queries and outputs (packed: unused)
  int64_t key_tokens = 0;    // T of keys and values; equals query_tokens when causal (packed: unused)
  int64_t heads = 1, head_size = 0, value_size = 0, features = 0;
  // Packed form: segment n covers tokens [cu[n], cu[n+1]) of batch entry 0; empty segments are allowed.
  const int64_t* cu_query = nullptr;
  const int64_t* cu_key = nullptr;
};

inline constexpr int64_t kMaxChunk = 256;

struct AttentionForward {
  Shape shape;
  FeatureMap map;
  bool causal = false;
  int64_t chunk = 0;  // tokens handled at a time, 1..kMaxChunk; 0: the kernel's choice. Changes rounding only
  View query, key, value, out;     // out has the type of value; query, key and value may differ in type
  const bool* key_mask = nullptr;  // [B, key_tokens] or [packed tokens]; true keeps. Masked keys do not exist
  const bool* query_mask = nullptr;  // [B, query_tokens] or [packed tokens]; rows of masked queries are zero
  // [B, query_tokens, H] or [packed tokens, H], float32 (double in double): log of the denominator
  // (exponential, without the terms that cancel) or the denominator (element-wise). A row that sees no key
  // has a zero output and normalizer +infinity (exponential) or 0. Trigonometric: the denominator in units of
  // the largest w_j that the row sees, infinity with the denominator's sign where the floor stands for it.
  // May be null when no backward follows.
  void* normalizer = nullptr;
  State initial, final;  // either may be absent; they may be the same memory
};

struct AttentionBackward {
  AttentionForward forward;  // the same tensors, `out` and `normalizer` as written by the forward pass
  View grad_out;
  View grad_query, grad_key, grad_value;  // written, not added to
  // Gradients of (kv, key_sum) of the final state, scaled as that state is; log_scale is a representation,
  // not a value, and has none. The final state's log_scale must be given in forward.final when grad_final is.
  // All of the final state may be given there: a bidirectional pass then need not sum up the keys again.
  State grad_final;
  State grad_initial;
};

// One token: query, key, value, out are [B, 1, H, size]; `state` is updated in place, then read.
struct AttentionStep {
  Shape shape;  // batch, heads, head_size, value_size, features
  FeatureMap map;
  View query, key, value, out;
  State state;
};

// A table of entry points; one per CPU target, and the double reference.
struct FavorKernels {
  std::string name;
  // Bytes per worker of the executor for a forward or a backward pass.
  int64_t (*workspace)(const AttentionForward&, bool backward);
  void (*forward)(const AttentionForward&, Executor&, void* workspace);
  void (*backward)(const AttentionBackward&, Executor&, void* workspace);
  void (*step)(const AttentionStep&, Executor&, void* workspace);
  // Bytes per worker for a step: a projection, and the features of up to 16 sequences in as many heads as
  // leave them near half a MiB.
  int64_t (*step_workspace)(const AttentionStep&);
};

// The table for the best target of this machine, or the one forced by the environment variable
// PERFORMER_CPU_TARGET (reference, portable, ssse3, sse4, avx2, avx512, avx512bf16, neon). Throws UsageError
// when the forced one is unknown or absent, saying whether the CPU, the system or the build lacks it. Chosen
// once.
const FavorKernels& favor_kernels();
// Definition of every result: plain loops in double. Takes float64 views too; states and normalizers are
// double when query is float64 and float32 otherwise.
const FavorKernels& favor_reference();
// Every table that can run here, best first, the reference last.
std::vector<const FavorKernels*> available_favor_kernels();

}  // namespace performer::kernels
