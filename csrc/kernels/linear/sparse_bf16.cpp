// SPDX-License-Identifier: Apache-2.0
// A few rows times 2:4 numbers, in the order of sums of fp32.cpp: of a block of 128 columns one chain from zero, from
// which only products that are zero are left out; blocks from the left; bias last.
#include "sparse.h"

namespace linnet::LINNET_TIER {

static constexpr int64_t BLOCK_COLUMNS = 128;
#if defined(LINNET_AVX512)
static constexpr int64_t MOST_ROWS = 4;  // that meet numbers together: what registers hold
#else
static constexpr int64_t MOST_ROWS = 2;
#endif
static constexpr int64_t FEW_ROWS = 16;  // from more on, zeros are put back once for all of them
static constexpr int64_t AHEAD_BYTES = 4096;

#if defined(LINNET_AVX512)
LINNET_INLINE Floats splat_four(const float* p) { return {_mm512_broadcast_f32x4(_mm_loadu_ps(p))}; }
LINNET_INLINE Floats pick(Floats fours, Ints index) { return {_mm512_permutevar_ps(fours.v, index.v)}; }
#elif defined(LINNET_AVX2)
LINNET_INLINE Floats splat_four(const float* p) {
    const __m256 both = _mm256_broadcast_ps((const __m128*)p);
    return {both, both};
}
LINNET_INLINE Floats pick(Floats fours, Ints index) {
    return {_mm256_permutevar_ps(fours.a, index.a), _mm256_permutevar_ps(fours.b, index.b)};
}
#else
LINNET_INLINE Floats splat_four(const float* p) {
    alignas(64) float lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = p[i % 4];
    return load(lanes);
}
// Only the lowest two bits of an index count.
LINNET_INLINE Floats pick(Floats fours, Ints index) {
    alignas(64) float from[16], lanes[16];
    alignas(64) int32_t own[16];
    store(from, fours);
    store_ints(own, index);
    for (int i = 0; i < 16; ++i) lanes[i] = from[own[i] & 3];
    return load(lanes);
}
#endif

bool reads_sparse_numbers(const LinearWeight& weight, int64_t rows) {
    return weight.two_of_four && weight.storage == Storage::bf16 && rows <= FEW_ROWS;
}

int64_t scratch_bytes_sparse_numbers(const LinearWeight& weight) {
    return weight.two_of_four ? FEW_ROWS * round_up(weight.columns, 16) * 4 : 0;
}

template <int M>
static void multiply(const LinearWeight& weight, const uint8_t* tile, const float* x, int64_t ldx, float* y,
                     int64_t ldy, int64_t outputs, const float* bias) {
    Floats totals[M];
    for (int64_t column = 0; column < weight.columns; column += BLOCK_COLUMNS) {
        Floats sums[M];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) sums[m] = splat(0.0f);
        const int64_t end = smaller(column + BLOCK_COLUMNS, weight.columns);
        for (int64_t first = column; first < end; first += RUN_COLUMNS, tile += BF16_RUN_BYTES) {
#pragma GCC unroll 9
            for (int64_t line = 0; line < BF16_RUN_BYTES; line += 64)
                __builtin_prefetch(tile + AHEAD_BYTES + line, 0, 3);
            Ints places = load_ints((const int32_t*)tile);
            const auto four = [&](int64_t i) __attribute__((always_inline)) {
                const Ints pair = load_ints((const int32_t*)(tile + 64 + i * 64));
                const Floats kept[2] = {as_floats(shift_left<16>(pair)),
                                        as_floats(pair & splat_int(int32_t(0xffff0000)))};
                Floats own[M];
#pragma GCC unroll 4
                for (int m = 0; m < M; ++m) own[m] = splat_four(x + m * ldx + first + i * 4);
#pragma GCC unroll 2
                for (int k = 0; k < 2; ++k) {
#pragma GCC unroll 4
                    for (int m = 0; m < M; ++m) sums[m] = fma(kept[k], pick(own[m], places), sums[m]);
                    places = shift_right_unsigned<2>(places);
                }
            };
            const int64_t fours = smaller(RUN_COLUMNS, end - first) / 4;
            if (fours == 8) {
#pragma GCC unroll 8
                for (int64_t i = 0; i < 8; ++i) four(i);
            } else {
                for (int64_t i = 0; i < fours; ++i) four(i);
            }
        }
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) totals[m] = column == 0 ? sums[m] : totals[m] + sums[m];
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
        if (bias != nullptr) totals[m] = totals[m] + load_first(bias, outputs);
        store_first(y + m * ldy, outputs, totals[m]);
    }
}

void linear_sparse_numbers(const LinearWeight& weight, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t rows,
                           int64_t n_begin, int64_t n_end) {
    const Tiles tiles = tiles_of(weight);
    const int64_t row_tiles = divide_up(rows, MOST_ROWS), tile_rows = divide_up(rows, row_tiles);
    for (int64_t n = n_begin; n < n_end; n += 16) {
        const uint8_t* tile = sparse_tile(weight, tiles, n);
        const float* bias = weight.bias != nullptr ? weight.bias + n : nullptr;
        for (int64_t row = 0; row < rows; row += tile_rows) {
            const int64_t count = smaller(tile_rows, rows - row);
            auto own = count == 1 ? multiply<1> : multiply<2>;
            if constexpr (MOST_ROWS > 2) own = count == 3 ? multiply<3> : count == 4 ? multiply<4> : own;
            own(weight, tile, x + row * ldx, ldx, y + row * ldy + n, ldy, smaller(16, n_end - n), bias);
        }
    }
}

}  // namespace linnet::LINNET_TIER
