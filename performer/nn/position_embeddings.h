// SPDX-License-Identifier: Apache-2.0
// Tables of positions, fixed and learned, that are added to embeddings or turn queries and keys.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <string>
#include <vector>

namespace performer::nn {

// The fixed table of performer-pytorch: [length, width] float64, row p holding sin(p / 10000^(2i / width))
// for i = 0 .. width/2 - 1 in its first half and the cosines in the second. Added to embeddings, or (width =
// head size) the rotary table of PerformerAttention. Throws UsageError for an odd width.
at::Tensor sinusoid_table(int64_t length, int64_t width);

// One learned row `weight` [max_length, dim] a position, N(0, 0.02^2) at the start.
class LearnedPositionsImpl : public torch::nn::Module {
 public:
  LearnedPositionsImpl(int64_t max_length, int64_t dim);
  at::Tensor forward(int64_t length);  // [length, dim]; UsageError beyond max_length

 private:
  at::Tensor weight_;
};
TORCH_MODULE(LearnedPositions);

// Axial positions (Kitaev et al. 2020, arXiv 2001.04451, section 4; axial-positional-embedding 0.3.12 in its
// summed form): position p, written in mixed radix as digits of `shape` with the last digit running fastest,
// gets the sum of one learned row a digit. product(shape) positions cost sum(shape) rows. Parameters
// weights_0, weights_1, ...: [1, 1 .., shape[i], .. 1, dim], N(0, 0.02^2) at the start.
class AxialPositionsImpl : public torch::nn::Module {
 public:
  AxialPositionsImpl(const std::vector<int64_t>& shape, int64_t dim);
  at::Tensor forward(int64_t length);  // [length, dim]; UsageError beyond product(shape)
  at::Tensor table() const;            // [product(shape), dim]
  // The rows of `positions` (int64, any shape S, each in [0, product(shape))): [S..., dim].
  at::Tensor rows(const at::Tensor& positions) const;
  int64_t max_length() const { return max_length_; }

 private:
  int64_t max_length_ = 1, dim_;
  std::vector<int64_t> shape_;
  std::vector<at::Tensor> weights_;
};
TORCH_MODULE(AxialPositions);

// The sizes that model.axial_axes names, such as 64x3. Throws UsageError for what is none, and for more than
// kLargestSize positions in all.
std::vector<int64_t> parse_axial_axes(const std::string& text);
// The shape that covers `max_length` positions with the given axes behind the first, which is as long as it
// must be: (ceil(max_length / product(axes)), axes...). performer-pytorch's, when none is given, has axes
// {64}.
std::vector<int64_t> axial_shape(int64_t max_length, const std::vector<int64_t>& axes = {64});

}  // namespace performer::nn
