// SPDX-License-Identifier: Apache-2.0
// Few bf16 rows times a bf16 weight, along the columns: a register holds the same sixteen columns of two outputs, that
// is, eight chains of each (see bf16.cpp), so the weight is read as it lies and nothing is transposed but sums.
#pragma once

#include "kernels.h"

#if defined(LINNET_BF16)

namespace linnet::LINNET_TIER {

static constexpr int64_t BLOCK_COLUMNS = 2048;
static constexpr int CHAINS = 8;
static constexpr int64_t STEP_COLUMNS = 2 * CHAINS;
static constexpr int64_t FEW_OUTPUTS = 32;  // whose sums are finished together
static constexpr int FEW_TILE_ROWS = 4;

LINNET_INLINE Floats dot_pairs(Floats sum, Ints w, Ints x) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)x.v, (__m512bh)w.v)};
}

// Sums of chains: [block][row][output][chain].
static int64_t few_bytes(const LinearWeight& weight, int64_t rows) {
    return divide_up(weight.columns, BLOCK_COLUMNS) * rows * FEW_OUTPUTS * CHAINS * 4;
}

// M rows of x and P pairs of outputs, output 2 p + h at w[2 p + h]; sums[m * row_floats + p * 16 + h * 8 + chain].
// `ahead`: what to prefetch, 64 P bytes per step; null: nothing. P = 1 reads memory nearly in order, which is fastest
// when reading is all there is to do, and prefetches into the first cache; else the second.
template <int M, int P>
LINNET_INLINE void dot_columns(const uint8_t* const* w, const uint16_t* x, int64_t ldx, int64_t columns,
                               const uint8_t* ahead, float* sums, int64_t row_floats) {
    Floats parts[M][P];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) parts[m][p] = splat(0.0f);
    int64_t c = 0;
    for (; c + STEP_COLUMNS <= columns; c += STEP_COLUMNS) {
        Ints pairs[P];
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            const __m256i low = _mm256_loadu_si256((const __m256i*)(w[2 * p] + c * 2));
            const __m256i high = _mm256_loadu_si256((const __m256i*)(w[2 * p + 1] + c * 2));
            pairs[p] = {_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
            if (ahead != nullptr) __builtin_prefetch(ahead + p * 64, 0, P == 1 ? 3 : 2);
        }
        if (ahead != nullptr) ahead += P * 64;
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const __m256i own = _mm256_loadu_si256((const __m256i*)(x + m * ldx + c));
            const Ints both = {_mm512_broadcast_i64x4(own)};
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) parts[m][p] = dot_pairs(parts[m][p], pairs[p], both);
        }
    }
    if (c < columns) {
        const __mmask16 mask = __mmask16((1u << (columns - c)) - 1);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            const __m256i low = _mm256_maskz_loadu_epi16(mask, w[2 * p] + c * 2);
            const __m256i high = _mm256_maskz_loadu_epi16(mask, w[2 * p + 1] + c * 2);
            const Ints pair = {_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m)
                parts[m][p] = dot_pairs(parts[m][p], pair,
                                        {_mm512_broadcast_i64x4(_mm256_maskz_loadu_epi16(mask, x + m * ldx + c))});
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) store(sums + m * row_floats + p * 16, parts[m][p]);
}

// Adds the chains of 32 outputs (two per vector of `sums`) to y, or to zero.
LINNET_INLINE void add_chains(const float* sums, float* y, int64_t outputs, bool first, const float* bias) {
    Ints chains[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) chains[i] = as_ints(load(sums + i * 16));
    transpose(chains);
    const __m512i even_odd = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd_order = _mm512_add_epi32(even_odd, _mm512_set1_epi32(1));
    Floats totals[2] = {splat(0.0f), splat(0.0f)};
    if (!first) {
        const Floats low = load_first(y, outputs), high = load_first(y + 16, larger(0, outputs - 16));
        totals[0].v = _mm512_permutex2var_ps(low.v, even_odd, high.v);
        totals[1].v = _mm512_permutex2var_ps(low.v, odd_order, high.v);
    }
#pragma GCC unroll 8
    for (int i = 0; i < CHAINS; ++i) {
        totals[0] = totals[0] + as_floats(chains[i]);
        totals[1] = totals[1] + as_floats(chains[CHAINS + i]);
    }
    const __m512i low_order = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high_order = _mm512_add_epi32(low_order, _mm512_set1_epi32(8));
    Floats low = {_mm512_permutex2var_ps(totals[0].v, low_order, totals[1].v)};
    Floats high = {_mm512_permutex2var_ps(totals[0].v, high_order, totals[1].v)};
    if (bias != nullptr) {
        low = low + load_first(bias, outputs);
        high = high + load_first(bias + 16, larger(0, outputs - 16));
    }
    store_first(y, outputs, low);
    if (outputs > 16) store_first(y + 16, outputs - 16, high);
}

