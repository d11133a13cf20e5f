// SPDX-License-Identifier: Apache-2.0
// The two inner loops of attention, register-tiled: query vectors x key tiles, and weights x value rows. One
// accumulator is one chain of pair dot products in dimension (or key) order whatever the tile, so tiling never changes
// bits. While one half of a partition is computed, the other half is prefetched.
#pragma once

#include "attention_pairs.h"

namespace linnet::LINNET_TIER {

namespace {

constexpr int64_t BLOCK_VECTORS = FEW_VECTORS;  // query vectors that are packed, scored and weighed together
constexpr int64_t SCORE_STRIDE = PARTITION_KEYS + TILE_KEYS;  // a short tile's store may run past the partition

#if defined(LINNET_AVX512)
constexpr int MAX_VECTORS = 8;
constexpr int TILES[] = {0, 8, 8, 4, 4, 4, 4, 2, 2};   // key tiles at a time, by number of vectors
constexpr int CHUNKS[] = {0, 8, 8, 4, 4, 4, 4, 2, 2};  // value vectors at a time
#else
constexpr int MAX_VECTORS = 4;
constexpr int TILES[] = {0, 4, 2, 1, 1};
constexpr int CHUNKS[] = {0, 4, 2, 1, 1};
#endif

// Into the second-level cache, or (3) the first.
template <int locality>
LINNET_INLINE void prefetch(const char* p) {
    __builtin_prefetch(p, 0, locality);
}

// Where the row of values of a pair begins: one by one, or so many bytes apart.
struct ListedRows {
    const char* const* rows;
    const char* operator()(int64_t pair) const { return rows[pair]; }
};
struct EvenRows {
    const char* first;
    int64_t row_bytes;
    const char* operator()(int64_t pair) const { return first + pair * row_bytes; }
};

// queries: [pairs][BLOCK_VECTORS][2]. scores[v][t * step + lane] = sum over dimensions of query v * tile t's key
// `lane`. While a tile is scored, as many pair vectors are prefetched from `ahead`, `ahead_bytes` each.
template <typename Form, int vectors, int tiles, int locality = 2>
LINNET_INLINE void score_block(const typename Form::Element* queries, int64_t pairs, const char* const* tile,
                               const char* const* ahead, int64_t ahead_bytes, int64_t step, float* scores) {
    Floats sums[tiles][vectors];
#pragma GCC unroll 8
    for (int t = 0; t < tiles; ++t) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sums[t][v] = splat(0.0f);
    }
    for (int64_t pair = 0; pair < pairs; ++pair) {
        typename Form::Pair keys[tiles];
#pragma GCC unroll 8
        for (int t = 0; t < tiles; ++t) {
            keys[t] = Form::load_pair(tile[t] + pair * Form::BYTES);
            prefetch<locality>(ahead[t] + pair * ahead_bytes);
        }
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            const typename Form::Pair query = Form::spread(queries + (pair * BLOCK_VECTORS + v) * 2);
#pragma GCC unroll 8
            for (int t = 0; t < tiles; ++t) sums[t][v] = Form::dot(query, keys[t], sums[t][v]);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < tiles; ++t) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) store(scores + v * SCORE_STRIDE + t * step, sums[t][v]);
    }
}

// Tiles of a row of scores are stored left to right: with step < 16 a tile's spare lanes are overwritten by the next.
template <typename Form, int vectors>
void score_run(const typename Form::Element* queries, int64_t pairs, const char* const* tile, const char* const* ahead,
               int64_t ahead_bytes, int64_t count, int64_t step, float* scores) {
    constexpr int tiles = TILES[vectors];
    int64_t t = 0;
    for (; t + tiles <= count; t += tiles) {
        score_block<Form, vectors, tiles>(queries, pairs, tile + t, ahead + t, ahead_bytes, step, scores + t * step);
    }
    for (; t < count; ++t) {
        score_block<Form, vectors, 1>(queries, pairs, tile + t, ahead + t, ahead_bytes, step, scores + t * step);
    }
}

