// SPDX-License-Identifier: Apache-2.0
// Integer weights (packed 2, 3, 4, 8 bits or plain int8) times int8 rows, read in the canonical layout; with 512-bit
// vectors as tiles too. Other tiers' tiles, and all that hold what has no canonical layout, are read by tiled.cpp, in
// the same order of sums.
//
// y[r][n] = sum over groups, left to right, of fma(float(dot) * x_scale, weight_scale, y), then + bias; dot is the
// exact int32 sum of (code - zero) * x over the group, taken as unsigned_code . x - zero . sum(x). Since integer sums
// are free, that one order serves any blocking: a row's bits do not depend on how many rows there are.
//
// GEMM: 16 outputs x a block of columns of codes are transposed to a panel of unsigned bytes, [word][16 outputs][4
// codes] in the order of quantised rows, and the panel (in L1) meets all rows; tiles (tiles.h) are such panels already,
// of bytes or of nibbles. Unfinished sums lie in scratch, compact: rows of y are far apart at powers of two, which a
// cache maps to the same few places.
#include "panels.h"
#include "sparse.h"

namespace linnet::LINNET_TIER {

// The tiers that read tiles of four and eight bits here: how tiled.cpp would do there has not been measured.
#if defined(LINNET_AVX512)
static constexpr bool READS_TILES = true;
#else
static constexpr bool READS_TILES = false;
#endif

// Columns of a panel: half of L1, for bytes that were expanded and for the nibbles of tiles.
static constexpr int64_t BLOCK_COLUMNS = 512;
static constexpr int64_t TILED_COLUMNS = 1024;
// From so many rows on, nibbles are widened to bytes once per panel instead of once per eight rows.
static constexpr int64_t WIDENED_ROWS = 33;
// From so many rows on, panels multiply such tiles faster, but not where the row is one span, whose sums stay here in
// registers for longer.
static constexpr int64_t PANEL_ROWS = 32;

// One block of columns: whole groups, or (split) a part of the only group.
struct Block {
    const uint8_t* panel;
    const float* scales;  // [weight groups][16] of tile 0, tile t at + t * scale_tile_floats
    int64_t scale_tile_floats;
    const int32_t* minus_zeros;  // 16 per tile and weight group, or the same for all (strides 0)
    int64_t zero_tile_stride, zero_group_stride;
    int64_t first_group, groups;  // in input groups
    int64_t eights;               // 8-column runs per group, but for the last group of the block
    int64_t last_eights;
    bool starts, ends;  // the block begins / ends the sum
    bool split;         // totals hold int32 until the block that ends
};

// Lines of the tile that follows, asked for a few per run of columns while this one is multiplied.
struct Ahead {
    const uint8_t* next = nullptr;
    int64_t lines = 0, per_eight = 0;
};

// totals [M][16 T]: the unfinished sums. They stay in memory: sixteen accumulators leave no registers for them, and a
// group's one addition hides behind its dot products. `usual`: every group is 16 eights and every zero point the same.
// One function with its loops in it and no branch inside them: g++ 12 spills accumulators that it passes by reference.
template <int M, int T, bool narrow, bool usual, bool nibbles>
static void multiply(const Block& block, const Int8Input& x, int64_t row, float* totals, Ahead& ahead) {
    const uint8_t* panel = block.panel;
    constexpr int64_t tile = nibbles ? 64 : 128, step = tile * TILE_COUNT;
    const int64_t scale_stride = block.scale_tile_floats, row_bytes = x.row_bytes;
    const int64_t x_sum_stride = x.sum_stride, x_scale_stride = x.scale_stride;
    const int64_t weight_group = x.weight_group(block.first_group), scale_group = x.scale_group(block.first_group);
    const int8_t* codes = x.codes + row * row_bytes + block.first_group * x.group_bytes + x.split_offset;
    const int32_t* x_sums = x.sums + row * x_sum_stride + block.first_group;
    const float* x_scales = x.scales + row * x_scale_stride + scale_group;
    const float* scales = block.scales + weight_group * 16;
    const int32_t* minus_zeros = block.minus_zeros + weight_group * block.zero_group_stride;
    // Places within a group of the weight and of the activations' scales, either of which may be the coarser.
    int64_t in_weight_group = block.first_group - weight_group * x.groups_per_weight_group;
    int64_t in_scale_group = block.first_group - scale_group * x.groups_per_scale;
    const uint8_t* next = ahead.next;
    const int64_t next_step = ahead.per_eight * 64;
    for (int64_t g = 0; g < block.groups; ++g) {
        const int64_t eights = usual ? 16 : g == block.groups - 1 ? block.last_eights : block.eights;
        Ints sums[M][T];
        if (!usual && block.split && !block.starts) {
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t) sums[m][t] = load_ints((const int32_t*)totals + (m * T + t) * 16);
        } else {
            // What unsigned codes add too much: the zero point times the sum of x.
            Ints minus_zero[T];
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t)
                minus_zero[t] = usual && t > 0 ? minus_zero[0] : load_ints(minus_zeros + t * block.zero_tile_stride);
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                const Ints sum = splat_word((const int8_t*)(x_sums + m * x_sum_stride));
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t) sums[m][t] = usual && t > 0 ? sums[m][0] : minus_zero[t] * sum;
            }
        }
        // Few sums wait for themselves: odd columns then have their own.
        constexpr bool apart = M * T <= 4;
        Ints odd_sums[apart ? M : 1][apart ? T : 1];
        if constexpr (apart)
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t) odd_sums[m][t] = splat_int(0);
#pragma GCC unroll 1
        for (int64_t i = 0; i < eights; ++i) {
            for (int64_t line = 0; line < next_step; line += 64) __builtin_prefetch(next + line, 0, 3);
            next += next_step;
            Ints even[T], odd[T];
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) {
                const Ints codes_even = load_ints((const int32_t*)(panel + t * tile + step * i));
                if constexpr (nibbles) {
                    even[t] = codes_even & splat_int(0x0f0f0f0f);
                    odd[t] = shift_right_unsigned<4>(codes_even) & splat_int(0x0f0f0f0f);
                } else {
                    even[t] = codes_even;
                    odd[t] = load_ints((const int32_t*)(panel + t * tile + step * i + 64));
                }
            }
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                const Ints x_even = splat_word(codes + m * row_bytes + 8 * i);
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t) sums[m][t] = dot_bytes<narrow>(sums[m][t], even[t], x_even);
                const Ints x_odd = splat_word(codes + m * row_bytes + 8 * i + 4);
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t) {
                    Ints& sum = apart ? odd_sums[apart ? m : 0][apart ? t : 0] : sums[m][t];
                    sum = dot_bytes<narrow>(sum, odd[t], x_odd);
                }
            }
        }
        if constexpr (apart)
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t) sums[m][t] = sums[m][t] + odd_sums[m][t];
        if (!usual && block.split && !block.ends) {
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
                for (int t = 0; t < T; ++t) store_ints((int32_t*)totals + (m * T + t) * 16, sums[m][t]);
            break;
        }
        const bool first = usual || !block.split ? block.starts && g == 0 : true;
        if (first)
            for (int i = 0; i < M * T; ++i) store(totals + 16 * i, splat(0.0f));
        Floats scale[T];
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) scale[t] = load(scales + t * scale_stride);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            const Floats x_scale = splat(x_scales[m * x_scale_stride]);
#pragma GCC unroll 16
            for (int t = 0; t < T; ++t) {
                float* total = totals + (m * T + t) * 16;
                store(total, fma(to_floats(sums[m][t]) * x_scale, scale[t], load(total)));
            }
        }
        panel += step * eights;
        codes += 8 * eights;
        ++x_sums;
        if (++in_weight_group == x.groups_per_weight_group) {
            in_weight_group = 0;
            scales += 16;
            minus_zeros += block.zero_group_stride;
        }
        if (++in_scale_group == x.groups_per_scale) {
            in_scale_group = 0;
            ++x_scales;
        }
    }
    ahead.lines -= (next - ahead.next) / 64;
    ahead.next = next;
    if (ahead.lines <= 0) ahead.per_eight = 0;
}

