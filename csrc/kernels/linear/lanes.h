// SPDX-License-Identifier: Apache-2.0
// What the linear kernels need beyond simd.h: sixteen 4-byte words seen as bytes, exact byte dot products, transposes.
#pragma once

#include "kernels/simd.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
#include <arm_neon.h>
#endif

namespace linnet::LINNET_TIER {

// Rows and 16-output tiles that one pass over a panel keeps in registers; 32, 16 and no vector registers to spend.
#if defined(LINNET_AVX512)
constexpr int TILE_ROWS = 8;
constexpr int TILE_COUNT = 2;
#elif defined(LINNET_AVX2)
constexpr int TILE_ROWS = 4;
constexpr int TILE_COUNT = 1;
#else
constexpr int TILE_ROWS = 2;
constexpr int TILE_COUNT = 1;
#endif

LINNET_INLINE int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// 64 bytes of which the first `bytes` are read and the others are zero; reads nothing when bytes <= 0.
LINNET_INLINE Ints load_words_first(const uint8_t* p, int64_t bytes) {
    if (bytes >= 64) return load_ints((const int32_t*)p);
#if defined(LINNET_AVX512)
    if (bytes <= 0) return splat_int(0);
    return {_mm512_maskz_loadu_epi8((uint64_t(1) << bytes) - 1, p)};
#else
    alignas(64) uint8_t buffer[64] = {};
    if (bytes > 0) std::memcpy(buffer, p, size_t(bytes));
    return load_ints((const int32_t*)buffer);
#endif
}

// Sixteen rows of 64 bytes; zeros for rows from `outputs` on and bytes from `bytes` on.
LINNET_INLINE void load_rows(Ints (&rows)[16], const uint8_t* p, int64_t stride, int64_t outputs, int64_t bytes) {
    if (outputs == 16 && bytes >= 64) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) rows[i] = load_ints((const int32_t*)(p + i * stride));
    } else {
        for (int i = 0; i < 16; ++i) rows[i] = i < outputs ? load_words_first(p + i * stride, bytes) : splat_int(0);
    }
}

// Whole lines that need not be read first, to 64-byte aligned memory; visible to other threads after finish_stores.
LINNET_INLINE void store_past_caches(float* p, Floats a) {
#if defined(LINNET_AVX512)
    _mm512_stream_ps(p, a.v);
#elif defined(LINNET_AVX2)
    _mm256_stream_ps(p, a.a);
    _mm256_stream_ps(p + 8, a.b);
#else
    store(p, a);
#endif
}
LINNET_INLINE void finish_stores() {
#if defined(LINNET_AVX512) || defined(LINNET_AVX2)
    _mm_sfence();
#endif
}

// The same four signed bytes in every lane.
LINNET_INLINE Ints splat_word(const int8_t* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return splat_int(word);
}

#if defined(LINNET_AVX512)
template <int n>
LINNET_INLINE Ints shift_right_unsigned(Ints a) {
    return {_mm512_srli_epi32(a.v, n)};
}
#elif defined(LINNET_AVX2)
template <int n>
LINNET_INLINE Ints shift_right_unsigned(Ints x) {
    return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)};
}
#else
template <int n>
LINNET_INLINE Ints shift_right_unsigned(Ints x) {
    typedef uint32_t Unsigned __attribute__((vector_size(64)));
    return {(IntLanes)((Unsigned)x.v >> n)};
}
#endif

LINNET_INLINE Ints exclusive_or(Ints a, Ints b) {
#if defined(LINNET_AVX512)
    return {_mm512_xor_si512(a.v, b.v)};
#elif defined(LINNET_AVX2)
    return {_mm256_xor_si256(a.a, b.a), _mm256_xor_si256(a.b, b.b)};
#else
    return {a.v ^ b.v};
#endif
}

