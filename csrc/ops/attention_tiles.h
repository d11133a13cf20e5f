// SPDX-License-Identifier: Apache-2.0
// The two inner loops of attention, register-tiled: query vectors x key tiles, and weights x value rows. One
// accumulator is one chain of FMAs in dimension (or key) order whatever the tile, so tiling never changes bits.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace linnet::LINNET_TIER {

namespace {

#if defined(LINNET_AVX512)
constexpr int64_t MAX_VECTORS = 8;  // accumulators of a score tile
constexpr int64_t MAX_HEADS = 2;    // heads of one row that share loaded values
constexpr int64_t MAX_CHUNK = 8;    // value vectors per pass
#else
constexpr int64_t MAX_VECTORS = 4;
constexpr int64_t MAX_HEADS = 2;
constexpr int64_t MAX_CHUNK = 2;
#endif

template <bool narrow>
LINNET_INLINE void load_pair(const void* tile, int64_t pair, Floats& even, Floats& odd) {
    if constexpr (narrow) {
        const Ints raw = load_ints((const int32_t*)tile + pair * LANES);
        even = as_floats(shift_left<16>(raw));
        odd = as_floats(raw & splat_int(int32_t(0xffff0000u)));
    } else {
        even = load((const float*)tile + pair * (2 * LANES));
        odd = load((const float*)tile + pair * (2 * LANES) + LANES);
    }
}

// scores[v][t * step + lane] = sum over d of queries[v][d] * tile t's key `lane`, d ascending.
template <int vectors, int tiles, bool narrow>
LINNET_INLINE void score_block(const float* const* queries, int64_t head_size, const void* const* tile, int64_t step,
                               float* scores, int64_t ld) {
    Floats sums[tiles][vectors];
    for (int t = 0; t < tiles; ++t) {
        for (int v = 0; v < vectors; ++v) sums[t][v] = splat(0.0f);
    }
    for (int64_t pair = 0; pair < head_size / 2; ++pair) {
#pragma GCC unroll 8
        for (int t = 0; t < tiles; ++t) {
            Floats even, odd;
            load_pair<narrow>(tile[t], pair, even, odd);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) sums[t][v] = fma(splat(queries[v][2 * pair]), even, sums[t][v]);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) sums[t][v] = fma(splat(queries[v][2 * pair + 1]), odd, sums[t][v]);
        }
    }
    if (head_size % 2) {
        for (int t = 0; t < tiles; ++t) {
            const Floats last =
                narrow ? as_floats(shift_left<16>(load_ints((const int32_t*)tile[t] + head_size / 2 * LANES)))
                       : load((const float*)tile[t] + (head_size - 1) * LANES);
            for (int v = 0; v < vectors; ++v) sums[t][v] = fma(splat(queries[v][head_size - 1]), last, sums[t][v]);
        }
    }
    for (int t = 0; t < tiles; ++t) {
        for (int v = 0; v < vectors; ++v) store(scores + v * ld + t * step, sums[t][v]);
    }
}

// Tiles of a row of scores are stored left to right: with step < 16 a tile's spare lanes are overwritten by the next.
template <int vectors, int tiles, bool narrow>
void score_run(const float* const* queries, int64_t head_size, const void* const* tile, int64_t count, int64_t step,
               float* scores, int64_t ld) {
    int64_t t = 0;
    for (; t + tiles <= count; t += tiles) {
        score_block<vectors, tiles, narrow>(queries, head_size, tile + t, step, scores + t * step, ld);
    }
    for (; t < count; ++t) score_block<vectors, 1, narrow>(queries, head_size, tile + t, step, scores + t * step, ld);
}

