// SPDX-License-Identifier: Apache-2.0
#include "performer/data/image/images.h"

#include <algorithm>
#include <charconv>

#include "performer/base/error.h"
#include "performer/base/printable.h"
#include "performer/data/record_id.h"

namespace performer::data {
namespace {

constexpr size_t kMostBytes = size_t{1} << 28;  // of a picture file
constexpr size_t kLongestName = 200;            // that is shown of an archive's names

std::string_view without_packing(std::string_view name) {
  for (const std::string_view ending : {".gz", ".zst"}) {
    if (name.ends_with(ending)) return name.substr(0, name.size() - ending.size());
  }
  return name;
}

// "137x64x64x3" of a name that ends with "_137x64x64x3.u8"; empty for other names.
std::string_view sizes_of_name(std::string_view name) {
  const size_t begin = name.rfind('_');
  if (begin == std::string_view::npos || !name.ends_with(".u8")) return {};
  const std::string_view sizes =
      name.substr(begin + 1, name.size() - begin - 1 - std::string_view(".u8").size());
  const bool plain = sizes.find_first_not_of("0123456789x") == std::string_view::npos;
  return plain && std::ranges::count(sizes, 'x') == 3 ? sizes : std::string_view();
}

// The number that a picture's sides must be divided by to fit; nothing when there is none above 1.
std::optional<int64_t> shrink_factor(const ImageShape& from, const ImageShape& to) {
  const int64_t factor = from.height / to.height;
  if (factor < 2 || from.height != to.height * factor || from.width != to.width * factor) return std::nullopt;
  return factor;
}

}  // namespace

ImageRule::ImageRule(const std::string& shape, const std::string& fit) : shrinks_(fit == "shrink") {
  if (shape.empty()) return;
  shape_ = parse_image_shape(shape);
  check_picture_size(shape_->height, shape_->width, "data.image_shape");
  given_by_ = "data.image_shape";
}

Picture ImageRule::fit(Picture picture, const std::string& name) {
  if (!shape_) {
    shape_ = picture.shape;
    given_by_ = name;
    return picture;
  }
  const ImageShape found = picture.shape;
  if (found.channels == 1 && shape_->channels == 3) {
    picture = to_colour(picture);
    picture.conversions.emplace_back("greyscale images read as red, green and blue");
  }
  if (picture.shape == *shape_) return picture;
  const std::optional<int64_t> factor = shrink_factor(picture.shape, *shape_);
  if (picture.shape.channels == shape_->channels && factor && shrinks_) {
    picture = shrink(picture, *factor);
    picture.conversions.push_back(fmt::format("images shrunk to {}", to_text(*shape_)));
    return picture;
  }
  std::string cure = "resize the pictures to one size";
  if (picture.shape.channels != shape_->channels) {
    cure = fmt::format("set data.image_shape = {}x{}x3, which takes greyscale pictures too", found.height,
                       found.width);
  } else if (factor) {
    cure += ", or set data.image_shape and data.image_fit = shrink";
  } else if (shrinks_) {
    cure = "data.image_fit = shrink divides height and width by one whole number, so resize the pictures";
  }
  throw InputError(fmt::format(
      "{} has the shape {}, but {} {} {}: all images of a corpus must have one size; {}", name,
      to_text(found), given_by_, given_by_ == "data.image_shape" ? "is" : "has", to_text(*shape_), cure));
}

bool ImageReader::next(Record& record) {
  std::optional<Found> found = read();
  if (!found) return false;
  const Picture picture = rule_->fit(std::move(found->picture), found->name);
  for (const std::string& conversion : picture.conversions) report_.add(1, conversion);
  record.id = std::move(found->id);
  record.header = std::move(found->name);
  record.tokens.assign(picture.values.begin(), picture.values.end());
  record.number = ++report_.records;
  record.line = 0;
  report_.tokens += std::ssize(record.tokens);
  return true;
}

std::optional<ImageReader::Found> PictureReader::read() {
  if (source_ == nullptr) return std::nullopt;
  Found found{decode_picture(read_all(*source_, name_, kMostBytes), name_), name_, record_id(name_)};
  source_.reset();
  return found;
}

std::optional<ImageReader::Found> TarImageReader::read() {
  TarReader::Entry entry;
  while (archive_.next(entry)) {
    constexpr size_t kHead = 8;
    std::string bytes = archive_.read(kHead);
    if (!is_png(bytes) && !is_jpeg(bytes)) {
      report_.add(1, "files of archives passed over, which are no PNG or JPEG pictures");
      continue;
    }
    const std::string name = fmt::format("{}: {}", name_, shown(entry.name, kLongestName));
    check<InputError>(entry.size <= static_cast<int64_t>(kMostBytes),
                      "{} has {} bytes: no picture is that large", name, entry.size);
    bytes += archive_.read(kMostBytes);
    return Found{decode_picture(bytes, name), name, record_id(entry.name)};
  }
  check<InputError>(
      report_.records > 0,
      "{} is a tar archive without a PNG or JPEG picture; if it holds sequences or text, unpack it with "
      "tar -xf and give the files in it",
      name_);
  return std::nullopt;
}

bool is_raw_name(const std::string& name) {
  return without_packing(name).ends_with(".u8");
}

RawImageReader::RawImageReader(std::unique_ptr<ByteSource> source, const std::string& name,
                               std::shared_ptr<ImageRule> rule)
    : ImageReader(name, rule), source_(std::move(source)) {
  const std::string_view sizes = sizes_of_name(without_packing(name));
  if (!sizes.empty()) {
    const size_t first = sizes.find('x');
    int64_t count = 0;
    const auto [end, error] = std::from_chars(sizes.data(), sizes.data() + first, count);
    check<InputError>(error == std::errc() && end == sizes.data() + first,
                      "{}: the number of images in its name, {}, is none", name, sizes.substr(0, first));
    count_ = count;
    const std::string shape(sizes.substr(first + 1));
    try {
      shape_ = parse_image_shape(shape);
    } catch (const UsageError&) {
      throw InputError(
          fmt::format("{}: the shape {} of its name is none: expected HEIGHTxWIDTHxCHANNELS with 1 "
                      "or 3 channels",
                      name, shape));
    }
    check_picture_size(shape_.height, shape_.width, name);
  } else {
    check<UsageError>(
        rule->shape().has_value(),
        "{} holds raw images of an unknown shape: set data.image_shape = HEIGHTxWIDTHxCHANNELS, or "
        "rename it to *_NxHEIGHTxWIDTHxCHANNELS.u8",
        name);
    shape_ = *rule->shape();
  }
}

std::optional<ImageReader::Found> RawImageReader::read() {
  std::vector<uint8_t> values(static_cast<size_t>(shape_.tokens()));
  size_t filled = 0;
  while (filled < values.size()) {
    const size_t count =
        source_->read(reinterpret_cast<char*>(values.data()) + filled, values.size() - filled);
    if (count == 0) break;
    filled += count;
  }
  const int64_t number = report_.records + 1;
  const bool ends_here = filled == 0 && (count_ ? number == *count_ + 1 : number > 1);
  if (ends_here) return std::nullopt;
  check<InputError>(filled == values.size() && (!count_ || number <= *count_),
                    "{} does not hold {} images of shape {}: it {} image {}", name_,
                    count_ ? fmt::format("the {}", *count_) : "whole", to_text(shape_),
                    filled == values.size() ? "goes on with" : "ends in", number);
  const std::string name = fmt::format("{}:{}", name_, number);
  return Found{{shape_, std::move(values), {}}, name, record_id(name)};
}

}  // namespace performer::data
