// SPDX-License-Identifier: Apache-2.0
// bf16 weights times bf16 rows with vdpbf16ps: per lane, sum + x[2i+1] w[2i+1] + x[2i] w[2i] in fp32 as the instruction
// defines it (denormals are zero). Order of every sum: a chain over the 32 pairs of BLOCK_COLUMNS columns from zero;
// blocks are added left to right; the bias comes last. Only the top tier has the instruction; the others decode to
// fp32.
#include "kernels.h"

namespace linnet::LINNET_TIER {

#if defined(LINNET_VNNI)

static constexpr int64_t BLOCK_COLUMNS = 64;
static constexpr int64_t PANEL_BLOCKS = 4;  // blocks of a panel that meet all rows before the next panel is expanded
static constexpr int64_t TILE_BYTES = BLOCK_COLUMNS * PANEL_BLOCKS * 32;

int64_t scratch_bytes_bf16() { return TILE_COUNT * TILE_BYTES; }

// panel[pair][output][2] of outputs n .. n + 15; zeros past the last column and output.
static void expand(const LinearWeight& weight, int64_t n, int64_t outputs, int64_t column, int64_t columns,
                   uint8_t* panel) {
    const uint8_t* base = (const uint8_t*)weight.codes + n * weight.code_row_bytes + column * 2;
    for (int64_t c = 0; c < columns; c += 32) {
        Ints words[16];
        load_rows(words, base + c * 2, weight.code_row_bytes, outputs, (weight.columns - column - c) * 2);
        transpose(words);
        for (int64_t i = 0; i < 16; ++i) store_ints((int32_t*)(panel + (c / 2 + i) * 64), words[i]);
    }
}

LINNET_INLINE Floats dot_pairs(Floats sum, Ints w, Ints x) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)x.v, (__m512bh)w.v)};
}

// The last pair of an odd row has no second element: it is read as zero, never from the next row.
LINNET_INLINE Ints splat_pair(const uint16_t* x, bool whole) {
    uint32_t word = x[0];
    if (whole) std::memcpy(&word, x, 4);
    return splat_int(int32_t(word));
}

// `ahead`: what to prefetch, ahead_bytes for every pair of columns.
template <int M, int T>
static void multiply(const uint8_t* panel, const uint16_t* x, int64_t ldx, int64_t columns, float* y, int64_t ldy,
                     int64_t outputs, bool first, const float* bias, const uint8_t* ahead, int64_t ahead_bytes) {
    Floats totals[M][T];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t)
            totals[m][t] = first ? splat(0.0f) : load_first(y + m * ldy + 16 * t, outputs - 16 * t);
    for (int64_t column = 0; column < columns; column += BLOCK_COLUMNS) {
        Floats sums[M][T];
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) sums[m][t] = splat(0.0f);
        const int64_t end = smaller(columns, column + BLOCK_COLUMNS);
        const int64_t whole = end & ~int64_t(1);
        for (int64_t c = column; c < end; c += 2) {
            for (int64_t line = 0; line < ahead_bytes; line += 64) __builtin_prefetch(ahead + line, 0, 2);
            ahead += ahead_bytes;
            Ints w[T];
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) w[t] = load_ints((const int32_t*)(panel + t * TILE_BYTES + c * 32));
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                const Ints pair = splat_pair(x + m * ldx + c, c < whole);
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t) sums[m][t] = dot_pairs(sums[m][t], w[t], pair);
            }
        }
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) totals[m][t] = totals[m][t] + sums[m][t];
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) {
            const int64_t count = outputs - 16 * t;
            if (count <= 0) continue;
            Floats total = totals[m][t];
            if (bias != nullptr) total = total + load_first(bias + 16 * t, count);
            store_first(y + m * ldy + 16 * t, count, total);
        }
    }
}

template <int T>
static void multiply_rows(int64_t rows, const uint8_t* panel, const uint16_t* x, int64_t ldx, int64_t columns, float* y,
                          int64_t ldy, int64_t outputs, bool first, const float* bias, const uint8_t* ahead,
                          int64_t ahead_bytes) {
    switch (rows) {
        case 1:
            return multiply<1, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias, ahead, ahead_bytes);
        case 2:
            return multiply<2, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias, ahead, ahead_bytes);
        case 3:
            return multiply<3, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias, ahead, ahead_bytes);
        case 4:
            return multiply<4, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias, ahead, ahead_bytes);
        case 5:
            return multiply<5, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias, ahead, ahead_bytes);
        case 6:
            return multiply<6, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias, ahead, ahead_bytes);
        case 7:
            return multiply<7, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias, ahead, ahead_bytes);
        case 8:
            return multiply<8, T>(panel, x, ldx, columns, y, ldy, outputs, first, bias, ahead, ahead_bytes);
    }
}

