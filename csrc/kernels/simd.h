// SPDX-License-Identifier: Apache-2.0
// Sixteen floats at a time, for every instruction set. Kernel sources are compiled once per tier with
// -DLINNET_TIER=<portable|avx2|avx2_vnni|avx512|avx512_vnni|avx512_bf16|neon_i8mm> and that tier's -m flags, inside
// namespace linnet::LINNET_TIER.
//
// Rules of a kernel source: everything lives in the tier's namespace (or an anonymous one inside it); no std::
// templates (the linker keeps one copy of an inline function, maybe the one with AVX-512 in it); a tail is the same
// vector code with zero lanes (load_first / store_first), so that a value's bits do not depend on where it stands.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef LINNET_TIER
#error "kernel sources are compiled once per tier: define LINNET_TIER"
#endif

// LINNET_BF16 implies LINNET_VNNI, and that LINNET_AVX512; LINNET_AVX2 and LINNET_AVX512 exclude each other.
#if defined(__AVX512VNNI__)
#define LINNET_VNNI 1
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512BF16__) && defined(__AVX512VBMI__)
#define LINNET_BF16 1
#endif
#if defined(__AVX512F__)
#define LINNET_AVX512 1
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#define LINNET_AVX2 1
#include <immintrin.h>
#else
#define LINNET_PORTABLE 1
#endif

#define LINNET_INLINE static inline __attribute__((always_inline))

namespace linnet::LINNET_TIER {

constexpr int LANES = 16;

LINNET_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
LINNET_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
LINNET_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
LINNET_INLINE float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
LINNET_INLINE uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
LINNET_INLINE float bf16_to_float(uint16_t value) { return bits_to_float(uint32_t(value) << 16); }

}  // namespace linnet::LINNET_TIER

#if defined(LINNET_AVX512)
#include "simd_avx512.h"
#elif defined(LINNET_AVX2)
#include "simd_avx2.h"
#else
#include "simd_portable.h"
#endif

namespace linnet::LINNET_TIER {

// What every tier provides (Floats: 16 fp32 lanes, Ints: 16 int32 lanes, Mask: 16 truth values):
//   load, load_first(pointer, n), store, store_first(pointer, n, v)    n lanes from the first; the others are zero
//   splat, splat_int, lane_numbers, first_lanes(n)
//   + - * /, fma(a, b, c) = a * b + c, fnma(a, b, c) = c - a * b, smallest, greatest, root, absolute, round_even
//   less(a, b), equal, select(mask, if_true, if_false), as_ints, as_floats, to_ints (round to even), to_floats
//   Ints: + - * & |, shift_left<n>, shift_right<n> (arithmetic), load_ints, store_ints, less, equal
//   load_bf16(_first), load_fp16(_first), store_bf16(_first), store_fp16(_first): conversions, rounding to nearest even
//   total(v): sum of lanes in one fixed tree, same on every tier; top(v): the greatest lane

}  // namespace linnet::LINNET_TIER
