// SPDX-License-Identifier: Apache-2.0
// Integer weights (packed 2, 3, 4, 8 bits or plain int8) times int8 rows, read in the canonical layout.
//
// y[r][n] = sum over groups, left to right, of fma(float(dot) * x_scale, weight_scale, y), then + bias; dot is the
// exact int32 sum of (code - zero) * x over the group, taken as unsigned_code . x - zero . sum(x). Since integer sums
// are free, that one order serves any blocking: a row's bits do not depend on how many rows there are.
//
// GEMM: 16 outputs x a block of columns of codes are transposed to a panel of unsigned bytes, [word][16 outputs][4
// codes] in the order of quantised rows, and the panel (in L1) meets all rows. y holds the unfinished sums between
// blocks.
#include "int8.h"

namespace linnet::LINNET_TIER {

static constexpr int64_t BLOCK_COLUMNS = 512;

// One block of columns: whole groups, or (split) a part of the only group.
struct Block {
    const uint8_t* panel;  // tile t at + t * panel_tile_bytes
    int64_t panel_tile_bytes;
    const float* scales;  // [groups][16] of tile 0, tile t at + t * scale_tile_floats; indexed by weight group
    int64_t scale_tile_floats;
    const int32_t* zeros;  // as scales; null: constant_zero
    int32_t constant_zero;
    int64_t first_group, groups;  // in input groups
    int64_t eights;               // 8-column runs per group, but for the last group of the block
    int64_t last_eights;
    bool starts, ends;     // the block begins / ends the sum
    bool split;            // y holds int32 until the block that ends
    const uint8_t* ahead;  // what to prefetch, ahead_bytes per run of 8 columns
    int64_t ahead_bytes;
};

// Full tiles only: y has room for 16 T outputs of M rows. Branches stand outside the loops over registers.
template <int M, int T, bool narrow>
static void multiply(const Block& block, const Int8Input& x, int64_t row, float* y, int64_t ldy, const float* bias) {
    const bool carries = !block.starts;
    Floats totals[M][T];
    Ints sums[M][T];
    if (carries && !block.split) {
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) totals[m][t] = load(y + m * ldy + 16 * t);
    } else {
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) totals[m][t] = splat(0.0f);
    }
    const uint8_t* panel = block.panel;
    const int64_t tile = block.panel_tile_bytes;
    const uint8_t* ahead = block.ahead;
    const int8_t* codes = x.codes + row * x.row_bytes + block.first_group * x.group_bytes + x.split_offset;
    for (int64_t g = 0; g < block.groups; ++g) {
        const int64_t group = block.first_group + g;
        const int64_t weight_group = x.weight_group(group);
        const int32_t* x_sums = x.sums + row * x.sum_stride + group;
        if (block.split && carries) {
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t) sums[m][t] = load_ints((const int32_t*)(y + m * ldy + 16 * t));
        } else if (block.zeros != nullptr) {
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t)
                    sums[m][t] = load_ints(block.zeros + t * block.scale_tile_floats + weight_group * 16) *
                                 splat_int(-x_sums[m * x.sum_stride]);
        } else {
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t) sums[m][t] = splat_int(-x_sums[m * x.sum_stride] * block.constant_zero);
        }
        const int64_t eights = g == block.groups - 1 ? block.last_eights : block.eights;
        for (int64_t i = 0; i < eights; ++i) {
            for (int64_t line = 0; line < block.ahead_bytes; line += 64) __builtin_prefetch(ahead + line, 0, 2);
            ahead += block.ahead_bytes;
            Ints even[T], odd[T];
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) {
                even[t] = load_ints((const int32_t*)(panel + t * tile + 128 * i));
                odd[t] = load_ints((const int32_t*)(panel + t * tile + 128 * i + 64));
            }
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                const Ints x_even = splat_word(codes + m * x.row_bytes + 8 * i);
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t) sums[m][t] = dot_bytes<narrow>(sums[m][t], even[t], x_even);
                const Ints x_odd = splat_word(codes + m * x.row_bytes + 8 * i + 4);
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t) sums[m][t] = dot_bytes<narrow>(sums[m][t], odd[t], x_odd);
            }
        }
        panel += 128 * eights;
        codes += 8 * eights;
        if (block.split && !block.ends) break;
        const float* x_scales = x.scales + row * x.scale_stride + x.scale_group(group);
        Floats scales[T];
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) scales[t] = load(block.scales + t * block.scale_tile_floats + weight_group * 16);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            const Floats x_scale = splat(x_scales[m * x.scale_stride]);
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) totals[m][t] = fma(to_floats(sums[m][t]) * x_scale, scales[t], totals[m][t]);
        }
    }
    if (block.split && !block.ends) {
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) store_ints((int32_t*)(y + m * ldy + 16 * t), sums[m][t]);
        return;
    }
    if (bias != nullptr) {
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) totals[m][t] = totals[m][t] + load(bias + 16 * t);
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) store(y + m * ldy + 16 * t, totals[m][t]);
}

