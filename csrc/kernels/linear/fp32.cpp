// SPDX-License-Identifier: Apache-2.0
// fp32 arithmetic over any storage: sixteen outputs times a block of columns are decoded to fp32 in cache and used for
// all rows. Order of every sum: within a block of BLOCK_COLUMNS columns one chain of fused multiply-adds from zero;
// blocks are added left to right; the bias comes last.
#include "fp32_few.h"

namespace linnet::LINNET_TIER {

static constexpr int64_t BLOCK_COLUMNS = 128;
static constexpr int64_t PANEL_FLOATS = BLOCK_COLUMNS * 16;
#if defined(LINNET_AVX2)
static constexpr int ROWS = 6;
#else
static constexpr int ROWS = TILE_ROWS;
#endif

int64_t scratch_bytes_fp32(const LinearWeight& weight) {
    const int64_t few = larger(scratch_bytes_sparse_numbers(weight), scratch_bytes_few(weight));
    return larger((TILE_COUNT * PANEL_FLOATS + ROWS * BLOCK_COLUMNS) * 4, few);
}

// One block of columns for M rows and T tiles: y (+)= x . panel.
template <int M, int T>
static void multiply(const float* panel, const float* x, int64_t ldx, int64_t columns, float* y, int64_t ldy,
                     int64_t outputs, bool first, const float* bias) {
    Floats sums[M][T];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) sums[m][t] = splat(0.0f);
    for (int64_t c = 0; c < columns; ++c) {
        Floats w[T];
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) w[t] = load(panel + t * PANEL_FLOATS + c * 16);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            const Floats factor = splat(x[m * ldx + c]);
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) sums[m][t] = fma(w[t], factor, sums[m][t]);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) {
            const int64_t count = outputs - 16 * t;
            if (count <= 0) continue;
            float* target = y + m * ldy + 16 * t;
            Floats sum = sums[m][t];
            if (!first) sum = load_first(target, count) + sum;
            if (bias != nullptr) sum = sum + load_first(bias + 16 * t, count);
            store_first(target, count, sum);
        }
    }
}

template <int T>
static void multiply_rows(int64_t rows, const float* panel, const float* x, int64_t ldx, int64_t columns, float* y,
                          int64_t ldy, int64_t outputs, bool first, const float* bias) {
    switch (rows) {
        case 1:
            return multiply<1, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias);
        case 2:
            return multiply<2, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias);
#if !defined(LINNET_PORTABLE)
        case 3:
            return multiply<3, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias);
        case 4:
            return multiply<4, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias);
        case 5:
            return multiply<5, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias);
        case 6:
            return multiply<6, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias);
#endif
#if defined(LINNET_AVX512)
        case 7:
            return multiply<7, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias);
        case 8:
            return multiply<8, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias);
#endif
    }
}

template <typename Input>
static void linear(const LinearWeight& weight, const Input* x, int64_t ldx, float* y, int64_t ldy, int64_t rows,
                   int64_t n_begin, int64_t n_end, void* scratch) {
    const bool sparse = reads_sparse_numbers(weight, rows);
    if (sparse || reads_few_rows(weight, rows)) {
        const float* wide;
        int64_t stride;
        if constexpr (sizeof(Input) == 2) {
            stride = round_up(weight.columns, 16);
            for (int64_t row = 0; row < rows; ++row)
                widen_bf16(x + row * ldx, (float*)scratch + row * stride, weight.columns);
            wide = (const float*)scratch;
        } else {
            wide = x;
            stride = ldx;
        }
        if (sparse) return linear_sparse_numbers(weight, wide, stride, y, ldy, rows, n_begin, n_end);
        return linear_few_rows(weight, wide, stride, BLOCK_COLUMNS, y, ldy, rows, n_begin, n_end);
    }
    float* panel = (float*)scratch;
    float* widened = panel + TILE_COUNT * PANEL_FLOATS;
    for (int64_t n = n_begin; n < n_end; n += 16 * TILE_COUNT) {
        const int64_t outputs = smaller(n_end - n, 16 * TILE_COUNT);
        const int64_t tiles = divide_up(outputs, 16);
        for (int64_t column = 0; column < weight.columns; column += BLOCK_COLUMNS) {
            const int64_t columns = smaller(BLOCK_COLUMNS, weight.columns - column);
            const bool last = column + BLOCK_COLUMNS >= weight.columns;
            const float* bias = last && weight.bias != nullptr ? weight.bias + n : nullptr;
            for (int64_t t = 0; t < tiles; ++t)
                decode_panel(weight, n + 16 * t, smaller(16, outputs - 16 * t), column, round_up(columns, 16),
                             panel + t * PANEL_FLOATS);
            if (sizeof(Input) == 2 && weight.storage == Storage::codebook)  // as narrow.cpp, in every tier
                for (int64_t t = 0; t < tiles; ++t) round_to_bf16(panel + t * PANEL_FLOATS, round_up(columns, 16) * 16);
            for (int64_t row = 0; row < rows; row += ROWS) {
                const int64_t count = smaller(ROWS, rows - row);
                const float* block;
                int64_t stride;
                if constexpr (sizeof(Input) == 2) {
                    for (int64_t m = 0; m < count; ++m)
                        widen_bf16(x + (row + m) * ldx + column, widened + m * BLOCK_COLUMNS, columns);
                    block = widened;
                    stride = BLOCK_COLUMNS;
                } else {
                    block = x + row * ldx + column;
                    stride = ldx;
                }
                float* target = y + row * ldy + n;
                if (TILE_COUNT == 1 || tiles == 1)
                    multiply_rows<1>(count, panel, block, stride, columns, target, ldy, outputs, column == 0, bias);
                else
                    multiply_rows<TILE_COUNT>(count, panel, block, stride, columns, target, ldy, outputs, column == 0,
                                              bias);
            }
        }
    }
}

void linear_fp32(const LinearWeight& weight, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t rows,
                 int64_t n_begin, int64_t n_end, void* scratch) {
    linear(weight, x, ldx, y, ldy, rows, n_begin, n_end, scratch);
}
void linear_fp32_of_bf16(const LinearWeight& weight, const uint16_t* x, int64_t ldx, float* y, int64_t ldy,
                         int64_t rows, int64_t n_begin, int64_t n_end, void* scratch) {
    linear(weight, x, ldx, y, ldy, rows, n_begin, n_end, scratch);
}

}  // namespace linnet::LINNET_TIER
