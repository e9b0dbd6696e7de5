// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/chunk_attention.h"

#include <ATen/ATen.h>

#include <vector>

namespace performer::nn {
namespace {

// Tokens of a packed chunk that are attended to in one call.
struct Part {
  int64_t begin = 0, end = 0;
  bool from_initial = false, to_final = false;
};

// The first segment where it goes on from a state, the last where its state is wanted, and those between.
std::vector<Part> parts_of(const at::Tensor& cu_seqlens, bool initial, bool final) {
  const int64_t* bounds = cu_seqlens.const_data_ptr<int64_t>();
  const int64_t segments = cu_seqlens.size(0) - 1, tokens = bounds[segments];
  if (segments <= 1) return {{0, tokens, initial, final}};
  const int64_t head = initial ? bounds[1] : 0, tail = final ? bounds[segments - 1] : tokens;
  std::vector<Part> parts;
  if (initial) parts.push_back({0, head, true, false});
  if (tail > head) parts.push_back({head, tail, false, false});
  if (final) parts.push_back({tail, tokens, false, true});
  return parts;
}

// Bounds of the segments within a part; one with a state is a single segment.
at::Tensor segments_of(const at::Tensor& cu_seqlens, const Part& part) {
  if (part.from_initial || part.to_final) return at::tensor({int64_t{0}, part.end - part.begin}, at::kLong);
  return cu_seqlens.masked_select(cu_seqlens.ge(part.begin).logical_and_(cu_seqlens.le(part.end))) -
         part.begin;
}

at::Tensor attend_packed(const StatefulAttention& attend, const ChunkHeads& heads,
                         const at::Tensor& cu_seqlens, const ops::State& initial, ops::State* final) {
  const std::vector<Part> parts = parts_of(cu_seqlens, initial.defined(), final != nullptr);
  std::vector<int64_t> sizes;
  for (const Part& part : parts) sizes.push_back(part.end - part.begin);
  // One split, not a narrow() for each part: the backward pass then puts gradients side by side instead of
  // adding up tensors filled with zeros.
  const auto queries = heads.query.split_with_sizes(sizes, 1), keys = heads.key.split_with_sizes(sizes, 1),
             values = heads.value.split_with_sizes(sizes, 1);
  std::vector<at::Tensor> outputs;
  for (size_t i = 0; i < parts.size(); ++i) {
    ops::AttentionInputs inputs;
    inputs.query = queries[i];
    inputs.key = keys[i];
    inputs.value = values[i];
    inputs.causal = true;
    inputs.return_state = parts[i].to_final;
    if (parts[i].from_initial) inputs.initial = initial;
    inputs.cu_query = segments_of(cu_seqlens, parts[i]);
    auto [output, state] = attend(inputs);
    outputs.push_back(output);
    if (parts[i].to_final) *final = state;
  }
  return outputs.size() == 1 ? outputs[0] : at::cat(outputs, 1);
}

}  // namespace

at::Tensor attend_chunk(const StatefulAttention& attend, const ChunkHeads& heads, const SequenceBatch& batch,
                        const ops::State& initial, ops::State* final) {
  if (batch.cu_seqlens) return attend_packed(attend, heads, *batch.cu_seqlens, initial, final);
  ops::AttentionInputs inputs;
  inputs.query = heads.query;
  inputs.key = heads.key;
  inputs.value = heads.value;
  inputs.causal = true;
  inputs.key_mask = batch.key_mask;
  inputs.query_mask = batch.key_mask;
  inputs.return_state = final != nullptr;
  if (initial.defined()) inputs.initial = initial;
  auto [output, state] = attend(inputs);
  if (final != nullptr) *final = state;
  return output;
}

}  // namespace performer::nn
