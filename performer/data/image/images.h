// SPDX-License-Identifier: Apache-2.0
// Readers of images: a picture file, a tar archive of pictures, raw bytes. The rules are stated in
// docs/formats.md.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "performer/data/image/picture.h"
#include "performer/data/image/tar.h"
#include "performer/data/reader.h"

namespace performer::data {

// The one shape of all images of a corpus, shared by the readers of its files.
class ImageRule {
 public:
  // From data.image_shape, which may be empty, and data.image_fit. Throws UsageError for a shape that is
  // none.
  ImageRule(const std::string& shape, const std::string& fit);
  // The picture in the shape of the corpus, which the first picture gives where nothing did. A greyscale
  // picture becomes one of three channels where that is asked for; with image_fit = shrink, a larger one is
  // shrunk by a whole number. What was changed is added to its conversions. Throws InputError naming the
  // picture, its shape and the shape expected for anything else.
  Picture fit(Picture picture, const std::string& name);
  const std::optional<ImageShape>& shape() const { return shape_; }

 private:
  std::optional<ImageShape> shape_;
  std::string given_by_;  // data.image_shape, or the first picture
  bool shrinks_;
};

class ImageReader : public Reader {
 public:
  // `name` is used in messages.
  ImageReader(std::string name, std::shared_ptr<ImageRule> rule)
      : name_(std::move(name)), rule_(std::move(rule)) {}
  bool next(Record& record) override;
  ReadReport report() const override { return report_; }
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  std::string format() const override { return "image"; }
  std::optional<ImageShape> image_shape() const override { return rule_->shape(); }

 protected:
  struct Found {
    Picture picture;
    std::string name;     // in messages
    std::string id = {};  // of its record
  };
  // Reads the next picture; nothing at the end.
  virtual std::optional<Found> read() = 0;

  const std::string name_;
  ReadReport report_{0, 0, "images", Vocabulary::pixels().unit(), {}};

 private:
  Vocabulary vocabulary_ = Vocabulary::pixels();
  std::shared_ptr<ImageRule> rule_;
};

// One PNG or JPEG file.
class PictureReader final : public ImageReader {
 public:
  PictureReader(std::unique_ptr<ByteSource> source, const std::string& name, std::shared_ptr<ImageRule> rule)
      : ImageReader(name, std::move(rule)), source_(std::move(source)) {}

 private:
  std::optional<Found> read() override;
  std::unique_ptr<ByteSource> source_;  // gone once it is read
};

// The PNG and JPEG files of a tar archive, in its order; other files are passed over and counted. Throws
// InputError for an archive without a picture.
class TarImageReader final : public ImageReader {
 public:
  TarImageReader(std::unique_ptr<ByteSource> source, const std::string& name, std::shared_ptr<ImageRule> rule)
      : ImageReader(name, std::move(rule)), archive_(std::move(source), name) {}

 private:
  std::optional<Found> read() override;
  TarReader archive_;
};

// Whether the name is that of a file of raw images: *.u8, or that packed (.gz, .zst).
bool is_raw_name(const std::string& name);

// Images as bytes, one after the other, in the order of their tokens. Their shape is that of the file's name
// where it ends with _NxHEIGHTxWIDTHxCHANNELS.u8 (N images), else data.image_shape. Throws UsageError when
// there is neither, InputError when the bytes are not N images, or no whole number of them.
class RawImageReader final : public ImageReader {
 public:
  RawImageReader(std::unique_ptr<ByteSource> source, const std::string& name,
                 std::shared_ptr<ImageRule> rule);

 private:
  std::optional<Found> read() override;
  std::unique_ptr<ByteSource> source_;
  ImageShape shape_;
  std::optional<int64_t> count_;  // by the file's name
};

}  // namespace performer::data