// P pairs of outputs times M rows, all blocks.
template <int M, int P>
static void few_tile(const LinearWeight& weight, const uint16_t* x, int64_t ldx, int64_t n, int64_t outputs,
                     const uint8_t* ahead, float* sums, int64_t block_floats) {
    for (int64_t column = 0; column < weight.columns; column += BLOCK_COLUMNS) {
        const uint8_t* w[2 * P];
        for (int i = 0; i < 2 * P; ++i)  // outputs that do not exist repeat the last one; nobody reads their sums
            w[i] = (const uint8_t*)weight.codes + (n + smaller(i, outputs - 1)) * weight.code_row_bytes + column * 2;
        const int64_t columns = smaller(BLOCK_COLUMNS, weight.columns - column);
        dot_columns<M, P>(w, x + column, ldx, columns, ahead, sums, FEW_OUTPUTS * CHAINS);
        if (ahead != nullptr) ahead += columns * 4 * P;
        sums += block_floats;
    }
}

template <int P>
static void few_outputs(const LinearWeight& weight, const uint16_t* x, int64_t ldx, int64_t rows, int64_t n,
                        int64_t outputs, float* sums) {
    const int64_t block_floats = rows * FEW_OUTPUTS * CHAINS, row_bytes = weight.code_row_bytes;
    const int64_t tiles = divide_up(rows, FEW_TILE_ROWS);
    const int64_t lead = P == 1 ? smaller(row_bytes, 24576) + 8192 : 2 * P * row_bytes;
    const uint8_t* ahead = (const uint8_t*)weight.codes + n * row_bytes + lead;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t row = rows * tile / tiles, count = rows * (tile + 1) / tiles - row;
        const uint16_t* own = x + row * ldx;
        float* target = sums + row * FEW_OUTPUTS * CHAINS;
        switch (count) {
            case 1:
                few_tile<1, P>(weight, own, ldx, n, outputs, ahead, target, block_floats);
                break;
            case 2:
                few_tile<2, P>(weight, own, ldx, n, outputs, ahead, target, block_floats);
                break;
            case 3:
                few_tile<3, P>(weight, own, ldx, n, outputs, ahead, target, block_floats);
                break;
            case 4:
                few_tile<4, P>(weight, own, ldx, n, outputs, ahead, target, block_floats);
                break;
        }
        ahead = nullptr;
    }
}

static void multiply_few(const LinearWeight& weight, const uint16_t* x, int64_t ldx, float* y, int64_t ldy,
                         int64_t rows, int64_t n_begin, int64_t n_end, float* sums) {
    const int64_t row_floats = FEW_OUTPUTS * CHAINS, blocks = divide_up(weight.columns, BLOCK_COLUMNS);
    for (int64_t n = n_begin; n < n_end; n += FEW_OUTPUTS) {
        const int64_t outputs = smaller(FEW_OUTPUTS, n_end - n);
        if (rows <= FEW_TILE_ROWS)
            for (int64_t i = 0; i < outputs; i += 2)
                few_outputs<1>(weight, x, ldx, rows, n + i, outputs - i, sums + i * CHAINS);
        else
            for (int64_t i = 0; i < outputs; i += 8)
                few_outputs<4>(weight, x, ldx, rows, n + i, outputs - i, sums + i * CHAINS);
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t block = 0; block < blocks; ++block)
                add_chains(sums + (block * rows + row) * row_floats, y + row * ldy + n, outputs, block == 0,
                           block == blocks - 1 && weight.bias != nullptr ? weight.bias + n : nullptr);
    }
}

}  // namespace linnet::LINNET_TIER

#endif
