// SPDX-License-Identifier: Apache-2.0
#include "performer/data/image/picture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "tests/data/pictures.h"
#include "tests/errors.h"

namespace performer::data {
namespace {

using performer::test::error_of;
using test::noise;
using test::PngForm;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string as_text(const Picture& picture) {
  return {picture.values.begin(), picture.values.end()};
}

std::string picture_error(std::string_view bytes) {
  return error_of<InputError>([&] { decode_picture(bytes, "p"); });
}

std::vector<uint8_t> decoded(const PngForm& form, const std::vector<int>& rows) {
  return decode_picture(test::png(form, {rows.begin(), rows.end()}), "p").values;
}

TEST(Png, ReadsGreyAndColourRowByRow) {
  for (const int interlace : {PNG_INTERLACE_NONE, PNG_INTERLACE_ADAM7}) {
    const std::string rgb = noise(7 * 9 * 3), grey = noise(7 * 9, 2);
    const Picture colour = decode_picture(test::png({7, 9, 8, PNG_COLOR_TYPE_RGB, interlace}, rgb), "p");
    EXPECT_EQ(colour.shape, (ImageShape{7, 9, 3}));
    EXPECT_EQ(as_text(colour), rgb);
    EXPECT_THAT(colour.conversions, IsEmpty());
    const Picture single = decode_picture(test::png({7, 9, 8, PNG_COLOR_TYPE_GRAY, interlace}, grey), "p");
    EXPECT_EQ(single.shape, (ImageShape{7, 9, 1}));
    EXPECT_EQ(as_text(single), grey);
  }
}

TEST(Png, ExpandsPalettesAndFewBits) {
  const std::vector<png_color> palette = {{1, 2, 3}, {40, 50, 60}, {255, 0, 7}};
  EXPECT_THAT(decoded({1, 3, 8, PNG_COLOR_TYPE_PALETTE, PNG_INTERLACE_NONE, palette}, {2, 0, 1}),
              ElementsAre(255, 0, 7, 1, 2, 3, 40, 50, 60));
  EXPECT_THAT(decoded({1, 3, 2, PNG_COLOR_TYPE_PALETTE, PNG_INTERLACE_NONE, palette}, {0b10000100}),
              ElementsAre(255, 0, 7, 1, 2, 3, 40, 50, 60));
  EXPECT_THAT(decoded({1, 3, 1, PNG_COLOR_TYPE_GRAY}, {0b10100000}), ElementsAre(255, 0, 255));
  EXPECT_THAT(decoded({1, 2, 4, PNG_COLOR_TYPE_GRAY}, {0x1f}), ElementsAre(17, 255));
}

TEST(Png, RoundsSixteenBitsToEight) {
  const std::string rows("\x00\x80\x00\x81\xff\x7f\x80\x00", 8);  // 128, 129, 65407, 32768 of 65535
  const Picture picture = decode_picture(test::png({1, 4, 16, PNG_COLOR_TYPE_GRAY}, rows), "p");
  EXPECT_THAT(picture.values, ElementsAre(0, 1, 255, 128));  // of 255: 0.498, 0.502, 254.502, 127.502
  EXPECT_THAT(picture.conversions, ElementsAre("images of 16 bits a channel rounded to 8"));
}

TEST(Png, LaysTransparencyOnWhite) {
  const std::string rgba("\x64\x00\xff\xff\x64\x00\xff\x80\x64\x00\xff\x00", 12);
  const Picture picture = decode_picture(test::png({1, 3, 8, PNG_COLOR_TYPE_RGBA}, rgba), "p");
  EXPECT_EQ(picture.shape, (ImageShape{1, 3, 3}));
  EXPECT_THAT(picture.values, ElementsAre(100, 0, 255, 177, 127, 255, 255, 255, 255));
  EXPECT_THAT(picture.conversions, ElementsAre("images with transparency laid on white"));
  // Opaque: the fourth channel says nothing and goes without a word.
  const Picture opaque = decode_picture(test::png({1, 1, 8, PNG_COLOR_TYPE_RGBA}, "abc\xff"), "p");
  EXPECT_EQ(as_text(opaque), "abc");
  EXPECT_THAT(opaque.conversions, IsEmpty());
  const Picture grey =
      decode_picture(test::png({1, 2, 8, PNG_COLOR_TYPE_GRAY_ALPHA}, std::string("\x64\x00g\xff", 4)), "p");
  EXPECT_EQ(grey.shape, (ImageShape{1, 2, 1}));
  EXPECT_THAT(grey.values, ElementsAre(255, 'g'));
  PngForm named{1, 2, 8, PNG_COLOR_TYPE_GRAY};
  named.transparent_grey = 9;
  EXPECT_THAT(decoded(named, {9, 8}), ElementsAre(255, 8));
}

TEST(Png, IsDamagedWithAnyByteMissingOrChanged) {
  const std::string file = test::png({4, 4}, noise(4 * 4 * 3));
  for (size_t size = 8; size < file.size(); ++size) {
    EXPECT_THAT(picture_error(std::string_view(file).substr(0, size)),
                AllOf(HasSubstr("p is a damaged PNG picture"), HasSubstr("copy or download")))
        << size;
  }
  for (size_t at = 8; at < file.size(); ++at) {
    std::string changed = file;
    changed[at] ^= 0x41;
    EXPECT_THAT(picture_error(changed), HasSubstr("p is a damaged PNG picture")) << at;
  }
  EXPECT_THAT(picture_error("GIF89a"), HasSubstr("p is neither a PNG nor a JPEG picture"));
}

TEST(Png, RefusesHugePictures) {
  EXPECT_THAT(error_of<InputError>([] { check_picture_size(4097, 4096, "p"); }),
              HasSubstr("p has 4097 x 4096 pixels"));
  EXPECT_NO_THROW(check_picture_size(4096, 4096, "p"));
  EXPECT_THROW(check_picture_size(0, 1, "p"), InputError);
  EXPECT_THROW(check_picture_size(int64_t{1} << 40, int64_t{1} << 40, "p"), InputError);
  // One bit a pixel and a row of 2^24 + 1: a file of a few kilobytes.
  const std::string wide =
      test::png({1, (1u << 24) + 1, 1, PNG_COLOR_TYPE_GRAY}, std::string((1 << 21) + 1, '\0'));
  EXPECT_THAT(picture_error(wide), AllOf(HasSubstr("16777217 pixels"), HasSubstr("at most 16777216")));
}

TEST(Png, WritesWhatItReads) {
  for (const ImageShape& shape : {ImageShape{5, 7, 3}, ImageShape{5, 7, 1}, ImageShape{1, 1, 3}}) {
    const std::string values = noise(static_cast<size_t>(shape.tokens()));
    std::vector<Token> tokens;
    for (const unsigned char value : values) tokens.push_back(value);
    const Picture picture = decode_picture(encode_png(shape, tokens), "p");
    EXPECT_EQ(picture.shape, shape);
    EXPECT_EQ(as_text(picture), values);
    EXPECT_THAT(picture.conversions, IsEmpty());
    const std::string path = testing::TempDir() + "Png_WritesWhatItReads.png";
    write_png(path, shape, tokens);
    EXPECT_EQ(read_file(path), encode_png(shape, tokens));
  }
}

TEST(Png, RefusesToWriteWhatIsNoPicture) {
  const std::vector<Token> values = {1, 2, 3};
  EXPECT_THAT(error_of<UsageError>([&] { encode_png({1, 1, 2}, values); }), HasSubstr("1x1x2"));
  EXPECT_THROW(encode_png({0, 1, 3}, values), UsageError);
  EXPECT_THAT(error_of<Error>([&] { encode_png({1, 2, 3}, values); }), HasSubstr("has 6 values, found 3"));
  EXPECT_THAT(error_of<Error>([&] {
                encode_png({1, 1, 3}, std::vector<Token>{1, 256, 2});
              }),
              HasSubstr("0 to 255, found 256"));
  EXPECT_THROW(write_png(testing::TempDir() + "no-such-folder/x.png", {1, 1, 3}, values), Error);
}

TEST(Jpeg, ReadsGreyAndColour) {
  for (const bool progressive : {false, true}) {
    // A picture of one colour survives the transform; noise would not.
    std::string rgb;
    for (int i = 0; i < 9 * 11; ++i) rgb += "\x80\x80\x80";
    const Picture colour = decode_picture(test::jpeg(9, 11, 3, rgb, 100, progressive), "p");
    EXPECT_EQ(colour.shape, (ImageShape{9, 11, 3}));
    EXPECT_EQ(as_text(colour), rgb);
    const Picture grey = decode_picture(test::jpeg(9, 11, 1, std::string(99, 'g'), 100, progressive), "p");
    EXPECT_EQ(grey.shape, (ImageShape{9, 11, 1}));
    EXPECT_EQ(as_text(grey), std::string(99, 'g'));
  }
}

TEST(Jpeg, KeepsTheOrderOfPixelsAndChannels) {
  // Left half red, right half blue, large enough for the blocks of subsampled colour.
  std::string rgb;
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 32; ++column)
      rgb += column < 16 ? std::string("\xff\0\0", 3) : std::string("\0\0\xff", 3);
  }
  const Picture picture = decode_picture(test::jpeg(16, 32, 3, rgb), "p");
  for (size_t i = 0; i < picture.values.size(); ++i) {
    if ((i / 3) % 16 == 0 || (i / 3) % 16 == 15) continue;  // beside the edge, where colours mix
    EXPECT_NEAR(picture.values[i], static_cast<unsigned char>(rgb[i]), 3) << i;
  }
}