template <int T, bool narrow>
static void multiply_full(int64_t count, const Block& block, const Int8Input& x, int64_t row, float* y, int64_t ldy,
                          const float* bias) {
    switch (count) {
        case 1:
            return multiply<1, T, narrow>(block, x, row, y, ldy, bias);
        case 2:
            return multiply<2, T, narrow>(block, x, row, y, ldy, bias);
#if !defined(LINNET_PORTABLE)
        case 3:
            return multiply<3, T, narrow>(block, x, row, y, ldy, bias);
        case 4:
            return multiply<4, T, narrow>(block, x, row, y, ldy, bias);
#endif
#if defined(LINNET_AVX512)
        case 5:
            return multiply<5, T, narrow>(block, x, row, y, ldy, bias);
        case 6:
            return multiply<6, T, narrow>(block, x, row, y, ldy, bias);
        case 7:
            return multiply<7, T, narrow>(block, x, row, y, ldy, bias);
        case 8:
            return multiply<8, T, narrow>(block, x, row, y, ldy, bias);
#endif
    }
}

// A tile that is not full goes through a copy.
template <int T, bool narrow>
static void multiply_rows(int64_t count, const Block& block, const Int8Input& x, int64_t row, float* y, int64_t ldy,
                          int64_t outputs, const float* bias) {
    if (outputs == 16 * T) return multiply_full<T, narrow>(count, block, x, row, y, ldy, bias);
    alignas(64) float copy[TILE_ROWS * 16 * T] = {};
    alignas(64) float bias_copy[16 * T] = {};
    if (!block.starts)
        for (int64_t m = 0; m < count; ++m) std::memcpy(copy + m * 16 * T, y + m * ldy, size_t(outputs) * 4);
    if (bias != nullptr) std::memcpy(bias_copy, bias, size_t(outputs) * 4);
    multiply_full<T, narrow>(count, block, x, row, copy, 16 * T, bias != nullptr ? bias_copy : nullptr);
    for (int64_t m = 0; m < count; ++m) std::memcpy(y + m * ldy, copy + m * 16 * T, size_t(outputs) * 4);
}

// Columns one panel holds: whole input groups, about BLOCK_COLUMNS of them.
static int64_t panel_columns(const LinearWeight& weight) {
    const bool channel = weight.group_size >= weight.columns;
    return channel ? BLOCK_COLUMNS : larger(BLOCK_COLUMNS, round_up(weight.group_size, 8));
}

static int64_t weight_groups(const LinearWeight& weight) { return divide_up(weight.columns, weight.group_size); }

int64_t scratch_bytes_int8(const LinearWeight& weight, int64_t rows) {
    const int64_t groups = weight_groups(weight);
    const int64_t tables = TILE_COUNT * groups * 64 * (weight.zero_points != nullptr ? 2 : 1);
    const int64_t gemm = TILE_COUNT * 16 * panel_columns(weight) + tables;
    return larger(gemm, scratch_bytes_gemv(weight)) + round_up(rows * groups * 4, 64);
}

const char* refuse_int8(const LinearWeight& weight, int64_t input_group_size) {
    if (weight.storage != Storage::packed_int && weight.storage != Storage::plain_int8)
        return "int8 activations need a weight of integer codes (packed_int or plain_int8)";
    const int64_t input = smaller(input_group_size, weight.columns);
    const int64_t own = smaller(weight.group_size, weight.columns);
    const int64_t fine = smaller(input, own), coarse = larger(input, own);
    if (coarse < weight.columns && coarse % fine != 0)
        return "the group sizes of weight and activations must divide each other";
    if (input != own && fine % 8 != 0)
        return "where weight and activations have different groups, the smaller group must be a multiple of 8";
    if (own == weight.columns && input > BLOCK_COLUMNS && input < weight.columns)
        return "activation groups over a channel-wise weight may be at most 512 columns, or the whole row";
    return nullptr;
}

// Has the block's first multiplication ask for a part, [step, step + 1) of `steps`, of the rows that follow this tile,
// in address order: the sixteen short streams an expansion reads are more than the hardware's own prefetchers follow.
LINNET_INLINE void plan_prefetch(const LinearWeight& weight, int64_t n, int64_t step, int64_t steps, int64_t eights,
                                 Block& block) {
    const int64_t rows = smaller(16 * TILE_COUNT, weight.rows - n);
    if (rows <= 0) return;
    const int64_t bytes = rows * weight.code_row_bytes;
    const int64_t begin = bytes * step / steps & ~int64_t(63);
    block.ahead = (const uint8_t*)weight.codes + n * weight.code_row_bytes + begin;
    block.ahead_bytes = round_up(divide_up(bytes * (step + 1) / steps - begin, eights), 64);
    if (weight.group_size >= weight.columns) return;
    const int64_t scale_bytes = rows * weight.scale_row_stride * (weight.scale_type == ScaleType::fp32 ? 4 : 2);
    const uint8_t* scales = (const uint8_t*)weight.scales + n * (scale_bytes / rows);
    for (int64_t i = scale_bytes * step / steps & ~int64_t(63); i < scale_bytes * (step + 1) / steps; i += 64)
        __builtin_prefetch(scales + i, 0, 2);
}

