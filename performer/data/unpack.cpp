// SPDX-License-Identifier: Apache-2.0
// Streaming gzip and zstd.
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>

#include "performer/base/error.h"
#include "performer/data/byte_source.h"

namespace performer::data {
namespace {

constexpr size_t kChunk = kReadBytes / 2;
constexpr int kWindowLogMax = 27;  // 128 MiB: what `zstd -d` accepts by default and `zstd --long` writes

// The packed bytes at hand: begin() .. begin() + size() of a source, topped up on demand.
class Input {
 public:
  explicit Input(std::unique_ptr<ByteSource> source)
      : source_(std::move(source)), buffer_(new char[kChunk]) {}

  const char* begin() const { return buffer_.get() + begin_; }
  size_t size() const { return end_ - begin_; }
  void drop(size_t count) {
    begin_ += count;
    dropped_ += count;
  }
  uint64_t dropped() const { return dropped_; }  // bytes, so far
  // Makes at least `wanted` bytes available; fewer only at the end of the source.
  bool require(size_t wanted) {
    if (size() >= wanted) return true;
    std::memmove(buffer_.get(), begin(), size());
    end_ = size();
    begin_ = 0;
    while (size() < wanted) {
      const size_t count = source_->read(buffer_.get() + end_, kChunk - end_);
      if (count == 0) return false;
      end_ += count;
    }
    return true;
  }
  bool starts_with(std::string_view magic) {
    return require(magic.size()) && std::string_view(begin(), size()).starts_with(magic);
  }

 private:
  std::unique_ptr<ByteSource> source_;
  std::unique_ptr<char[]> buffer_;  // of kChunk bytes
  size_t begin_ = 0, end_ = 0;
  uint64_t dropped_ = 0;
};

// Throws InputError when much more was unpacked than such data give: `unpacked` bytes of `packed` ones.
void check_growth(uint64_t unpacked, uint64_t packed, const std::string& name) {
  check<InputError>(
      unpacked <= kFreeGrowth || unpacked / kMostGrowth <= packed,
      "{} unpacks to more than {} times its size ({} bytes from {} so far), as files do that are made to "
      "fill a memory; if it is meant, unpack it first",
      name, kMostGrowth, unpacked, packed);
}

[[noreturn]] void throw_truncated(const std::string& name, const char* format) {
  throw InputError(fmt::format(
      "{} is truncated: the {} data ends in the middle; copy or download the file again", name, format));
}

[[noreturn]] void throw_damaged(const std::string& name, const char* format, std::string_view reason) {
  throw InputError(fmt::format("{} is damaged: it is not valid {} data ({}); copy or download the file again",
                               name, format, reason));
}

class PlainSource final : public ByteSource {
 public:
  explicit PlainSource(Input input) : input_(std::move(input)) {}
  size_t read(char* buffer, size_t size) override {
    input_.require(1);
    const size_t count = std::min(size, input_.size());
    std::memcpy(buffer, input_.begin(), count);
    input_.drop(count);
    return count;
  }

 private:
  Input input_;
};

constexpr std::string_view kGzipMagic{"\x1f\x8b", 2};

class GzipSource final : public ByteSource {
 public:
  GzipSource(Input input, std::string name) : input_(std::move(input)), name_(std::move(name)) {
    blocked_ = next_is_blocked();
    constexpr int kGzipOnly = 16;
    check(inflateInit2(&stream_, MAX_WBITS + kGzipOnly) == Z_OK, "cannot start zlib: out of memory");
  }
  ~GzipSource() override { inflateEnd(&stream_); }
  GzipSource(const GzipSource&) = delete;
  GzipSource& operator=(const GzipSource&) = delete;

  size_t read(char* buffer, size_t size) override {
    const auto room = static_cast<uInt>(std::min(size, kChunk));
    while (!at_end_) {
      if (!input_.require(1)) throw_truncated(name_, "gzip");
      stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(input_.begin()));
      stream_.avail_in = static_cast<uInt>(input_.size());
      stream_.next_out = reinterpret_cast<Bytef*>(buffer);
      stream_.avail_out = room;
      const int status = inflate(&stream_, Z_NO_FLUSH);
      input_.drop(input_.size() - stream_.avail_in);
      if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR) {
        throw_damaged(name_, "gzip", stream_.msg != nullptr ? stream_.msg : "zlib failed");
      }
      if (status == Z_STREAM_END) end_member();
      if (stream_.avail_out == room) continue;
      unpacked_ += room - stream_.avail_out;
      check_growth(unpacked_, input_.dropped(), name_);
      return room - stream_.avail_out;
    }
    return 0;
  }