template <int T, bool narrow, bool usual, bool nibbles>
static void multiply_rows(int64_t count, const Block& block, const Int8Input& x, int64_t row, float* totals,
                          Ahead& ahead) {
    switch (count) {
        case 1:
            return multiply<1, T, narrow, usual, nibbles>(block, x, row, totals, ahead);
        case 2:
            return multiply<2, T, narrow, usual, nibbles>(block, x, row, totals, ahead);
#if !defined(LINNET_PORTABLE)
        case 3:
            return multiply<3, T, narrow, usual, nibbles>(block, x, row, totals, ahead);
        case 4:
            return multiply<4, T, narrow, usual, nibbles>(block, x, row, totals, ahead);
#endif
#if defined(LINNET_AVX512)
        case 5:
            return multiply<5, T, narrow, usual, nibbles>(block, x, row, totals, ahead);
        case 6:
            return multiply<6, T, narrow, usual, nibbles>(block, x, row, totals, ahead);
        case 7:
            return multiply<7, T, narrow, usual, nibbles>(block, x, row, totals, ahead);
        case 8:
            return multiply<8, T, narrow, usual, nibbles>(block, x, row, totals, ahead);
#endif
    }
}

// Columns one panel holds: whole input groups, about BLOCK_COLUMNS of them.
static int64_t panel_columns(const LinearWeight& weight) {
    const bool channel = weight.group_size >= weight.columns;
    return channel ? BLOCK_COLUMNS : larger(BLOCK_COLUMNS, round_up(weight.group_size, 8));
}

