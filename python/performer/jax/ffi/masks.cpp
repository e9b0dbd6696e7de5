// SPDX-License-Identifier: Apache-2.0
// performer_reduce_mask: attention masks as masks of keys and of queries.
//
// Linear attention never builds the matrix of queries and keys, so that it can leave out keys, leave out
// queries, and be causal, but not follow any mask. What a model passes is nearly always one of these written
// out as a matrix; here the matrix is read back, and refused if it is another.
#include <cstdint>
#include <string>
#include <vector>

#include "python/performer/jax/ffi/operand.h"

namespace performer::jax_ffi {
namespace {

namespace ffi = xla::ffi;

enum : uint8_t { kDrop = 0, kKeep = 1 };  // other codes: a bias that is neither 0 nor a mask

// One sequence: mask [heads, queries, keys].
struct Matrix {
  const uint8_t* mask;
  int64_t heads, queries, keys;
  bool causal;

  uint8_t at(int64_t h, int64_t i, int64_t j) const { return mask[(h * queries + i) * keys + j]; }
  // Whether a causal attention looks at this entry at all.
  bool visible(int64_t i, int64_t j) const { return !causal || j <= i; }

  void reduce(bool* key_mask, bool* query_mask) const {
    for (int64_t j = 0; j < keys; ++j) key_mask[j] = false;
    for (int64_t i = 0; i < queries; ++i) {
      query_mask[i] = false;
      for (int64_t j = 0; j < keys; ++j) {
        if (at(0, i, j) == kKeep && visible(i, j)) key_mask[j] = query_mask[i] = true;
      }
    }
  }

  void verify(const bool* key_mask, const bool* query_mask, int64_t sequence) const {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < queries; ++i) {
        for (int64_t j = 0; j < keys; ++j) {
          if (visible(i, j)) verify_entry(key_mask[j] && query_mask[i], h, i, j, sequence);
        }
      }
    }
  }

 private:
  void verify_entry(bool expected, int64_t h, int64_t i, int64_t j, int64_t sequence) const {
    const uint8_t found = at(h, i, j);
    check<UsageError>(found <= kKeep,
                      "the attention bias is neither 0 nor at most -1e9 (a mask) for query {} and key {} of "
                      "sequence {}: linear attention cannot add to its scores. Leave the bias out, or use "
                      "exact attention",
                      i, j, sequence);
    check<UsageError>((found == kKeep) == expected,
                      "the attention mask is no mask of keys and queries{}: it {} query {} and key {} of "
                      "sequence {}, head {}. Linear attention can leave out keys, leave out queries and be "
                      "causal (unidirectional=True); anything else needs exact attention",
                      causal ? " beside being causal" : "", found == kKeep ? "keeps" : "drops", i, j,
                      sequence, h);
  }
};

// mask [B, 1 or H, T, S] of codes; key_mask [B, S], query_mask [B, T].
ffi::Error reduce_mask(ffi::AnyBuffer mask_buffer, ffi::Result<ffi::AnyBuffer> key_buffer,
                       ffi::Result<ffi::AnyBuffer> query_buffer, int64_t causal) {
  return reported([&] {
    const Operand mask(mask_buffer, 4, "mask"), keys(*key_buffer, 2, "key_mask"),
        queries(*query_buffer, 2, "query_mask");
    const std::vector<int64_t>& all = keys.mapped();
    for (int64_t n = 0; n < product(all); ++n) {
      for (int64_t b = 0; b < mask.size(0); ++b) {
        const int64_t size = mask.size(1) * mask.size(2) * mask.size(3);
        const Matrix matrix{static_cast<const uint8_t*>(mask.entry(n, all)) + b * size, mask.size(1),
                            mask.size(2), mask.size(3), causal != 0};
        bool* key_mask = static_cast<bool*>(keys.entry(n, all)) + b * mask.size(3);
        bool* query_mask = static_cast<bool*>(queries.entry(n, all)) + b * mask.size(2);
        matrix.reduce(key_mask, query_mask);
        matrix.verify(key_mask, query_mask, n * mask.size(0) + b);
      }
    }
  });
}

}  // namespace

PERFORMER_EXPORT_HANDLER(performer_reduce_mask);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    performer_reduce_mask, reduce_mask,
    ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>().Attr<int64_t>(
        "causal"));

}  // namespace performer::jax_ffi