TEST(Jpeg, RefusesCmyk) {
  EXPECT_THAT(picture_error(test::jpeg(8, 8, 4, noise(8 * 8 * 4))),
              AllOf(HasSubstr("p is a JPEG picture of 4 colours (CMYK"), HasSubstr("convert it to RGB")));
}

TEST(Jpeg, IsDamagedWithAnyByteMissing) {
  for (const bool progressive : {false, true}) {
    const std::string file = test::jpeg(16, 16, 3, noise(16 * 16 * 3), 60, progressive);
    for (size_t size = 3; size < file.size(); ++size) {
      EXPECT_THAT(picture_error(std::string_view(file).substr(0, size)),
                  AllOf(HasSubstr("p is a damaged JPEG picture"), HasSubstr("copy or download")))
          << size;
    }
  }
}

TEST(Picture, ShrinksToRoundedMeans) {
  const Picture picture{{2, 4, 1}, {1, 2, 10, 10, 3, 4, 10, 13}, {"before"}};
  const Picture small = shrink(picture, 2);
  EXPECT_EQ(small.shape, (ImageShape{1, 2, 1}));
  EXPECT_THAT(small.values, ElementsAre(3, 11));  // 2.5 and 10.75
  EXPECT_THAT(small.conversions, ElementsAre("before"));
  const Picture colour{{2, 2, 3}, {0, 10, 20, 0, 10, 20, 0, 10, 20, 4, 14, 24}, {}};
  EXPECT_THAT(shrink(colour, 2).values, ElementsAre(1, 11, 21));
}

TEST(Picture, BecomesColour) {
  const Picture colour = to_colour({{1, 2, 1}, {7, 8}, {}});
  EXPECT_EQ(colour.shape, (ImageShape{1, 2, 3}));
  EXPECT_THAT(colour.values, ElementsAre(7, 7, 7, 8, 8, 8));
}

TEST(ImageShape, IsReadAndWritten) {
  EXPECT_EQ(parse_image_shape("64x32x3"), (ImageShape{64, 32, 3}));
  EXPECT_EQ(to_text(parse_image_shape("1x2x1")), "1x2x1");
  EXPECT_EQ((ImageShape{64, 32, 3}.tokens()), 6144);
  for (const char* bad : {"64x64", "64x64x2", "0x64x3", "64x64x3x", "x64x3", "64 x64x3", "64x-1x3", "",
                          "64x64x3 ", "99999999999999999999x1x1", "2000000x1x1"}) {
    EXPECT_THAT(error_of<UsageError>([&] { parse_image_shape(bad); }),
                AllOf(HasSubstr("data.image_shape must be HEIGHTxWIDTHxCHANNELS"),
                      HasSubstr(std::string("\"") + bad + "\"")));
  }
}

}  // namespace
}  // namespace performer::data
