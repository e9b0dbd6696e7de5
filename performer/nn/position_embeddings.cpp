// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/position_embeddings.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "performer/base/error.h"
#include "performer/base/numbers.h"
#include "performer/nn/config.h"
#include "performer/nn/positions.h"

namespace performer::nn {

at::Tensor sinusoid_table(int64_t length, int64_t width) {
  check<UsageError>(width >= 2 && width % 2 == 0,
                    "sinusoidal and rotary positions need an even size of at least 2, not {}", width);
  return sinusoids(at::arange(length), width, /*concatenate=*/true);
}

LearnedPositionsImpl::LearnedPositionsImpl(int64_t max_length, int64_t dim) {
  check<UsageError>(max_length >= 1, "learned positions need a longest length of at least 1, not {}",
                    max_length);
  weight_ = register_parameter("weight", at::randn({max_length, dim}) * 0.02);
}

at::Tensor LearnedPositionsImpl::forward(int64_t length) {
  check<UsageError>(length <= weight_.size(0),
                    "a sequence of {} tokens is longer than the {} learned positions; shorten it", length,
                    weight_.size(0));
  return weight_.narrow(0, 0, length);
}

AxialPositionsImpl::AxialPositionsImpl(const std::vector<int64_t>& shape, int64_t dim)
    : dim_(dim), shape_(shape) {
  check<UsageError>(!shape.empty(), "axial positions need a shape, for example (ceil(length / 64), 64)");
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    check<UsageError>(shape[axis] >= 1, "axial positions of shape ({}): every size must be at least 1",
                      fmt::join(shape, ", "));
    max_length_ *= shape[axis];
    std::vector<int64_t> sizes(shape.size() + 2, 1);
    sizes[axis + 1] = shape[axis];
    sizes.back() = dim;
    weights_.push_back(register_parameter(fmt::format("weights_{}", axis), at::randn(sizes) * 0.02));
  }
}

at::Tensor AxialPositionsImpl::forward(int64_t length) {
  check<UsageError>(length <= max_length_,
                    "a sequence of {} tokens is longer than the {} axial positions; shorten it, or take a "
                    "larger axial shape",
                    length, max_length_);
  return table().narrow(0, 0, length);
}

at::Tensor AxialPositionsImpl::table() const {
  at::Tensor sum = weights_[0];
  for (size_t axis = 1; axis < weights_.size(); ++axis) sum = sum + weights_[axis];
  return sum.reshape({max_length_, dim_});
}

at::Tensor AxialPositionsImpl::rows(const at::Tensor& positions) const {
  std::vector<at::Tensor> digits;  // from the last axis, which runs fastest, to the first
  at::Tensor rest = positions;
  for (size_t axis = shape_.size(); axis-- > 1;) {
    digits.push_back(at::remainder(rest, shape_[axis]));
    rest = at::div(rest, shape_[axis], "floor");
  }
  digits.push_back(rest);
  at::Tensor sum;
  for (size_t axis = 0; axis < shape_.size(); ++axis) {
    const at::Tensor row =
        at::embedding(weights_[axis].view({shape_[axis], dim_}), digits[shape_.size() - 1 - axis]);
    sum = axis == 0 ? row : sum + row;
  }
  return sum;
}

std::vector<int64_t> parse_axial_axes(const std::string& text) {
  std::vector<int64_t> axes;
  int64_t product = 1;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('x', begin), text.size());
    axes.push_back(parse_whole("model.axial_axes (sizes such as 64x3)", text.substr(begin, end - begin),
                               {.least = 1, .most = kLargestSize}));
    product *= axes.back();
    check<UsageError>(product <= kLargestSize, "model.axial_axes = {} has more than {} positions", text,
                      kLargestSize);
    begin = end + 1;
  }
  return axes;
}

std::vector<int64_t> axial_shape(int64_t max_length, const std::vector<int64_t>& axes) {
  const int64_t inner = std::accumulate(axes.begin(), axes.end(), int64_t{1}, std::multiplies<>());
  std::vector<int64_t> shape{(max_length + inner - 1) / inner};
  shape.insert(shape.end(), axes.begin(), axes.end());
  return shape;
}

}  // namespace performer::nn
