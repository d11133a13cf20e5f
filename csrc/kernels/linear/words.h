// SPDX-License-Identifier: Apache-2.0
// Codes of eight bits as 16-bit words, where products of bytes come as pairs that do not fit 16 bits (AVX2): a product
// of words is exact at once, where bytes have to be split into halves for every few rows and folded afterwards.
//
// A panel holds codes less their zero point. The four bytes of a lane become two pairs of words, its first and third
// and its second and fourth; an eight is four times 64 bytes, even columns' pairs and then odd columns'. Rows are
// widened alike, 16 bytes an eight, a block of columns at a time.
#pragma once

#include "strip.h"

namespace linnet::LINNET_TIER {

constexpr int64_t RUN_PAIRS = 16;
// Of rows that are widened at once.
constexpr int64_t WORDS_COLUMNS = 512;

#if defined(LINNET_AVX2) && defined(LINNET_PAIRS)
constexpr bool READS_WORDS = true;

// `runs` runs of a tile of eight bits.
LINNET_INLINE void widen_panel(const uint8_t* codes, int64_t runs, uint8_t* panel) {
    const __m256i low = _mm256_set1_epi16(255), zero = _mm256_set1_epi16(128);
    for (int64_t vector = 0; vector < runs * RUN_EIGHTS * 2; ++vector, codes += 64, panel += 128)
        for (int half = 0; half < 64; half += 32) {
            const __m256i bytes = _mm256_load_si256((const __m256i*)(codes + half));
            const __m256i first = _mm256_and_si256(bytes, low), second = _mm256_srli_epi16(bytes, 8);
            _mm256_store_si256((__m256i*)(panel + half), _mm256_sub_epi16(first, zero));
            _mm256_store_si256((__m256i*)(panel + 64 + half), _mm256_sub_epi16(second, zero));
        }
}

// `runs` times 32 bytes of a row.
LINNET_INLINE void widen_row(const int8_t* codes, int64_t runs, int32_t* pairs) {
    for (int64_t run = 0; run < runs; ++run, codes += RUN_COLUMNS, pairs += RUN_PAIRS) {
        const __m256i bytes = _mm256_loadu_si256((const __m256i*)codes);
        const __m256i first = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), second = _mm256_srai_epi16(bytes, 8);
        const __m256i low = _mm256_unpacklo_epi32(first, second), high = _mm256_unpackhi_epi32(first, second);
        _mm256_store_si256((__m256i*)pairs, _mm256_permute2x128_si256(low, high, 0x20));
        _mm256_store_si256((__m256i*)(pairs + 8), _mm256_permute2x128_si256(low, high, 0x31));
    }
}

LINNET_INLINE Ints pair_products(Ints codes, Ints x) {
    return {_mm256_madd_epi16(codes.a, x.a), _mm256_madd_epi16(codes.b, x.b)};
}

// totals [M][16]; they and the sums of a span stay in registers.
template <int M>
static void multiply_words(const Strip& strip, const Int8Input& x, int64_t row, float* totals) {
    alignas(64) int32_t pairs[M][WORDS_COLUMNS / 2];
    const int64_t runs = strip.eights / RUN_EIGHTS, span_runs = strip.span_steps;
    const float* x_scales[M];
    Floats total[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
        widen_row(x.codes + (row + m) * x.row_bytes + strip.column, runs, pairs[m]);
        x_scales[m] = x.scales + (row + m) * x.scale_stride + strip.first_span / strip.spans_per_x_scale;
        total[m] = strip.starts ? splat(0.0f) : load(totals + 16 * m);
    }
    const int64_t own = strip.first_span / strip.spans_per_super;
    int64_t in_own = strip.first_span - own * strip.spans_per_super;
    int64_t in_x_own = strip.first_span % strip.spans_per_x_scale;
    const ScaleType scale_type = strip.weight->scale_type;
    const int64_t scale_step = 16 * strip.tiles->scale_bytes;
    const uint8_t* scales = strip.records[0] + own * scale_step;
    const uint8_t* panel = strip.codes;
    const int32_t* input = pairs[0];
    for (int64_t left = runs; left > 0; left -= span_runs) {
        Ints sums[M];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) sums[m] = splat_int(0);
        for (int64_t run = 0; run < span_runs; ++run, panel += RUN_PAIRS * 64, input += RUN_PAIRS) {
#pragma GCC unroll 16
            for (int pair = 0; pair < RUN_PAIRS; ++pair) {
                Ints codes = load_ints((const int32_t*)(panel + pair * 64));
                finish_here(codes);
#pragma GCC unroll 4
                for (int m = 0; m < M; ++m) {
                    const Ints own_x = splat_word((const int8_t*)(input + m * (WORDS_COLUMNS / 2) + pair));
                    sums[m] = sums[m] + pair_products(codes, own_x);
                    finish_here(sums[m]);
                }
            }
        }
        const Floats scale = load_scales(scale_type, scales);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) total[m] = fma(to_floats(sums[m]) * splat(*x_scales[m]), scale, total[m]);
        if (++in_own == strip.spans_per_super) {
            in_own = 0;
            scales += scale_step;
        }
        if (++in_x_own == strip.spans_per_x_scale) {
            in_x_own = 0;
            for (int m = 0; m < M; ++m) ++x_scales[m];
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) store(totals + 16 * m, total[m]);
}
#else
constexpr bool READS_WORDS = false;
LINNET_INLINE void widen_panel(const uint8_t*, int64_t, uint8_t*) {}
template <int M>
static void multiply_words(const Strip&, const Int8Input&, int64_t, float*) {}
#endif

}  // namespace linnet::LINNET_TIER