 private:
  // bgzip marks its members by an extra field "BC" and ends a file with an empty one, so that a file cut
  // between two members can be told from a whole one.
  bool next_is_blocked() {
    return input_.require(14) && (input_.begin()[3] & 4) != 0 &&
           std::memcmp(input_.begin() + 12, "BC", 2) == 0;
  }

  void end_member() {
    const bool empty = stream_.total_out == 0;
    while (input_.require(1) && *input_.begin() == '\0')
      input_.drop(1);  // padding of tapes and block devices
    if (input_.size() == 0) {
      if (blocked_ && !empty) throw_truncated(name_, "bgzip");
      at_end_ = true;
      return;
    }
    if (!input_.starts_with(kGzipMagic))
      throw_damaged(name_, "gzip", "other bytes follow the compressed data");
    blocked_ = next_is_blocked();
    inflateReset(&stream_);
  }

  Input input_;
  std::string name_;
  z_stream stream_{};
  uint64_t unpacked_ = 0;
  bool blocked_ = false, at_end_ = false;
};

class ZstdSource final : public ByteSource {
 public:
  ZstdSource(Input input, std::string name)
      : input_(std::move(input)), name_(std::move(name)), stream_(ZSTD_createDStream(), &ZSTD_freeDStream) {
    check(stream_ != nullptr, "cannot start zstd: out of memory");
    ZSTD_DCtx_setParameter(stream_.get(), ZSTD_d_windowLogMax, kWindowLogMax);
  }

  size_t read(char* buffer, size_t size) override {
    ZSTD_outBuffer output{buffer, size, 0};
    while (output.pos == 0) {
      const bool more = input_.require(1);
      if (!more && frame_ended_) return 0;
      ZSTD_inBuffer packed{input_.begin(), input_.size(), 0};
      const size_t status = ZSTD_decompressStream(stream_.get(), &output, &packed);
      input_.drop(packed.pos);
      if (ZSTD_isError(status) != 0) throw_failure(status);
      frame_ended_ = status == 0;
      if (!more && !frame_ended_ && output.pos == 0) throw_truncated(name_, "zstd");
    }
    unpacked_ += output.pos;
    check_growth(unpacked_, input_.dropped(), name_);
    return output.pos;
  }

 private:
  [[noreturn]] void throw_failure(size_t status) const {
    const std::string_view reason = ZSTD_getErrorName(status);
    check<InputError>(
        reason.find("too much memory") == std::string_view::npos,
        "{} needs a zstd window of more than 128 MiB; unpack it on the way: zstd -dc --long=31 {} | "
        "performer ... -",
        name_, name_);
    throw_damaged(name_, "zstd", reason);
  }

  Input input_;
  std::string name_;
  std::unique_ptr<ZSTD_DStream, decltype(&ZSTD_freeDStream)> stream_;
  uint64_t unpacked_ = 0;
  bool frame_ended_ = false;
};

// "gzip" or "zstd" for data that begin so, else "".
std::string_view packing_of(std::string_view head) {
  if (head.starts_with(kGzipMagic)) return "gzip";
  if (head.starts_with("\x28\xb5\x2f\xfd")) return "zstd";
  // A skippable frame, as pzstd writes first: 0x184D2A50 .. 0x184D2A5F, little endian.
  const bool skippable = head.size() >= 4 && (head[0] & 0xf0) == 0x50 && head.substr(1, 3) == "\x2a\x4d\x18";
  return skippable ? "zstd" : "";
}

}  // namespace

std::unique_ptr<ByteSource> unpack(std::unique_ptr<ByteSource> source, const std::string& name) {
  Input input(std::move(source));
  input.require(16);  // also when bytes trickle in: what follows recognises formats by their first few
  const std::string_view packing = packing_of({input.begin(), input.size()});
  if (packing.empty()) return std::make_unique<PlainSource>(std::move(input));
  std::unique_ptr<ByteSource> content;
  if (packing == "gzip") {
    content = std::make_unique<GzipSource>(std::move(input), name);
  } else {
    content = std::make_unique<ZstdSource>(std::move(input), name);
  }
  auto peeked = std::make_unique<PeekedSource>(std::move(content));
  const std::string_view within = packing_of(peeked->peek(4));
  check<InputError>(within.empty(), "{} is packed twice, {} within {}: unpack it once with {} -d", name,
                    within, packing, packing);
  return peeked;
}

}  // namespace performer::data