// sum + codes[0..3] . x[0..3] per lane; codes unsigned, x signed, exact. `narrow`: every code <= 127, so that a pair of
// products fits 16 bits (maddubs saturates otherwise).
#if defined(LINNET_VNNI)
template <bool narrow>
LINNET_INLINE Ints dot_bytes(Ints sum, Ints codes, Ints x) {
    return {_mm512_dpbusd_epi32(sum.v, codes.v, x.v)};
}
#elif defined(LINNET_AVX512)
template <bool narrow>
LINNET_INLINE Ints dot_bytes(Ints sum, Ints codes, Ints x) {
    if constexpr (narrow) {
        const __m512i pairs = _mm512_maddubs_epi16(codes.v, x.v);
        return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
    }
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(codes.v, _mm512_set1_epi16(255)),
                                           _mm512_srai_epi16(_mm512_slli_epi16(x.v, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(codes.v, 8), _mm512_srai_epi16(x.v, 8));
    return {_mm512_add_epi32(sum.v, _mm512_add_epi32(even, odd))};
}
#elif defined(LINNET_AVX2)
template <bool narrow>
LINNET_INLINE __m256i dot_half(__m256i sum, __m256i codes, __m256i x) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, codes, x);
#else
    if constexpr (narrow) {
        const __m256i pairs = _mm256_maddubs_epi16(codes, x);
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(x, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
#endif
}
template <bool narrow>
LINNET_INLINE Ints dot_bytes(Ints sum, Ints codes, Ints x) {
    return {dot_half<narrow>(sum.a, codes.a, x.a), dot_half<narrow>(sum.b, codes.b, x.b)};
}
#elif defined(__ARM_FEATURE_MATMUL_INT8)
template <bool narrow>
LINNET_INLINE Ints dot_bytes(Ints sum, Ints codes, Ints x) {
    int32x4_t sums[4];
    uint8x16_t unsigned_codes[4];
    int8x16_t bytes[4];
    std::memcpy(sums, &sum, 64);
    std::memcpy(unsigned_codes, &codes, 64);
    std::memcpy(bytes, &x, 64);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums[i] = vusdotq_s32(sums[i], unsigned_codes[i], bytes[i]);
    std::memcpy((void*)&sum, sums, 64);
    return sum;
}
#else
template <bool narrow>
LINNET_INLINE Ints dot_bytes(Ints sum, Ints codes, Ints x) {
    typedef uint32_t Unsigned __attribute__((vector_size(64)));
    const Unsigned code_words = (Unsigned)codes.v;
    const Unsigned x_words = (Unsigned)x.v;
    sum.v += (IntLanes)(code_words & 255) * ((IntLanes)(x_words << 24) >> 24);
    sum.v += (IntLanes)((code_words >> 8) & 255) * ((IntLanes)(x_words << 16) >> 24);
    sum.v += (IntLanes)((code_words >> 16) & 255) * ((IntLanes)(x_words << 8) >> 24);
    sum.v += (IntLanes)(code_words >> 24) * ((IntLanes)x_words >> 24);
    return sum;
}
#endif

// Only the lowest four bits of a lane count.
LINNET_INLINE Floats look_up(const float* codebook, Ints code) {
#if defined(LINNET_AVX512)
    return {_mm512_permutexvar_ps(code.v, _mm512_loadu_ps(codebook))};
#elif defined(LINNET_AVX2)
    const auto eight = [codebook](__m256i index) __attribute__((always_inline)) {
        const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(codebook), index);
        const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(codebook + 8), index);
        return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
    };
    return {eight(code.a), eight(code.b)};
#else
    alignas(64) int32_t index[16];
    alignas(64) float lanes[16];
    store_ints(index, code);
    for (int i = 0; i < 16; ++i) lanes[i] = codebook[index[i] & 15];
    return load(lanes);
#endif
}

// A chunk of products before it meets its factor. Where dot products come as pairs in 16 bits (maddubs), they are added
// there: a chunk is as long as that holds (LINNET_PAIRS), and the multiplication that widens them also scales them.
#if (defined(LINNET_AVX512) && !defined(LINNET_VNNI)) || (defined(LINNET_AVX2) && !defined(__AVXVNNI__))
#define LINNET_PAIRS 1
constexpr bool PAIRED_PRODUCTS = true;
#else
constexpr bool PAIRED_PRODUCTS = false;
#endif

#if defined(LINNET_PAIRS) && defined(LINNET_AVX512)
LINNET_INLINE Ints add_products(Ints chunk, Ints codes, Ints x) {
    return {_mm512_add_epi16(chunk.v, _mm512_maddubs_epi16(codes.v, x.v))};
}
LINNET_INLINE Ints fold(Ints sum, Ints chunk, Ints factor) {
    return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(chunk.v, factor.v))};
}
#elif defined(LINNET_PAIRS)
LINNET_INLINE Ints add_products(Ints chunk, Ints codes, Ints x) {
    return {_mm256_add_epi16(chunk.a, _mm256_maddubs_epi16(codes.a, x.a)),
            _mm256_add_epi16(chunk.b, _mm256_maddubs_epi16(codes.b, x.b))};
}
LINNET_INLINE Ints fold(Ints sum, Ints chunk, Ints factor) {
    return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(chunk.a, factor.a)),
            _mm256_add_epi32(sum.b, _mm256_madd_epi16(chunk.b, factor.b))};
}
#else
LINNET_INLINE Ints add_products(Ints chunk, Ints codes, Ints x) { return dot_bytes<true>(chunk, codes, x); }
LINNET_INLINE Ints fold(Ints sum, Ints chunk, Ints factor) { return sum + chunk * factor; }
#endif

// A factor of fold that is the same for all lanes.
LINNET_INLINE Ints splat_factor(int32_t factor) { return splat_int(PAIRED_PRODUCTS ? factor * 0x00010001 : factor); }

