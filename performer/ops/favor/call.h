// SPDX-License-Identifier: Apache-2.0
// One call of linear attention, its arguments checked once, and the backends that compute it. Private to this
// layer; the public functions are in ops/favor.h. Letters: B sequences, T queries, S keys, H heads, D head
// size, E value size, M features.
//
// A backend is a way to compute: favor/cpu.cpp (the kernels of performer/kernels, for tensors on the CPU) and
// favor/composed.cpp (LibTorch operations, for every device). Each registers itself when the library is
// loaded. A backend for another kind of device is one more file beside them.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>

#include "performer/kernels/favor.h"
#include "performer/ops/favor.h"
#include "performer/ops/favor/schema.h"

namespace performer::ops {

struct Backend;

// The number of elements along `dim` as a plain integer. While a model is traced with symbolic sizes this
// fixes the size to its present value.
int64_t fixed_size(const at::Tensor& tensor, int64_t dim);
// The type of states and of the arithmetic on a tensor: float64 for float64, else float32.
at::ScalarType precise_type(const at::Tensor& tensor);
// The tensor, undefined where the argument was left out.
at::Tensor or_undefined(const std::optional<at::Tensor>& tensor);
// The argument, left out where the tensor is undefined.
std::optional<at::Tensor> or_nothing(const at::Tensor& tensor);

// favor_attention with all its results: the state's parts have no elements unless in.return_state.
Results favor_results(const AttentionInputs& in, const FeatureMap& map);

// The family that a feature map names: "exponential", "trigonometric", or an element-wise function. Throws
// c10::ValueError with the known names for any other.
kernels::Family family_of(std::string_view family);

// The arguments of favor_attention, checked; the constructor throws c10::ValueError or c10::TypeError that
// names the argument, what was expected and what was found.
struct Call {
  explicit Call(const Arguments& arguments);

  at::Tensor query, key, value;     // [B, T, H, D], [B, S, H, D], [B, S, H, E]; packed: batch 1
  at::Tensor key_mask, query_mask;  // contiguous bool [B, S] and [B, T], or undefined
  at::Tensor cu_query, cu_key;      // int64 [N + 1] on the CPU when packed, else undefined
  at::Tensor projection;            // contiguous float32 [B or 1, H or 1, M, D], or undefined
  at::Tensor factors;               // contiguous float32 [B or 1, H or 1, M / D, 4, D], or undefined
  at::Tensor offset;                // contiguous float32 [B or 1, H or 1, M], or undefined
  State initial;                    // contiguous, of the type of sums; undefined without one
  int64_t sequences = 0;            // B, or N segments when packed
  int64_t query_tokens = 0, key_tokens = 0, heads = 0, head_size = 0, value_size = 0;
  int64_t features = 0;     // M: rows of the projection, or D; a state may have more (state_features)
  kernels::FeatureMap map;  // family, function and numbers; its pointers are for the backend to set
  bool causal = false, return_state = false;
  int64_t chunk = 0;
  at::TensorOptions sum_options;  // of states and normalizers: float32, float64 for float64 inputs
  const Backend* backend = nullptr;

  bool packed() const { return cu_query.defined(); }
  std::vector<int64_t> kv_shape() const { return {sequences, heads, of_state(), value_size}; }
  std::vector<int64_t> sum_shape() const { return {sequences, heads, of_state()}; }
  State new_state() const;

 private:
  int64_t of_state() const { return kernels::state_features(map.family, features); }
  void set_sizes();
  void set_packing(const Arguments& arguments);
  void set_map(const Arguments& arguments);
  void set_initial(const Arguments& arguments);
};

// The factors of a call's projection (FeatureMap::factors of kernels/favor.h), [B or 1, H or 1, M / D, 4, D]
// on the CPU: those that were given, or else those of hadamard_factors (ops/projection.h). Undefined where it
// has none, or serves too few tokens for the search.
at::Tensor projection_factors(const Call& call);

// What a forward pass writes. `final` is undefined unless the call returns a state.
struct ForwardResults {
  at::Tensor out;         // [B, T, H, E] of value's type
  at::Tensor normalizer;  // [B, T, H] of the type of sums, as kernels/favor.h defines it
  State final;
};

// A backward pass: `call` and the results of its forward pass, and the gradients that come in.
struct BackwardCall {
  Call call;
  at::Tensor grad_out, out, normalizer;
  // Of the final state, in its scale, or undefined: no gradient reaches the final state.
  at::Tensor grad_kv, grad_key_sum;
  // The final state as far as it was kept: its log-scale wherever gradients of it are given, and all of it
  // where the autograd function found that worthwhile; a backend may then save itself the keys' sums.
  State final;
};

// What a backward pass writes, contiguous and of the types of the inputs. The initial state's gradients have
// the type of sums and are undefined without an initial state.
struct BackwardResults {
  at::Tensor query, key, value, kv, key_sum;
};

struct Backend {
  std::string name;  // what the argument `backend` calls it
  bool (*serves)(const c10::Device&);
  // The results are allocated by the caller and written here.
  void (*forward)(const Call&, ForwardResults&);
  void (*backward)(const BackwardCall&, BackwardResults&);
  // One token of each sequence, query and key [B, 1, H, D], value [B, 1, H, E], out [B, 1, H, E] allocated by
  // the caller. The tensors of `state` are contiguous and are updated in place.
  void (*step)(const Call&, State& state, at::Tensor& out);
};

// Adds a backend. Where several serve a device, the one that was registered with the larger `rank` is taken.
struct RegisterBackend {
  RegisterBackend(const Backend& backend, int rank);
};

// The backend of that name, or the best one for the device when the name is empty. Throws c10::ValueError for
// an unknown name and for one that does not serve the device.
const Backend& backend_for(const c10::Device& device, std::string_view name);
// Throws c10::ValueError with the known names unless `name` is one of them or empty.
void check_backend_name(std::string_view name);

}  // namespace performer::ops