template <bool narrow>
static void linear(const LinearWeight& weight, const Int8Input& x, float* y, int64_t ldy, int64_t rows, int64_t n_begin,
                   int64_t n_end, uint8_t* scratch) {
    const int64_t table = weight_groups(weight) * 16;
    const int64_t tile_bytes = 16 * panel_columns(weight);
    uint8_t* panel = scratch;
    float* scales = (float*)(panel + TILE_COUNT * tile_bytes);
    int32_t* zeros = weight.zero_points != nullptr ? (int32_t*)(scales + TILE_COUNT * table) : nullptr;
    const bool split = x.groups == 1 && x.group_bytes > BLOCK_COLUMNS;
    const int64_t block_groups = split ? 1 : larger(1, BLOCK_COLUMNS / x.group_bytes);
    const int64_t steps = split ? divide_up(x.group_bytes, BLOCK_COLUMNS) : divide_up(x.groups, block_groups);
    for (int64_t n = n_begin; n < n_end; n += 16 * TILE_COUNT) {
        const int64_t outputs = smaller(n_end - n, 16 * TILE_COUNT);
        const int64_t tiles = divide_up(outputs, 16);
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t valid = smaller(16, outputs - 16 * t);
            expand_scales(weight, n + 16 * t, valid, scales + t * table);
            if (zeros != nullptr) expand_zeros(weight, n + 16 * t, valid, zeros + t * table);
        }
        for (int64_t step = 0; step < steps; ++step) {
            Int8Input input = x;
            Block block = {panel,     tile_bytes,        scales, table,   zeros, constant_zero(weight), 0, 1, 0, 0,
                           step == 0, step == steps - 1, split,  nullptr, 0};
            int64_t column;
            if (split) {
                input.split_offset = column = step * BLOCK_COLUMNS;
                block.last_eights = divide_up(smaller(BLOCK_COLUMNS, weight.columns - column), 8);
            } else {
                block.first_group = step * block_groups;
                block.groups = smaller(block_groups, x.groups - block.first_group);
                column = block.first_group * x.group_size;
                block.eights = x.group_bytes / 8;
                const int64_t last = block.first_group + block.groups - 1;
                block.last_eights = divide_up(smaller(x.group_size, weight.columns - last * x.group_size), 8);
            }
            const int64_t eights = (block.groups - 1) * block.eights + block.last_eights;
            plan_prefetch(weight, n + 16 * TILE_COUNT, step, steps, eights, block);
            for (int64_t t = 0; t < tiles; ++t)
                expand_codes(weight, x, n + 16 * t, smaller(16, outputs - 16 * t), column, eights,
                             panel + t * tile_bytes);
            const float* bias = block.ends && weight.bias != nullptr ? weight.bias + n : nullptr;
            for (int64_t row = 0; row < rows; row += TILE_ROWS) {
                const int64_t count = smaller(TILE_ROWS, rows - row);
                float* target = y + row * ldy + n;
                if (TILE_COUNT == 1 || tiles == 1)
                    multiply_rows<1, narrow>(count, block, input, row, target, ldy, outputs, bias);
                else
                    multiply_rows<TILE_COUNT, narrow>(count, block, input, row, target, ldy, outputs, bias);
                block.ahead_bytes = 0;
            }
        }
    }
}

void linear_int8(const LinearWeight& weight, const QuantisedRows& rows_in, float* y, int64_t ldy, int64_t rows,
                 int64_t n_begin, int64_t n_end, void* scratch) {
    Int8Input x = {};
    x.codes = rows_in.codes;
    x.row_bytes = rows_in.row_bytes;
    x.scales = rows_in.scales;
    x.scale_stride = rows_in.groups;
    const int64_t input_size = smaller(rows_in.group_size, weight.columns);
    const int64_t weight_size = smaller(weight.group_size, weight.columns);
    x.group_size = smaller(input_size, weight_size);
    x.group_bytes = round_up(x.group_size, 8);
    x.groups = divide_up(weight.columns, x.group_size);
    x.groups_per_scale = input_size / x.group_size;
    x.groups_per_weight_group = weight_size / x.group_size;
    if (input_size == weight.columns) x.groups_per_scale = x.groups;
    if (weight_size == weight.columns) x.groups_per_weight_group = x.groups;
    x.sum_stride = x.groups;
    x.sums = rows_in.sums;
    uint8_t* free = (uint8_t*)scratch;
    if (x.groups != rows_in.groups) {
        int32_t* sums = (int32_t*)free;
        sum_codes(x, rows, weight.columns, sums);
        x.sums = sums;
        free += round_up(rows * x.groups * 4, 64);
    }
    if (try_gemv(weight, x, y, ldy, rows, n_begin, n_end, free)) return;
    // The VNNI instruction does not care how wide codes are.
#if !defined(LINNET_VNNI)
    if (weight.storage == Storage::plain_int8 || weight.bits == 8)
        return linear<false>(weight, x, y, ldy, rows, n_begin, n_end, free);
#endif
    linear<true>(weight, x, y, ldy, rows, n_begin, n_end, free);
}

}  // namespace linnet::LINNET_TIER