// Few rows: the transposed words are used from registers, without a panel; sums as in multiply.
template <int M>
static void multiply_few(const LinearWeight& weight, const uint16_t* x, int64_t ldx, int64_t n, int64_t outputs,
                         float* y, int64_t ldy) {
    const uint8_t* base = (const uint8_t*)weight.codes + n * weight.code_row_bytes;
    const uint8_t* ahead = base + 16 * weight.code_row_bytes;  // the next tile, in address order
    const int64_t whole = weight.columns & ~int64_t(1);
    Floats totals[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) totals[m] = splat(0.0f);
    for (int64_t column = 0; column < weight.columns; column += BLOCK_COLUMNS) {
        Floats sums[M];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) sums[m] = splat(0.0f);
        const int64_t end = smaller(weight.columns, column + BLOCK_COLUMNS);
        for (int64_t c = column; c < end; c += 32) {
            Ints words[16];
            load_rows(words, base + c * 2, weight.code_row_bytes, outputs, (weight.columns - c) * 2);
            for (int64_t line = 0; line < 1024; line += 64) __builtin_prefetch(ahead + c * 32 + line, 0, 2);
            transpose(words);
            if (c + 32 <= whole) {
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i)
#pragma GCC unroll 4
                    for (int m = 0; m < M; ++m)
                        sums[m] = dot_pairs(sums[m], words[i], splat_pair(x + m * ldx + c + 2 * i, true));
            } else {
                for (int i = 0; c + 2 * i < end; ++i)
                    for (int m = 0; m < M; ++m)
                        sums[m] = dot_pairs(sums[m], words[i], splat_pair(x + m * ldx + c + 2 * i, c + 2 * i < whole));
            }
        }
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) totals[m] = totals[m] + sums[m];
    }
    for (int m = 0; m < M; ++m) {
        if (weight.bias != nullptr) totals[m] = totals[m] + load_first(weight.bias + n, outputs);
        store_first(y + m * ldy + n, outputs, totals[m]);
    }
}

void linear_bf16(const LinearWeight& weight, const uint16_t* x, int64_t ldx, float* y, int64_t ldy, int64_t rows,
                 int64_t n_begin, int64_t n_end, void* scratch) {
    for (int64_t n = n_begin; rows <= 4 && n < n_end; n += 16) {
        const int64_t outputs = smaller(16, n_end - n);
        switch (rows) {
            case 1:
                multiply_few<1>(weight, x, ldx, n, outputs, y, ldy);
                break;
            case 2:
                multiply_few<2>(weight, x, ldx, n, outputs, y, ldy);
                break;
            case 3:
                multiply_few<3>(weight, x, ldx, n, outputs, y, ldy);
                break;
            default:
                multiply_few<4>(weight, x, ldx, n, outputs, y, ldy);
                break;
        }
    }
    if (rows <= 4) return;
    uint8_t* panel = (uint8_t*)scratch;
    const int64_t step = BLOCK_COLUMNS * PANEL_BLOCKS;
    for (int64_t n = n_begin; n < n_end; n += 16 * TILE_COUNT) {
        const int64_t outputs = smaller(n_end - n, 16 * TILE_COUNT);
        const int64_t tiles = divide_up(outputs, 16);
        for (int64_t column = 0; column < weight.columns; column += step) {
            const int64_t columns = smaller(step, weight.columns - column);
            const float* bias = column + step >= weight.columns && weight.bias != nullptr ? weight.bias + n : nullptr;
            for (int64_t t = 0; t < tiles; ++t)
                expand(weight, n + 16 * t, smaller(16, outputs - 16 * t), column, columns, panel + t * TILE_BYTES);
            // While the first rows are multiplied, the next tile's rows are asked for, in address order.
            const uint8_t* ahead = nullptr;
            int64_t ahead_bytes = 0;
            if (n + 16 * TILE_COUNT < weight.rows) {
                const int64_t next_rows = smaller(16 * TILE_COUNT, weight.rows - n - 16 * TILE_COUNT);
                ahead = (const uint8_t*)weight.codes + (n + 16 * TILE_COUNT) * weight.code_row_bytes +
                        next_rows * 2 * column;
                ahead_bytes = round_up(next_rows * 4, 64);
            }
            for (int64_t row = 0; row < rows; row += TILE_ROWS) {
                const int64_t count = smaller(TILE_ROWS, rows - row);
                const uint16_t* block = x + row * ldx + column;
                float* target = y + row * ldy + n;
                if (tiles == 1)
                    multiply_rows<1>(count, panel, block, ldx, columns, target, ldy, outputs, column == 0, bias, ahead,
                                     ahead_bytes);
                else
                    multiply_rows<2>(count, panel, block, ldx, columns, target, ldy, outputs, column == 0, bias, ahead,
                                     ahead_bytes);
                ahead_bytes = 0;
            }
        }
    }
}

#else

int64_t scratch_bytes_bf16() { return 0; }
void linear_bf16(const LinearWeight&, const uint16_t*, int64_t, float*, int64_t, int64_t, int64_t, int64_t, void*) {}

#endif

}  // namespace linnet::LINNET_TIER