template <bool narrow>
void score_vectors(const float* const* queries, int64_t n, int64_t head_size, const void* const* tile, int64_t count,
                   int64_t step, float* scores, int64_t ld) {
    while (n > 0) {
        int64_t taken = 1;
        if (MAX_VECTORS >= 8 && n >= 8) {
            taken = 8;
            score_run<MAX_VECTORS, 2, narrow>(queries, head_size, tile, count, step, scores, ld);
        } else if (n >= 4) {
            taken = 4;
            score_run<4, MAX_VECTORS / 4, narrow>(queries, head_size, tile, count, step, scores, ld);
        } else if (n >= 2) {
            taken = 2;
            score_run<2, MAX_VECTORS / 2, narrow>(queries, head_size, tile, count, step, scores, ld);
        } else {
            score_run<1, MAX_VECTORS, narrow>(queries, head_size, tile, count, step, scores, ld);
        }
        n -= taken;
        queries += taken;
        scores += taken * ld;
    }
}

LINNET_INLINE void score_tiles(bool narrow, const float* const* queries, int64_t n, int64_t head_size,
                               const void* const* tile, int64_t count, int64_t step, float* scores, int64_t ld) {
    if (narrow) {
        score_vectors<true>(queries, n, head_size, tile, count, step, scores, ld);
    } else {
        score_vectors<false>(queries, n, head_size, tile, count, step, scores, ld);
    }
}

// out[h][0 .. chunk * 16) = sum over keys [begin, end) of weights[h][key] * rows[key], key ascending.
template <int heads, int chunk, bool narrow>
void weigh_block(const void* const* rows, int64_t at, const float* weights, int64_t ld_weights, int64_t begin,
                 int64_t end, float* out, int64_t ld) {
    Floats sums[heads][chunk];
    for (int h = 0; h < heads; ++h) {
        for (int c = 0; c < chunk; ++c) sums[h][c] = splat(0.0f);
    }
    for (int64_t key = begin; key < end; ++key) {
        Floats factor[heads];
        for (int h = 0; h < heads; ++h) factor[h] = splat(weights[h * ld_weights + key]);
#pragma GCC unroll 8
        for (int c = 0; c < chunk; ++c) {
            Floats value;
            if constexpr (narrow) {
                value = load_bf16((const uint16_t*)rows[key] + at + c * LANES);
            } else {
                value = load((const float*)rows[key] + at + c * LANES);
            }
#pragma GCC unroll 2
            for (int h = 0; h < heads; ++h) sums[h][c] = fma(factor[h], value, sums[h][c]);
        }
    }
    for (int h = 0; h < heads; ++h) {
        for (int c = 0; c < chunk; ++c) store(out + h * ld + c * LANES, sums[h][c]);
    }
}

template <int heads, bool narrow>
void weigh_chunks(const void* const* rows, const float* weights, int64_t ld_weights, int64_t begin, int64_t end,
                  int64_t stride, float* out, int64_t ld) {
    int64_t at = 0;
    for (; at + MAX_CHUNK * LANES <= stride; at += MAX_CHUNK * LANES) {
        weigh_block<heads, MAX_CHUNK, narrow>(rows, at, weights, ld_weights, begin, end, out + at, ld);
    }
    if (MAX_CHUNK > 4 && at + 4 * LANES <= stride) {
        weigh_block<heads, 4, narrow>(rows, at, weights, ld_weights, begin, end, out + at, ld);
        at += 4 * LANES;
    }
    if (MAX_CHUNK > 2 && at + 2 * LANES <= stride) {
        weigh_block<heads, 2, narrow>(rows, at, weights, ld_weights, begin, end, out + at, ld);
        at += 2 * LANES;
    }
    if (at < stride) weigh_block<heads, 1, narrow>(rows, at, weights, ld_weights, begin, end, out + at, ld);
}

LINNET_INLINE void weigh_values(bool narrow, const void* const* rows, const float* weights, int64_t ld_weights,
                                int64_t begin, int64_t end, int64_t heads, int64_t stride, float* out, int64_t ld) {
    if (heads == 2) {
        narrow ? weigh_chunks<2, true>(rows, weights, ld_weights, begin, end, stride, out, ld)
               : weigh_chunks<2, false>(rows, weights, ld_weights, begin, end, stride, out, ld);
    } else {
        narrow ? weigh_chunks<1, true>(rows, weights, ld_weights, begin, end, stride, out, ld)
               : weigh_chunks<1, false>(rows, weights, ld_weights, begin, end, stride, out, ld);
    }
}

}  // namespace

}  // namespace linnet::LINNET_TIER