// out[v][0 .. chunks * 16) += sum over pairs [first, last) of weights[v][pair] * row of the pair, keys ascending. `at`:
// bytes from a row's start; ahead, ahead_bytes: as for scores, per row and chunk.
template <typename Form, int vectors, int chunks, int locality, typename Rows>
LINNET_INLINE void weigh_block(const Rows& rows, int64_t at, const typename Form::Element* weights, int64_t first,
                               int64_t last, const Rows& ahead, int64_t ahead_at, int64_t ahead_bytes, float* out,
                               int64_t ld) {
    Floats sums[vectors][chunks];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
#pragma GCC unroll 8
        for (int c = 0; c < chunks; ++c) sums[v][c] = load(out + v * ld + c * LANES);
    }
    for (int64_t pair = first; pair < last; ++pair) {
        typename Form::Pair values[chunks];
#pragma GCC unroll 8
        for (int c = 0; c < chunks; ++c) {
            values[c] = Form::load_pair(rows(pair) + at + c * Form::BYTES);
            prefetch<locality>(ahead(pair) + ahead_at + c * ahead_bytes);
        }
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            const typename Form::Pair weight = Form::spread(weights + v * SCORE_STRIDE + 2 * pair);
#pragma GCC unroll 8
            for (int c = 0; c < chunks; ++c) sums[v][c] = Form::dot(weight, values[c], sums[v][c]);
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
#pragma GCC unroll 8
        for (int c = 0; c < chunks; ++c) store(out + v * ld + c * LANES, sums[v][c]);
    }
}

template <typename Form, int vectors, int locality, typename Rows>
void weigh_run(const Rows& rows, int64_t chunks, const typename Form::Element* weights, int64_t first, int64_t last,
               const Rows& ahead, int64_t ahead_bytes, float* out, int64_t ld) {
    constexpr int most = CHUNKS[vectors];
    int64_t c = 0;
#define LINNET_WEIGH(n)                                                                                           \
    for (; most >= n && c + n <= chunks; c += n)                                                                  \
    weigh_block<Form, vectors, (n <= most ? n : 1), locality>(rows, c * Form::BYTES, weights, first, last, ahead, \
                                                              c * ahead_bytes, ahead_bytes, out + c * LANES, ld)
    LINNET_WEIGH(8);
    LINNET_WEIGH(4);
    LINNET_WEIGH(2);
    LINNET_WEIGH(1);
#undef LINNET_WEIGH
}

// Calls body(VectorCount<n>{}, first vector) until all of `vectors` are done.
template <int n>
struct VectorCount {
    static constexpr int VALUE = n;
};
template <typename Body>
LINNET_INLINE void over_vectors(int64_t vectors, const Body& body) {
    for (int64_t v = 0; v < vectors; v += MAX_VECTORS) {
        switch (smaller(MAX_VECTORS, vectors - v)) {
            case 1:
                body(VectorCount<1>{}, v);
                break;
            case 2:
                body(VectorCount<2>{}, v);
                break;
            case 3:
                body(VectorCount<3>{}, v);
                break;
            case 4:
                body(VectorCount<4>{}, v);
                break;
#if defined(LINNET_AVX512)
            case 5:
                body(VectorCount<5>{}, v);
                break;
            case 6:
                body(VectorCount<6>{}, v);
                break;
            case 7:
                body(VectorCount<7>{}, v);
                break;
            case 8:
                body(VectorCount<8>{}, v);
                break;
#endif
        }
    }
}

template <typename Form>
void score_tiles(const typename Form::Element* queries, int64_t vectors, int64_t pairs, const char* const* tile,
                 const char* const* ahead, int64_t ahead_bytes, int64_t count, int64_t step, float* scores) {
    over_vectors(vectors, [&](auto n, int64_t v) {
        score_run<Form, decltype(n)::VALUE>(queries + v * 2, pairs, tile, ahead, ahead_bytes, count, step,
                                            scores + v * SCORE_STRIDE);
    });
}

template <typename Form>
void weigh_values(const char* const* rows, int64_t chunks, const typename Form::Element* weights, int64_t vectors,
                  int64_t first, int64_t last, const char* const* ahead, int64_t ahead_bytes, float* out, int64_t ld) {
    over_vectors(vectors, [&](auto n, int64_t v) {
        weigh_run<Form, decltype(n)::VALUE, 2>(ListedRows{rows}, chunks, weights + v * SCORE_STRIDE, first, last,
                                               ListedRows{ahead}, ahead_bytes, out + v * ld, ld);
    });
}

// One key alone: the `second` of its pair or the first; the other is not multiplied.
template <typename Form>
void weigh_single(const char* row, int64_t chunks, const typename Form::Element* two_weights, bool second, float* out) {
    const typename Form::Pair weight = Form::keep(Form::spread(two_weights), !second, second);
    for (int64_t c = 0; c < chunks; ++c) {
        const typename Form::Pair value = Form::keep(Form::load_pair(row + c * Form::BYTES), !second, second);
        store(out + c * LANES, Form::dot(weight, value, load(out + c * LANES)));
    }
}

}  // namespace

}  // namespace linnet::LINNET_TIER
