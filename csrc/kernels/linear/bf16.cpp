// SPDX-License-Identifier: Apache-2.0
// bf16 weights times bf16 rows with vdpbf16ps: per lane, sum + x[2i+1] w[2i+1] + x[2i] w[2i] in fp32 as the instruction
// defines it (denormals are zero). Only the top tier has the instruction; the others decode to fp32.
//
// Order of every sum: columns are cut into blocks of BLOCK_COLUMNS and a block's pairs of columns are dealt out to
// eight chains (pair p to chain p mod 8), each summed from zero, left to right; the chains' sums are added one after
// the other, blocks left to right; the bias comes last. So few rows can be multiplied along the columns, straight from
// the stored weight with eight chains side by side in a register (bf16_few.h), and many rows against a panel, outputs
// side by side and one chain after the other: same order, same bits.
#include "bf16_few.h"

namespace linnet::LINNET_TIER {

#if defined(LINNET_BF16)

// Up to here it is cheaper to multiply along the columns than to expand panels.
static constexpr int64_t FEW_ROWS = 12;
static constexpr int PANEL_TILES = BF16_PANEL / 16;  // tiles of sixteen outputs that meet PANEL_ROWS rows in registers
static constexpr int PANEL_ROWS = 6;

int64_t scratch_bytes_bf16(const LinearWeight& weight, int64_t rows) {
    const int64_t panel = PANEL_TILES * BLOCK_COLUMNS * 32;
    const int64_t few = few_bytes(weight, smaller(rows, FEW_ROWS));
    return rows > FEW_ROWS ? larger(panel, few) : few;
}

// panel[chain][step][tile][output][2]: the pairs of outputs n .. n + 15, zeros past the last column and output.
static void expand(const LinearWeight& weight, int64_t n, int64_t outputs, int64_t column, int64_t columns,
                   int64_t tile, int64_t tiles, uint8_t* panel) {
    const uint8_t* base = (const uint8_t*)weight.codes + n * weight.code_row_bytes + column * 2;
    const int64_t steps = divide_up(columns, STEP_COLUMNS);
    for (int64_t c = 0; c < columns; c += 32) {
        Ints words[16];
        load_rows(words, base + c * 2, weight.code_row_bytes, outputs, (weight.columns - column - c) * 2);
        transpose(words);
        uint8_t* target = panel + (c / STEP_COLUMNS * tiles + tile) * 64;
#pragma GCC unroll 8
        for (int64_t i = 0; i < CHAINS; ++i) store_ints((int32_t*)(target + i * steps * tiles * 64), words[i]);
        if (c + STEP_COLUMNS >= columns) break;
#pragma GCC unroll 8
        for (int64_t i = 0; i < CHAINS; ++i)
            store_ints((int32_t*)(target + (i * steps + 1) * tiles * 64), words[CHAINS + i]);
    }
}

// What a block's multiplications ask for while they compute, into the second-level cache: rows of the weight that are
// expanded next, `each` per chain, and the rows of x that are multiplied next, one per chain.
struct Ahead {
    const uint8_t* rows;
    int64_t stride, count, each;
    const uint16_t* x;
};

// M rows and T tiles of a block; `tail`: the rows' last, partial step, [M][STEP_COLUMNS] with zeros, or null.
template <int M, int T>
static void multiply(const uint8_t* panel, const uint16_t* x, int64_t ldx, int64_t steps, const uint16_t* tail,
                     float* y, int64_t ldy, int64_t outputs, bool first, const float* bias, const Ahead& ahead) {
    alignas(64) float totals[M][T][16];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t)
            store(totals[m][t], first ? splat(0.0f) : load_first(y + m * ldy + 16 * t, outputs - 16 * t));
    for (int chain = 0; chain < CHAINS; ++chain) {
        Floats sums[M][T];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) sums[m][t] = splat(0.0f);
        const auto step = [&](const uint16_t* pairs, int64_t stride) __attribute__((always_inline)) {
            Ints w[T];
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) w[t] = load_ints((const int32_t*)(panel + t * 64));
            panel += T * 64;
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                int32_t word;
                std::memcpy(&word, pairs + m * stride, 4);
                const Ints pair = splat_int(word);
#pragma GCC unroll 4
                for (int t = 0; t < T; ++t) sums[m][t] = dot_pairs(sums[m][t], w[t], pair);
            }
        };
        const uint16_t* pairs = x + 2 * chain;
        const uint16_t* next = ahead.x + smaller(chain, M - 1) * ldx;
        const int64_t asked = smaller(chain * ahead.each, ahead.count);
        const uint8_t* later = ahead.rows + asked * ahead.stride;
        const int64_t each = smaller(ahead.each, ahead.count - asked);
        const auto two_steps = [&] __attribute__((always_inline)) {  // read a line of each row
            __builtin_prefetch(next, 0, 2);
            for (int64_t row = 0; row < each; ++row) __builtin_prefetch(later + row * ahead.stride, 0, 2);
            later += 64;
            next += 32;
            step(pairs, ldx);
            step(pairs + STEP_COLUMNS, ldx);
            pairs += 2 * STEP_COLUMNS;
        };
        for (int64_t i = 0; i + 2 <= steps; i += 2) two_steps();
        if (steps % 2 != 0) step(pairs, ldx);
        if (tail != nullptr) step(tail + 2 * chain, STEP_COLUMNS);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) store(totals[m][t], load(totals[m][t]) + sums[m][t]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
            const int64_t count = outputs - 16 * t;
            if (count <= 0) continue;
            Floats total = load(totals[m][t]);
            if (bias != nullptr) total = total + load_first(bias + 16 * t, count);
            store_first(y + m * ldy + 16 * t, count, total);
        }
    }
}

