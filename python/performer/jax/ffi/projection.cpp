// SPDX-License-Identifier: Apache-2.0
// Projections by name: performer_projection within a compiled function, where the number of the redraw is
// known only when it runs, and performer_draw_projection for Python (ctypes), with or without JAX.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "performer/kernels/projection.h"
#include "python/performer/jax/ffi/operand.h"

namespace performer::jax_ffi {
namespace {

namespace ffi = xla::ffi;

// [heads, features, head_size] of one draw.
struct Draw {
  std::string kind, row_norm;
  int64_t heads = 0, features = 0, head_size = 0;
  uint64_t seed = 0;
  uint32_t layer = 0, redraw = 0;

  auto key() const { return std::tie(kind, row_norm, heads, features, head_size, seed, layer, redraw); }
  bool operator==(const Draw& other) const { return key() == other.key(); }

  std::vector<float> values() const {
    const kernels::ProjectionKind projection_kind = kernels::projection_kind_from_name(kind);
    const kernels::RowNorm norm = kernels::row_norm_from_name(row_norm);
    std::vector<float> all;
    for (int64_t head = 0; head < heads; ++head) {
      const kernels::ProjectionKey name{seed, layer, static_cast<uint32_t>(head), redraw};
      const auto rows = kernels::draw_projection(projection_kind, norm, features, head_size, name);
      all.insert(all.end(), rows.begin(), rows.end());
    }
    return all;
  }
};

// The draws of the last calls: a step of training asks for the same ones as the step before it, and a draw
// takes a QR decomposition a block.
class Recent {
 public:
  std::shared_ptr<const std::vector<float>> get(const Draw& draw) {
    const std::lock_guard lock(mutex_);
    const auto found =
        std::find_if(draws_.begin(), draws_.end(), [&](const Entry& entry) { return entry.draw == draw; });
    if (found != draws_.end()) {
      draws_.splice(draws_.begin(), draws_, found);
    } else {
      draws_.push_front({draw, std::make_shared<const std::vector<float>>(draw.values())});
      if (draws_.size() > kKept) draws_.pop_back();
    }
    return draws_.front().values;
  }

 private:
  static constexpr size_t kKept = 64;  // layers, mostly
  struct Entry {
    Draw draw;
    std::shared_ptr<const std::vector<float>> values;
  };
  std::mutex mutex_;
  std::list<Entry> draws_;  // last used first
};

Recent& recent() {
  static Recent draws;
  return draws;
}

// redraw [] uint32 -> [heads, features, head_size] float32.
ffi::Error projection(ffi::Buffer<ffi::U32> redraw, ffi::ResultBuffer<ffi::F32> out, std::string_view kind,
                      std::string_view row_norm, int64_t seed, int64_t layer) {
  return reported([&] {
    const auto sizes = out->dimensions();
    check<UsageError>(sizes.size() == 3 && redraw.element_count() == 1,
                      "a projection is [heads, features, head size] of one number of a redraw");
    const Draw draw{std::string(kind),
                    std::string(row_norm),
                    sizes[0],
                    sizes[1],
                    sizes[2],
                    static_cast<uint64_t>(seed),
                    static_cast<uint32_t>(layer),
                    redraw.typed_data()[0]};
    const auto values = recent().get(draw);
    std::copy(values->begin(), values->end(), out->typed_data());
  });
}

}  // namespace

PERFORMER_EXPORT_HANDLER(performer_projection);
XLA_FFI_DEFINE_HANDLER_SYMBOL(performer_projection, projection,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<std::string_view>("kind")
                                  .Attr<std::string_view>("row_norm")
                                  .Attr<int64_t>("seed")
                                  .Attr<int64_t>("layer"));

}  // namespace performer::jax_ffi

// Writes [heads, features, head_size] float32 to `out`. Returns 0, or 1 with the reason in `message`, which
// has room for `room` characters.
extern "C" __attribute__((visibility("default"))) int performer_draw_projection(
    const char* kind, const char* row_norm, int64_t heads, int64_t features, int64_t head_size, uint64_t seed,
    uint32_t layer, uint32_t redraw, float* out, char* message, size_t room) {
  using performer::jax_ffi::Draw;
  try {
    const auto values = Draw{kind, row_norm, heads, features, head_size, seed, layer, redraw}.values();
    std::copy(values.begin(), values.end(), out);
    return 0;
  } catch (const std::exception& error) {
    if (room > 0) {
      std::strncpy(message, error.what(), room - 1);
      message[room - 1] = 0;
    }
    return 1;
  }
}