static int64_t weight_groups(const LinearWeight& weight) { return divide_up(weight.columns, weight.group_size); }

int64_t scratch_bytes_int8(const LinearWeight& weight, int64_t rows) {
    if (weight.two_of_four) return larger(scratch_bytes_expanded(weight, rows), scratch_bytes_sparse_few(weight, rows));
    const int64_t groups = weight_groups(weight);
    const int64_t tables = TILE_COUNT * groups * 64 * (weight.zero_points != nullptr ? 2 : 1) + 64;
    const int64_t gemm = TILE_COUNT * 16 * (panel_columns(weight) + 4 * rows) + tables;
    const int64_t most = larger(larger(gemm, scratch_bytes_gemv(weight)), scratch_bytes_tiled(weight, rows));
    return most + round_up(rows * groups * 4, 64);
}

// Integers hold the products of a span's codes and scale codes, 16 bits the sum of a group of activations.
static const char* refuse_super_groups(const LinearWeight& weight, int64_t input_group_size) {
    const int64_t super = weight.super_group_size;
    if (weight.bits > 6 || weight.group_size > 128 || super > 256)
        return "weights with scales of two levels have codes of at most 6 bits, groups of at most 128 and super groups "
               "of at most 256 columns";
    if (input_group_size < weight.columns && input_group_size % weight.group_size != 0)
        return "over scales of two levels activations have groups of whole weight groups";
    if (input_group_size < weight.columns && super % input_group_size != 0 && input_group_size % super != 0)
        return "over scales of two levels activation and super groups must divide each other";
    return nullptr;
}

const char* refuse_int8(const LinearWeight& weight, int64_t input_group_size) {
    if (weight.storage != Storage::packed_int && weight.storage != Storage::plain_int8)
        return "int8 activations need a weight of integer codes (packed_int or plain_int8)";
    const int64_t input = smaller(input_group_size, weight.columns);
    const int64_t own = smaller(weight.group_size, weight.columns);
    if (weight.spread && !reads_tiles(weight, input))
        return "tiles are multiplied in groups of multiples of 16 columns, or of 8 up to 120";
    if (weight.super_group_size > 0) return refuse_super_groups(weight, input);
    const int64_t fine = smaller(input, own), coarse = larger(input, own);
    if (coarse < weight.columns && coarse % fine != 0)
        return "the group sizes of weight and activations must divide each other";
    if (input != own && fine % 8 != 0)
        return "where weight and activations have different groups, the smaller group must be a multiple of 8";
    if (own == weight.columns && input > BLOCK_COLUMNS && input < weight.columns)
        return "activation groups over a channel-wise weight may be at most 512 columns, or the whole row";
    return nullptr;
}

// A part, [step, step + 1) of `steps`, of the weight rows from n on, in address order: the sixteen short streams an
// expansion reads are more than the hardware's own prefetchers follow.
LINNET_INLINE Ahead plan_ahead(const LinearWeight& weight, int64_t n, int64_t step, int64_t steps,
                               int64_t eights_to_come) {
    Ahead ahead;
    const int64_t rows = smaller(16 * TILE_COUNT, weight.rows - n);
    if (rows <= 0) return ahead;
    const int64_t bytes = rows * weight.code_row_bytes;
    const int64_t begin = bytes * step / steps & ~int64_t(63);
    ahead.next = (const uint8_t*)weight.codes + n * weight.code_row_bytes + begin;
    ahead.lines = divide_up(bytes * (step + 1) / steps - begin, 64);
    ahead.per_eight = divide_up(ahead.lines, eights_to_come);
    if (weight.group_size >= weight.columns) return ahead;
    const int64_t scale_bytes = rows * weight.scale_row_stride * (weight.scale_type == ScaleType::fp32 ? 4 : 2);
    const uint8_t* scales = (const uint8_t*)weight.scales + n * (scale_bytes / rows);
    for (int64_t i = scale_bytes * step / steps & ~int64_t(63); i < scale_bytes * (step + 1) / steps; i += 64)
        __builtin_prefetch(scales + i, 0, 2);
    return ahead;
}