template <int T>
static void multiply_rows(int64_t rows, const uint8_t* panel, const uint16_t* x, int64_t ldx, int64_t columns, float* y,
                          int64_t ldy, int64_t outputs, bool first, const float* bias, const Ahead& ahead) {
    const int64_t steps = columns / STEP_COLUMNS, rest = columns % STEP_COLUMNS;
    alignas(64) uint16_t tail[PANEL_ROWS * STEP_COLUMNS] = {};
    if (rest != 0)
        for (int64_t m = 0; m < rows; ++m)
            std::memcpy(tail + m * STEP_COLUMNS, x + m * ldx + steps * STEP_COLUMNS, size_t(rest) * 2);
    const uint16_t* last = rest != 0 ? tail : nullptr;
    // Rows come in tiles of nearly equal size, so the smallest ones do not arise.
    switch (rows) {
        case 6:
            return multiply<6, T>(panel, x, ldx, steps, last, y, ldy, outputs, first, bias, ahead);
        case 4:
            return multiply<4, T>(panel, x, ldx, steps, last, y, ldy, outputs, first, bias, ahead);
        case 5:
            return multiply<5, T>(panel, x, ldx, steps, last, y, ldy, outputs, first, bias, ahead);
    }
}

static void multiply_many(const LinearWeight& weight, const uint16_t* x, int64_t ldx, float* y, int64_t ldy,
                          int64_t rows, int64_t n_begin, int64_t n_end, uint8_t* panel) {
    const int64_t row_tiles = divide_up(rows, PANEL_ROWS);
    for (int64_t n = n_begin; n < n_end; n += 16 * PANEL_TILES) {
        const int64_t outputs = smaller(n_end - n, 16 * PANEL_TILES);
        const int64_t tiles = divide_up(outputs, 16);
        for (int64_t column = 0; column < weight.columns; column += BLOCK_COLUMNS) {
            const int64_t columns = smaller(BLOCK_COLUMNS, weight.columns - column);
            const bool ends = column + columns == weight.columns;
            const float* bias = ends && weight.bias != nullptr ? weight.bias + n : nullptr;
            for (int64_t t = 0; t < tiles; ++t)
                expand(weight, n + 16 * t, smaller(16, outputs - 16 * t), column, columns, t, tiles, panel);
            // While rows are multiplied, what is expanded next comes into the second-level cache.
            const int64_t next = ends ? n + 16 * PANEL_TILES : n, next_column = ends ? 0 : column + columns;
            const int64_t next_rows = smaller(16 * PANEL_TILES, larger(0, weight.rows - next));
            const int64_t each = divide_up(next_rows, CHAINS * row_tiles);
            const uint8_t* later = (const uint8_t*)weight.codes + next * weight.code_row_bytes + next_column * 2;
            for (int64_t tile = 0; tile < row_tiles; ++tile) {
                const int64_t row = rows * tile / row_tiles, count = rows * (tile + 1) / row_tiles - row;
                const int64_t asked = smaller(tile * CHAINS * each, next_rows);
                const uint16_t* x_next = tile + 1 < row_tiles ? x + (row + count) * ldx + column : x + next_column;
                const Ahead ahead = {later + asked * weight.code_row_bytes, weight.code_row_bytes, next_rows - asked,
                                     each, x_next};
                const uint16_t* block = x + row * ldx + column;
                float* target = y + row * ldy + n;
                const bool first = column == 0;
                if (tiles == 4)
                    multiply_rows<4>(count, panel, block, ldx, columns, target, ldy, outputs, first, bias, ahead);
                else if (tiles == 3)
                    multiply_rows<3>(count, panel, block, ldx, columns, target, ldy, outputs, first, bias, ahead);
                else if (tiles == 2)
                    multiply_rows<2>(count, panel, block, ldx, columns, target, ldy, outputs, first, bias, ahead);
                else
                    multiply_rows<1>(count, panel, block, ldx, columns, target, ldy, outputs, first, bias, ahead);
            }
        }
    }
}

void linear_bf16(const LinearWeight& weight, const uint16_t* x, int64_t ldx, float* y, int64_t ldy, int64_t rows,
                 int64_t n_begin, int64_t n_end, void* scratch) {
    if (rows > FEW_ROWS)
        multiply_many(weight, x, ldx, y, ldy, rows, n_begin, n_end, (uint8_t*)scratch);
    else
        multiply_few(weight, x, ldx, y, ldy, rows, n_begin, n_end, (float*)scratch);
}

#else

int64_t scratch_bytes_bf16(const LinearWeight&, int64_t) { return 0; }
void linear_bf16(const LinearWeight&, const uint16_t*, int64_t, float*, int64_t, int64_t, int64_t, int64_t, void*) {}

#endif

}  // namespace linnet::LINNET_TIER
