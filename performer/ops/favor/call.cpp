// SPDX-License-Identifier: Apache-2.0
// The checks of a call, and the list of backends.
#include "performer/ops/favor/call.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "performer/base/error.h"

namespace performer::ops {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

void check_four_dimensions(const Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(tensor.dim() == 4, "favor_attention: ", name,
                    " must be [batch, tokens, heads, size], but has shape ", tensor.sizes());
}

void check_type(const Tensor& tensor, const char* name) {
  const at::ScalarType type = tensor.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble,
                   "favor_attention: ", name, " must be float32, bfloat16, float16 or float64, but is ",
                   type);
}

void check_device(const OptionalTensor& tensor, const char* name, const c10::Device& expected) {
  TORCH_CHECK_VALUE(!tensor.has_value() || !tensor->defined() || tensor->device() == expected,
                    "favor_attention: ", name, " must be on the device of query, ", expected, ", but is on ",
                    tensor->device());
}

void check_shapes(const Arguments& a) {
  check_four_dimensions(a.query, "query");
  check_four_dimensions(a.key, "key");
  check_four_dimensions(a.value, "value");
  TORCH_CHECK_VALUE(a.key.size(0) == a.query.size(0) && a.key.size(2) == a.query.size(2) &&
                        a.key.size(3) == a.query.size(3),
                    "favor_attention: key must agree with query in batch, heads and head size, found query ",
                    a.query.sizes(), " and key ", a.key.sizes());
  TORCH_CHECK_VALUE(a.value.size(0) == a.key.size(0) && a.value.size(1) == a.key.size(1) &&
                        a.value.size(2) == a.key.size(2),
                    "favor_attention: value must agree with key in batch, tokens and heads, found key ",
                    a.key.sizes(), " and value ", a.value.sizes());
  TORCH_CHECK_VALUE(!a.causal || a.query.size(1) == a.key.size(1),
                    "favor_attention: causal attention needs as many keys as queries, found ",
                    a.query.size(1), " queries and ", a.key.size(1),
                    " keys; continue a sequence by its state instead");
  TORCH_CHECK_VALUE(a.chunk >= 0 && a.chunk <= kernels::kMaxChunk, "favor_attention: chunk must be 0 to ",
                    kernels::kMaxChunk, ", found ", a.chunk);
}

void check_types_and_devices(const Arguments& a) {
  check_type(a.query, "query");
  check_type(a.key, "key");
  check_type(a.value, "value");
  const auto is_double = [](const Tensor& tensor) { return tensor.scalar_type() == at::kDouble; };
  TORCH_CHECK_TYPE(is_double(a.query) == is_double(a.key) && is_double(a.query) == is_double(a.value),
                   "favor_attention: query, key and value must all be float64 or none, found ",
                   a.query.scalar_type(), ", ", a.key.scalar_type(), " and ", a.value.scalar_type());
  const c10::Device device = a.query.device();
  check_device(a.key, "key", device);
  check_device(a.value, "value", device);
  check_device(a.projection, "projection", device);
  check_device(a.factors, "factors", device);
  check_device(a.offset, "offset", device);
  check_device(a.key_mask, "key_mask", device);
  check_device(a.query_mask, "query_mask", device);
  check_device(a.initial_kv, "the initial state", device);
}

// Projection or offset as contiguous float32 [B or 1, H or 1, ...].
Tensor checked_constant(const OptionalTensor& given, const char* name, int64_t own_dims, int64_t batch,
                        int64_t heads) {
  if (!given.has_value() || !given->defined()) return {};
  Tensor tensor = given->to(at::kFloat).contiguous();
  TORCH_CHECK_VALUE(tensor.dim() >= own_dims && tensor.dim() <= own_dims + 2, "favor_attention: ", name,
                    " must have ", own_dims,
                    " dimensions, with heads and batch in front as needed, but has shape ", tensor.sizes());
  while (tensor.dim() < own_dims + 2) tensor = tensor.unsqueeze(0);
  for (int64_t dim = 0; dim < 2; ++dim) {
    const int64_t expected = dim == 0 ? batch : heads;
    TORCH_CHECK_VALUE(tensor.size(dim) == 1 || tensor.size(dim) == expected, "favor_attention: ", name,
                      " has ", tensor.size(dim), dim == 0 ? " batch entries" : " heads", ", expected 1 or ",
                      expected);
  }
  return tensor;
}

