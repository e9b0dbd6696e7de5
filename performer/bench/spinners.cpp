// SPDX-License-Identifier: Apache-2.0
// Loops of one instruction. Each function is compiled for its own instructions, whatever the rest is compiled
// for, and is called only where they exist.
//
// Accumulators are independent and more than latency times units, so that only throughput counts. Both
// factors are 1, read from memory that the compiler must not look into: each sum then grows by the exact
// count. Accumulators begin with different numbers, or the compiler would compute one for all.
#include <array>
#include <cstring>

#include "performer/bench/limits.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace performer::bench {
namespace {

volatile float one = 1;

bool always() {
  return true;
}

// What every machine has: vectors of four. The product depends on the sum, or it would be computed once.
void spin_plain(float* sums, int64_t rounds) {
#if defined(__aarch64__)
  const float32x4_t a = vdupq_n_f32(one), b = vdupq_n_f32(one);
  float32x4_t s[24];
#pragma GCC unroll 24
  for (int i = 0; i < 24; ++i) s[i] = vld1q_f32(sums + 4 * i);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (auto& each : s) each = vfmaq_f32(each, a, b);
  }
#else
  typedef float Four __attribute__((vector_size(16)));
  const float x = one, y = one;
  const Four a = {x, x, x, x}, b = {y, y, y, y};
  Four s[12];
  std::memcpy(s, sums, sizeof(s));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (auto& each : s) each = each * a + b;
  }
#endif
  std::memcpy(sums, s, sizeof(s));
}

#if defined(__x86_64__)

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f");
}
bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

__attribute__((target("avx2,fma"))) void spin_avx2(float* sums, int64_t rounds) {
  const __m256 a = _mm256_set1_ps(one), b = _mm256_set1_ps(one);
  __m256 s[12];
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) s[i] = _mm256_loadu_ps(sums + 8 * i);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (auto& each : s) each = _mm256_fmadd_ps(a, b, each);
  }
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) _mm256_storeu_ps(sums + 8 * i, s[i]);
}

__attribute__((target("avx512f"))) void spin_avx512(float* sums, int64_t rounds) {
  const __m512 a = _mm512_set1_ps(one), b = _mm512_set1_ps(one);
  __m512 s[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) s[i] = _mm512_loadu_ps(sums + 16 * i);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (auto& each : s) each = _mm512_fmadd_ps(a, b, each);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_ps(sums + 16 * i, s[i]);
}

// A lane adds two products.
__attribute__((target("avx512f,avx512bf16"))) void spin_avx512_bf16(float* sums, int64_t rounds) {
  const __m512 wide = _mm512_set1_ps(one);
  const __m512bh a = _mm512_cvtne2ps_pbh(wide, wide), b = _mm512_cvtne2ps_pbh(wide, wide);
  __m512 s[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) s[i] = _mm512_loadu_ps(sums + 16 * i);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (auto& each : s) each = _mm512_dpbf16_ps(each, a, b);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_ps(sums + 16 * i, s[i]);
}

// Linux hands the tile registers to a process only when it asks for them.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  asm volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
  const bool tiles = (d >> 24 & 1) != 0, bfloat16 = (d >> 22 & 1) != 0;
  return tiles && bfloat16 && has_avx512_bf16() && may_use_tiles();
}

// Two tiles of 16 x 32 numbers into four accumulators of 16 x 16: an element adds 32 products.
__attribute__((target("amx-tile,amx-bf16,avx512f,avx512bf16"))) void spin_amx(float* sums, int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t columns[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
  } configuration;
  alignas(64) std::array<uint16_t, 512> ones;
  const float x = one;
  uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof(bits));
  ones.fill(static_cast<uint16_t>(bits >> 16));
  _tile_loadconfig(&configuration);
  _tile_loadd(4, ones.data(), 64);
  _tile_loadd(5, ones.data(), 64);
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, sums + 256, 64);
  _tile_loadd(2, sums + 512, 64);
  _tile_loadd(3, sums + 768, 64);
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
  _tile_release();
}

#endif

}  // namespace

std::vector<Spinner> float_spinners() {
  std::vector<Spinner> spinners;
#if defined(__x86_64__)
  spinners.push_back({"AVX-512 fused multiply-adds", 2 * 16 * 16, 256, 1, spin_avx512, has_avx512});
  spinners.push_back({"AVX2 fused multiply-adds", 2 * 8 * 12, 96, 1, spin_avx2, has_avx2});
#endif
#if defined(__aarch64__)
  spinners.push_back({"NEON fused multiply-adds", 2 * 4 * 24, 96, 1, spin_plain, always});
#else
  spinners.push_back({"products and sums of four", 2 * 4 * 12, 48, 1, spin_plain, always});
#endif
  return spinners;
}

std::vector<Spinner> bfloat16_spinners() {
  std::vector<Spinner> spinners;
#if defined(__x86_64__)
  spinners.push_back(
      {"AMX tile products of bfloat16", int64_t{4} * 2 * 16 * 16 * 32, 1024, 32, spin_amx, has_amx});
  spinners.push_back(
      {"AVX-512 dot products of bfloat16", 2 * 2 * 16 * 16, 256, 2, spin_avx512_bf16, has_avx512_bf16});
#endif
  return spinners;
}

}  // namespace performer::bench