// Scales of a tile as fp32, from where make_tiles put them.
LINNET_INLINE void widen_scales(const LinearWeight& weight, const Tiles& tiles, int64_t n, float* scales) {
    const uint8_t* record = tile_record(tiles, weight.tiles, n);
    for (int64_t g = 0; g < tiles.groups; ++g)
        store(scales + g * 16, load_scales(weight.scale_type, record + g * 16 * tiles.scale_bytes));
}

LINNET_INLINE void widen_minus_zeros(const LinearWeight& weight, const Tiles& tiles, int64_t n, int32_t* minus_zeros) {
    const int8_t* zeros = (const int8_t*)tile_record(tiles, weight.tiles, n) + tiles.zeros_at;
    for (int64_t i = 0; i < tiles.groups * 16; ++i) minus_zeros[i] = -constant_zero(weight) - zeros[i];
}

// Tiles of nibbles as a panel of bytes.
static void widen_tiles(const uint8_t* tiles, int64_t eights, uint8_t* panel) {
    for (int64_t i = 0; i < eights * TILE_COUNT; ++i) {
        const Ints codes = load_ints((const int32_t*)(tiles + 64 * i));
        store_ints((int32_t*)(panel + 128 * i), codes & splat_int(0x0f0f0f0f));
        store_ints((int32_t*)(panel + 128 * i + 64), shift_right_unsigned<4>(codes) & splat_int(0x0f0f0f0f));
    }
}

template <bool narrow, bool nibbles>
static void multiply_panel(const Block& block, const Int8Input& x, int64_t rows, int64_t tile_rows, int64_t tiles,
                           bool usual, float* totals, Ahead& ahead) {
    for (int64_t row = 0; row < rows; row += tile_rows) {
        const int64_t count = smaller(tile_rows, rows - row);
        float* target = totals + row * 16 * tiles;
        if (TILE_COUNT == 1 || tiles == 1)
            multiply_rows<1, narrow, false, nibbles>(count, block, x, row, target, ahead);
        else if (usual)
            multiply_rows<TILE_COUNT, narrow, true, nibbles>(count, block, x, row, target, ahead);
        else
            multiply_rows<TILE_COUNT, narrow, false, nibbles>(count, block, x, row, target, ahead);
    }
}