Tensor checked_mask(const OptionalTensor& mask, const char* name, int64_t batch, int64_t tokens) {
  if (!mask.has_value() || !mask->defined()) return {};
  TORCH_CHECK_VALUE(mask->scalar_type() == at::kBool && mask->dim() == 2 && mask->size(0) == batch &&
                        mask->size(1) == tokens,
                    "favor_attention: ", name, " must be bool of shape [", batch, ", ", tokens, "], but is ",
                    mask->scalar_type(), " of shape ", mask->sizes());
  return mask->contiguous();
}

// Bounds of packed segments; returns their number.
int64_t check_segments(const Tensor& cu, const char* name, int64_t tokens) {
  TORCH_CHECK_VALUE(cu.scalar_type() == at::kLong && cu.dim() == 1 && cu.size(0) >= 1 &&
                        cu.device().is_cpu() && cu.is_contiguous(),
                    "favor_attention: ", name,
                    " must be a contiguous int64 vector of at least one bound on the CPU");
  const int64_t* bounds = cu.const_data_ptr<int64_t>();
  const int64_t segments = cu.size(0) - 1;
  TORCH_CHECK_VALUE(bounds[0] == 0 && bounds[segments] == tokens, "favor_attention: ", name,
                    " must run from 0 to the ", tokens, " packed tokens, but runs from ", bounds[0], " to ",
                    bounds[segments]);
  for (int64_t i = 0; i < segments; ++i) {
    TORCH_CHECK_VALUE(bounds[i] <= bounds[i + 1], "favor_attention: ", name, " decreases at segment ", i);
  }
  return segments;
}

struct RankedBackend {
  Backend backend;
  int rank;
};

// Best first.
std::vector<RankedBackend>& backends() {
  static std::vector<RankedBackend> all;
  return all;
}

std::string backend_names() {
  std::string names;
  for (const auto& [backend, rank] : backends()) names += (names.empty() ? "" : ", ") + backend.name;
  return names;
}

const Backend* find_backend(std::string_view name) {
  for (const auto& [backend, rank] : backends()) {
    if (backend.name == name) return &backend;
  }
  return nullptr;
}

}  // namespace

