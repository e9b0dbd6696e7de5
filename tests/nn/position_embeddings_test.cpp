// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/position_embeddings.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "performer/base/error.h"

namespace performer::nn::position_embeddings_test {
namespace {

TEST(SinusoidTable, HasSinesInTheFirstHalf) {
  const at::Tensor table = sinusoid_table(40, 6);
  ASSERT_EQ(table.sizes(), (at::IntArrayRef{40, 6}));
  for (int64_t i = 0; i < 3; ++i) {
    const double angle = 39 / std::pow(10000.0, 2.0 * static_cast<double>(i) / 6);
    EXPECT_NEAR(table[39][i].item<double>(), std::sin(angle), 1e-12);
    EXPECT_NEAR(table[39][3 + i].item<double>(), std::cos(angle), 1e-12);
  }
  EXPECT_THROW(sinusoid_table(4, 5), UsageError);
}

TEST(LearnedPositions, AreRowsOfTheirTable) {
  LearnedPositions positions(5, 3);
  EXPECT_TRUE(at::equal(positions(4), positions->named_parameters()["weight"].narrow(0, 0, 4)));
  EXPECT_THROW(positions(6), UsageError);
}

TEST(AxialPositions, SumARowOfEachDigit) {
  AxialPositions positions(std::vector<int64_t>{2, 3, 2}, 4);
  const auto p = positions->named_parameters();
  const at::Tensor y = positions(11);
  ASSERT_EQ(y.sizes(), (at::IntArrayRef{11, 4}));
  for (int64_t position = 0; position < 11; ++position) {
    const at::Tensor expected = p["weights_0"][0][position / 6][0][0] +
                                p["weights_1"][0][0][position / 2 % 3][0] +
                                p["weights_2"][0][0][0][position % 2];
    EXPECT_TRUE(at::allclose(y[position], expected)) << position;
  }
  EXPECT_EQ(positions->max_length(), 12);
  const at::Tensor places = at::arange(11, -1, -1).view({3, 4});
  EXPECT_TRUE(at::equal(positions->rows(places), at::embedding(positions->table(), places)));
  EXPECT_THROW(positions(13), UsageError);
  EXPECT_THROW(AxialPositions(std::vector<int64_t>{3, 0}, 4), UsageError);
}

TEST(AxialPositions, ShapeCoversTheLength) {
  EXPECT_EQ(axial_shape(64), (std::vector<int64_t>{1, 64}));
  EXPECT_EQ(axial_shape(65), (std::vector<int64_t>{2, 64}));
  EXPECT_EQ(axial_shape(12288, {64, 3}), (std::vector<int64_t>{64, 64, 3}));
  EXPECT_EQ(axial_shape(12289, {64, 3}), (std::vector<int64_t>{65, 64, 3}));
}

TEST(AxialPositions, AxesAreReadFromText) {
  EXPECT_EQ(parse_axial_axes("64x3"), (std::vector<int64_t>{64, 3}));
  EXPECT_EQ(parse_axial_axes("7"), (std::vector<int64_t>{7}));
  for (const char* wrong : {"", "x", "64x", "0", "64x-1", "5000x5000"})
    EXPECT_THROW(parse_axial_axes(wrong), UsageError) << wrong;
}

}  // namespace
}  // namespace performer::nn::position_embeddings_test