template <bool narrow>
static void linear(const LinearWeight& weight, const Int8Input& x, float* y, int64_t ldy, int64_t rows, int64_t n_begin,
                   int64_t n_end, uint8_t* scratch) {
    const Tiles layout = tiles_of(weight);
    const int64_t step_bytes = layout.run_bytes / RUN_EIGHTS;
    const bool tiled = READS_TILES && weight.tiles != nullptr;
    const bool widens = tiled && layout.bits == 4 && rows >= WIDENED_ROWS;
    const bool nibbles = tiled && layout.bits == 4 && !widens;
    const int64_t block_columns = nibbles ? TILED_COLUMNS : BLOCK_COLUMNS;
    const int64_t table = weight_groups(weight) * 16;
    uint8_t* panel = scratch;
    float* totals = (float*)(panel + TILE_COUNT * 16 * panel_columns(weight));
    float* scales = totals + TILE_COUNT * 16 * rows;
    int32_t* minus_zeros = (int32_t*)(scales + TILE_COUNT * table);
    const bool asymmetric = weight.zero_points != nullptr;
    if (!asymmetric) store_ints(minus_zeros, splat_int(-constant_zero(weight)));
    const bool split = x.groups == 1 && x.group_bytes > block_columns;
    const int64_t block_groups = split ? 1 : larger(1, block_columns / x.group_bytes);
    const int64_t steps = split ? divide_up(x.group_bytes, block_columns) : divide_up(x.groups, block_groups);
    // Rows are dealt out evenly: 9 are 5 and 4, not 8 and 1.
    const int64_t row_tiles = divide_up(rows, TILE_ROWS), tile_rows = divide_up(rows, row_tiles);
    for (int64_t n = n_begin; n < n_end; n += 16 * TILE_COUNT) {
        const int64_t outputs = smaller(n_end - n, 16 * TILE_COUNT);
        const int64_t tiles = divide_up(outputs, 16);
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t valid = smaller(16, outputs - 16 * t);
            if (tiled)
                widen_scales(weight, layout, n + 16 * t, scales + t * table);
            else
                expand_scales(weight, n + 16 * t, valid, scales + t * table);
            if (asymmetric && tiled)
                widen_minus_zeros(weight, layout, n + 16 * t, minus_zeros + t * table);
            else if (asymmetric)
                expand_minus_zeros(weight, n + 16 * t, valid, minus_zeros + t * table);
        }
        for (int64_t step = 0; step < steps; ++step) {
            Int8Input input = x;
            Block block = {};
            block.panel = panel;
            block.scales = scales;
            block.scale_tile_floats = table;
            block.minus_zeros = minus_zeros;
            block.zero_tile_stride = asymmetric ? table : 0;
            block.zero_group_stride = asymmetric ? 16 : 0;
            block.groups = 1;
            block.starts = step == 0;
            block.ends = step == steps - 1;
            block.split = split;
            int64_t column;
            if (split) {
                input.split_offset = column = step * block_columns;
                block.last_eights = divide_up(smaller(block_columns, weight.columns - column), 8);
            } else {
                block.first_group = step * block_groups;
                block.groups = smaller(block_groups, x.groups - block.first_group);
                column = block.first_group * x.group_size;
                block.eights = x.group_bytes / 8;
                const int64_t last = block.first_group + block.groups - 1;
                block.last_eights = divide_up(smaller(x.group_size, weight.columns - last * x.group_size), 8);
            }
            const int64_t eights = (block.groups - 1) * block.eights + block.last_eights;
            const bool usual = eights == 16 * block.groups && block.last_eights == 16 && !split && !asymmetric;
            Ahead ahead;
            if (tiled) {
                block.panel = tile_codes(layout, weight.tiles, n) + column / 8 * step_bytes;
                // The block that follows, which may be the next outputs' first.
                ahead.next = block.panel + eights * step_bytes;
                ahead.lines = eights * step_bytes / 64;
                ahead.per_eight = divide_up(ahead.lines, row_tiles * eights);
                const int64_t scale_bytes = TILE_COUNT * layout.record_bytes;
                const uint8_t* later = tile_record(layout, weight.tiles, n) + scale_bytes;
                for (int64_t i = scale_bytes * step / steps; i < scale_bytes * (step + 1) / steps; i += 64)
                    __builtin_prefetch(later + i, 0, 2);
                if (widens) {
                    widen_tiles(block.panel, eights, panel);
                    block.panel = panel;
                }
            } else {
                for (int64_t t = 0; t < tiles; ++t)
                    expand_codes(weight, x, n + 16 * t, smaller(16, outputs - 16 * t), column, eights, panel + t * 128);
                ahead = plan_ahead(weight, n + 16 * TILE_COUNT, step, steps, row_tiles * eights);
            }
            if constexpr (READS_TILES)
                if (nibbles) {
                    multiply_panel<true, true>(block, input, rows, tile_rows, tiles, usual, totals, ahead);
                    continue;
                }
            multiply_panel<narrow, false>(block, input, rows, tile_rows, tiles, usual, totals, ahead);
        }
        write_outputs(totals, tiles, rows, outputs, weight.bias != nullptr ? weight.bias + n : nullptr, y + n, ldy);
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
    if (reads_sparse(weight, x, rows)) return linear_sparse_few(weight, x, y, ldy, rows, n_begin, n_end, free);
    if (weight.two_of_four) return linear_expanded(weight, rows_in, y, ldy, rows, n_begin, n_end, free);
    const bool only_tiled = weight.spread, suits_panels = rows >= PANEL_ROWS && x.groups > 1;
    const bool panels = PANELS_SUM_CODES && weight.tiles != nullptr && (only_tiled || suits_panels) &&
                        reads_panels(weight, rows_in.group_size, rows);
    if (x.groups != rows_in.groups && !panels) {
        int32_t* sums = (int32_t*)free;
        sum_codes(x, rows, weight.columns, sums);
        x.sums = sums;
        free += round_up(rows * x.groups * 4, 64);
    }
    if (panels) return linear_panels(weight, x, y, ldy, rows, n_begin, n_end, free);
    if (weight.tiles != nullptr && (weight.spread || (!READS_TILES && reads_tiles(weight, rows_in.group_size))))
        return linear_tiled(weight, x, y, ldy, rows, n_begin, n_end, free);
    if (weight.tiles == nullptr && try_gemv(weight, x, y, ldy, rows, n_begin, n_end, free)) return;
    // The VNNI instruction does not care how wide codes are.
#if !defined(LINNET_VNNI)
    if (weight.storage == Storage::plain_int8 || weight.bits == 8)
        return linear<false>(weight, x, y, ldy, rows, n_begin, n_end, free);
#endif
    linear<true>(weight, x, y, ldy, rows, n_begin, n_end, free);
}

}  // namespace linnet::LINNET_TIER