at::ScalarType precise_type(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

int64_t fixed_size(const Tensor& tensor, int64_t dim) {
  return tensor.sym_size(dim).guard_int(__FILE__, __LINE__);
}

Tensor or_undefined(const OptionalTensor& tensor) {
  return tensor.value_or(Tensor());
}

OptionalTensor or_nothing(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

kernels::Family family_of(std::string_view family) {
  if (family == "exponential") return kernels::Family::exponential;
  if (family == "trigonometric") return kernels::Family::trigonometric;
  try {
    kernels::function_from_name(std::string(family));
  } catch (const UsageError& error) {
    TORCH_CHECK_VALUE(
        false,
        "a feature map's family is exponential, trigonometric or an element-wise function: ", error.what());
  }
  return kernels::Family::elementwise;
}

RegisterBackend::RegisterBackend(const Backend& backend, int rank) {
  auto& all = backends();
  const auto place =
      std::find_if(all.begin(), all.end(), [&](const RankedBackend& other) { return other.rank < rank; });
  all.insert(place, {backend, rank});
}

void check_backend_name(std::string_view name) {
  TORCH_CHECK_VALUE(name.empty() || find_backend(name) != nullptr, "favor_attention: unknown backend '",
                    std::string(name), "'; known: ", backend_names(),
                    "; an empty name takes the best one for the device");
}

const Backend& backend_for(const c10::Device& device, std::string_view name) {
  check_backend_name(name);
  for (const auto& [backend, rank] : backends()) {
    if ((name.empty() || backend.name == name) && backend.serves(device)) return backend;
  }
  TORCH_CHECK_VALUE(false, "favor_attention: backend '", std::string(name), "' does not serve tensors on ",
                    device, "; known: ", backend_names(), ", of which composed serves every device");
}

Call::Call(const Arguments& a)
    : query(a.query),
      key(a.key),
      value(a.value),
      causal(a.causal),
      return_state(a.return_state),
      chunk(a.chunk) {
  check_shapes(a);
  check_types_and_devices(a);
  backend = &backend_for(query.device(), a.backend);
  set_sizes();
  if (a.cu_query.has_value() && a.cu_query->defined()) set_packing(a);
  set_map(a);
  key_mask = checked_mask(a.key_mask, "key_mask", key.size(0), key_tokens);
  query_mask = checked_mask(a.query_mask, "query_mask", query.size(0), query_tokens);
  sum_options = query.options().dtype(precise_type(query));
  if (a.initial_kv.has_value() && a.initial_kv->defined()) set_initial(a);
}

State Call::new_state() const {
  return {at::empty(kv_shape(), sum_options), at::empty(sum_shape(), sum_options),
          at::empty(sum_shape(), sum_options)};
}

void Call::set_sizes() {
  sequences = query.size(0);
  query_tokens = query.size(1);
  key_tokens = key.size(1);
  heads = query.size(2);
  head_size = query.size(3);
  value_size = value.size(3);
}

void Call::set_packing(const Arguments& a) {
  TORCH_CHECK_VALUE(query.size(0) == 1, "favor_attention: packed sequences need batch size 1, found ",
                    query.size(0));
  cu_query = *a.cu_query;
  cu_key = a.cu_key.has_value() && a.cu_key->defined() ? *a.cu_key : cu_query;
  sequences = check_segments(cu_query, "cu_query", query.size(1));
  TORCH_CHECK_VALUE(check_segments(cu_key, "cu_key", key.size(1)) == sequences,
                    "favor_attention: cu_query and cu_key must have the same number of segments, found ",
                    cu_query.size(0) - 1, " and ", cu_key.size(0) - 1);
  TORCH_CHECK_VALUE(!a.causal || at::equal(cu_query, cu_key),
                    "favor_attention: causal attention needs equal cu_query and cu_key");
}

void Call::set_map(const Arguments& a) {
  map.family = family_of(a.family);
  TORCH_CHECK_VALUE(map.family != kernels::Family::trigonometric || backend->name != "composed",
                    "favor_attention: the backend composed has no trigonometric family; "
                    "trigonometric_attention composes it for every device");
  if (map.family == kernels::Family::elementwise) map.function = kernels::function_from_name(a.family);
  map.scale = a.scale;
  map.norm_weight = a.norm_weight;
  map.epsilon = a.epsilon;
  projection = checked_constant(a.projection, "projection", 2, sequences, heads);
  features = projection.defined() ? projection.size(2) : head_size;
  TORCH_CHECK_VALUE(features >= 1,
                    "favor_attention: at least one feature is needed, found a projection of shape ",
                    projection.defined() ? projection.sizes() : query.sizes());
  TORCH_CHECK_VALUE(!projection.defined() || projection.size(3) == head_size,
                    "favor_attention: projection rows have ", projection.defined() ? projection.size(3) : 0,
                    " elements, but the head size is ", head_size);
  factors = checked_constant(a.factors, "factors", 3, sequences, heads);
  TORCH_CHECK_VALUE(
      !factors.defined() ||
          (projection.defined() && factors.size(0) == projection.size(0) &&
           factors.size(1) == projection.size(1) && factors.size(2) == features / head_size &&
           factors.size(3) == 4 && factors.size(4) == head_size),
      "favor_step: factors must be those of the projection, [..., features / size, 4, size], but "
      "have shape ",
      factors.defined() ? factors.sizes() : at::IntArrayRef(), " with a projection of shape ",
      projection.defined() ? projection.sizes() : at::IntArrayRef());
  offset = checked_constant(a.offset, "offset", 1, sequences, heads);
  TORCH_CHECK_VALUE(!offset.defined() || offset.size(2) == features, "favor_attention: offset has ",
                    offset.defined() ? offset.size(2) : 0, " elements, but there are ", features,
                    " features");
}

void Call::set_initial(const Arguments& a) {
  const auto part = [&](const OptionalTensor& tensor, const char* name, const std::vector<int64_t>& shape) {
    TORCH_CHECK_VALUE(tensor.has_value() && tensor->defined() && tensor->sizes() == at::IntArrayRef(shape),
                      "favor_attention: the state's ", name, " must have shape ", at::IntArrayRef(shape),
                      ", found ",
                      tensor.has_value() && tensor->defined() ? tensor->sizes() : at::IntArrayRef());
    return tensor->to(sum_options.dtype()).contiguous();
  };
  initial = {part(a.initial_kv, "kv", kv_shape()), part(a.initial_key_sum, "key_sum", sum_shape()),
             part(a.initial_log_scale, "log_scale", sum_shape())};
}

}  // namespace performer::ops