// Sixteen signed bytes, one per lane.
LINNET_INLINE Ints widen_bytes(const int8_t* p) {
#if defined(LINNET_AVX512)
    return {_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))};
#elif defined(LINNET_AVX2)
    return {_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)),
            _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
#else
    Ints out = splat_int(0);
    for (int i = 0; i < 16; ++i) out.v[i] = p[i];
    return out;
#endif
}

// The same as factors of fold.
LINNET_INLINE Ints widen_factors(const int8_t* p) {
#if defined(LINNET_PAIRS) && defined(LINNET_AVX512)
    const Ints own = widen_bytes(p);
    return (own & splat_int(0xffff)) | shift_left<16>(own);
#elif defined(LINNET_PAIRS)
    const __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
    const __m256i crossed = _mm256_permute4x64_epi64(words, 0xd8);
    return {_mm256_unpacklo_epi16(crossed, crossed), _mm256_unpackhi_epi16(crossed, crossed)};
#else
    return widen_bytes(p);
#endif
}

// factors (of widen_factors) times a number that fits 16 bits.
LINNET_INLINE Ints multiply_factors(Ints factors, int32_t number) {
#if defined(LINNET_PAIRS) && defined(LINNET_AVX512)
    return {_mm512_madd_epi16(factors.v, _mm512_set1_epi32(number & 0xffff))};
#elif defined(LINNET_PAIRS)
    const __m256i own = _mm256_set1_epi32(number & 0xffff);
    return {_mm256_madd_epi16(factors.a, own), _mm256_madd_epi16(factors.b, own)};
#else
    return factors * splat_int(number);
#endif
}

// Within every 8 bytes: 0 2 4 6 1 3 5 7, the order quantised rows are stored in (see rows.cpp).
LINNET_INLINE Ints evens_before_odds(Ints a) {
#if defined(LINNET_AVX512)
    return {_mm512_shuffle_epi8(
        a.v, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)))};
#elif defined(LINNET_AVX2)
    const __m256i order =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
    return {_mm256_shuffle_epi8(a.a, order), _mm256_shuffle_epi8(a.b, order)};
#else
    static const uint8_t order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    uint8_t in[64], out[64];
    std::memcpy(in, &a, 64);
    for (int i = 0; i < 64; ++i) out[i] = in[(i & ~7) + order[i & 7]];
    std::memcpy(&a, out, 64);
    return a;
#endif
}

// rows[i] lane j becomes rows[j] lane i.
#if defined(LINNET_AVX512)
LINNET_INLINE void transpose(Ints (&r)[16]) {
    __m512i t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i].v, r[i + 1].v);
        t[i + 1] = _mm512_unpackhi_epi32(r[i].v, r[i + 1].v);
    }
    __m512i u[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
        u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; ++i) {  // u[4 q + i]: rows 4q..4q+3, columns i, 4 + i, 8 + i, 12 + i in its four quarters
        const __m512i low01 = _mm512_shuffle_i32x4(u[i], u[4 + i], 0x44);
        const __m512i low23 = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0x44);
        const __m512i high01 = _mm512_shuffle_i32x4(u[i], u[4 + i], 0xee);
        const __m512i high23 = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0xee);
        r[i].v = _mm512_shuffle_i32x4(low01, low23, 0x88);
        r[4 + i].v = _mm512_shuffle_i32x4(low01, low23, 0xdd);
        r[8 + i].v = _mm512_shuffle_i32x4(high01, high23, 0x88);
        r[12 + i].v = _mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
}
#elif defined(LINNET_AVX2)
LINNET_INLINE void transpose_eight(__m256i* r) {
    __m256i t[8], u[8];
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm256_permute2x128_si256(u[i], u[4 + i], 0x20);
        r[4 + i] = _mm256_permute2x128_si256(u[i], u[4 + i], 0x31);
    }
}
LINNET_INLINE void transpose(Ints (&r)[16]) {
    __m256i quarter[4][8];  // [2 * (rows >= 8) + (columns >= 8)]
#pragma GCC unroll 16
    for (int i = 0; i < 8; ++i) {
        quarter[0][i] = r[i].a;
        quarter[1][i] = r[i].b;
        quarter[2][i] = r[8 + i].a;
        quarter[3][i] = r[8 + i].b;
    }
#pragma GCC unroll 16
    for (int q = 0; q < 4; ++q) transpose_eight(quarter[q]);
#pragma GCC unroll 16
    for (int i = 0; i < 8; ++i) {
        r[i] = {quarter[0][i], quarter[2][i]};
        r[8 + i] = {quarter[1][i], quarter[3][i]};
    }
}
#else
LINNET_INLINE void transpose(Ints (&r)[16]) {
    int32_t in[16][16], out[16][16];
    std::memcpy(in, r, sizeof in);
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) out[j][i] = in[i][j];
    std::memcpy((void*)r, out, sizeof out);
}
#endif

}  // namespace linnet::LINNET_TIER
