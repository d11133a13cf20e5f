// SPDX-License-Identifier: Apache-2.0
// Few rows times a bf16 weight in fp32 arithmetic: thirty-two columns of sixteen outputs are transposed in registers
// and multiplied from there. The sums and their order are those of fp32.cpp, whose panel pays for more rows only.
#pragma once

#include "kernels.h"

namespace linnet::LINNET_TIER {

#if defined(LINNET_AVX512)

static constexpr int64_t FEW_ROWS = 4;
static constexpr int64_t FEW_STEP = 32;  // columns: a line of the cache, two to a word

static bool reads_few_rows(const LinearWeight& weight, int64_t rows) {
    return rows <= FEW_ROWS && weight.storage == Storage::bf16 && weight.scales == nullptr && !weight.two_of_four;
}

// Of the rows as fp32.
static int64_t scratch_bytes_few(const LinearWeight& weight) {
    return reads_few_rows(weight, 1) ? FEW_ROWS * round_up(weight.columns, 16) * 4 : 0;
}

template <int M>
LINNET_INLINE void add_column(Floats (&sums)[M], Floats column, const float* x, int64_t ldx) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sums[m] = fma(column, splat(x[m * ldx]), sums[m]);
}

// sums += x . w of FEW_STEP columns; words: of one column pair, sixteen outputs.
template <int M>
LINNET_INLINE void add_columns(Floats (&sums)[M], const Ints (&words)[16], const float* x, int64_t ldx) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
        add_column(sums, as_floats(shift_left<16>(words[i])), x + 2 * i, ldx);
        add_column(sums, as_floats(words[i] & splat_int(int32_t(0xffff0000))), x + 2 * i + 1, ldx);
    }
}

// The same of fewer columns, which are the row's last.
template <int M>
LINNET_INLINE void add_last_columns(Floats (&sums)[M], const Ints (&words)[16], int64_t columns, const float* x,
                                    int64_t ldx) {
    alignas(64) uint32_t lanes[FEW_STEP / 2][16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) store_ints((int32_t*)lanes[i], words[i]);
    for (int64_t c = 0; c < columns; ++c) {
        const Ints word = load_ints((const int32_t*)lanes[c / 2]);
        add_column(sums, as_floats(c % 2 == 0 ? shift_left<16>(word) : word & splat_int(int32_t(0xffff0000))), x + c,
                   ldx);
    }
}

// M rows of x and 16 T outputs from n on, of which `outputs` are there.
template <int M, int T>
static void multiply_few(const LinearWeight& weight, const float* x, int64_t ldx, int64_t block_columns, int64_t n,
                         int64_t outputs, float* y, int64_t ldy) {
    const int64_t columns = weight.columns, stride = weight.code_row_bytes;
    const uint8_t* rows = (const uint8_t*)weight.codes + n * stride;
    Floats totals[T][M];
    for (int64_t block = 0; block < columns; block += block_columns) {
        const int64_t end = smaller(block + block_columns, columns);
        Floats sums[T][M];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) sums[t][m] = splat(0.0f);
        for (int64_t c = block; c < end; c += FEW_STEP) {
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t) {
                const uint8_t* own = rows + 16 * t * stride + 2 * c;
                const int64_t there = smaller(16, outputs - 16 * t), bytes = 2 * smaller(FEW_STEP, end - c);
                int64_t own_stride = stride;
                alignas(64) uint8_t edge[16][2 * FEW_STEP];
                if (there < 16 || bytes < 2 * FEW_STEP) {
                    std::memset(edge, 0, sizeof edge);
                    for (int64_t i = 0; i < there; ++i) std::memcpy(edge[i], own + i * stride, size_t(bytes));
                    own = edge[0];
                    own_stride = 2 * FEW_STEP;
                }
                Ints words[16];
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) words[i] = load_ints((const int32_t*)(own + i * own_stride));
                // Sixteen short streams are more than the hardware's prefetchers follow; the next outputs' come in
                // turn.
#pragma GCC unroll 16
                for (int64_t i = 0; i < 16; ++i) __builtin_prefetch(own + (16 * TILE_COUNT + i) * stride, 0, 2);
                transpose(words);
                if (end - c >= FEW_STEP)
                    add_columns(sums[t], words, x + c, ldx);
                else
                    add_last_columns(sums[t], words, end - c, x + c, ldx);
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) totals[t][m] = block == 0 ? sums[t][m] : totals[t][m] + sums[t][m];
    }
    for (int t = 0; t < T; ++t) {
        const int64_t count = outputs - 16 * t;
        for (int m = 0; m < M; ++m) {
            Floats total = totals[t][m];
            if (weight.bias != nullptr) total = total + load_first(weight.bias + n + 16 * t, count);
            store_first(y + m * ldy + n + 16 * t, count, total);
        }
    }
}

template <int M>
static void linear_few(const LinearWeight& weight, const float* x, int64_t ldx, int64_t block_columns, float* y,
                       int64_t ldy, int64_t n_begin, int64_t n_end) {
    int64_t n = n_begin;
    for (; n + 16 < n_end; n += 32)
        multiply_few<M, 2>(weight, x, ldx, block_columns, n, smaller(32, n_end - n), y, ldy);
    if (n < n_end) multiply_few<M, 1>(weight, x, ldx, block_columns, n, n_end - n, y, ldy);
}

static void linear_few_rows(const LinearWeight& weight, const float* x, int64_t ldx, int64_t block_columns, float* y,
                            int64_t ldy, int64_t rows, int64_t n_begin, int64_t n_end) {
    switch (rows) {
        case 1:
            return linear_few<1>(weight, x, ldx, block_columns, y, ldy, n_begin, n_end);
        case 2:
            return linear_few<2>(weight, x, ldx, block_columns, y, ldy, n_begin, n_end);
        case 3:
            return linear_few<3>(weight, x, ldx, block_columns, y, ldy, n_begin, n_end);
        case 4:
            return linear_few<4>(weight, x, ldx, block_columns, y, ldy, n_begin, n_end);
    }
}

#else

static bool reads_few_rows(const LinearWeight&, int64_t) { return false; }
static int64_t scratch_bytes_few(const LinearWeight&) { return 0; }
static void linear_few_rows(const LinearWeight&, const float*, int64_t, int64_t, float*, int64_t, int64_t, int64_t,
                            int64_t) {}

#endif

}  // namespace linnet::LINNET_TIER
