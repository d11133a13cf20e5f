// SPDX-License-Identifier: Apache-2.0
// Makes tiles, and reads them as fp32 numbers.
#include "sparse.h"

#include "tables.h"

namespace linnet::LINNET_TIER {

int64_t tile_bytes(const LinearWeight& weight) {
    // Groups are runs of whole eights: what the GEMM reads without expanding.
    if (weight.two_of_four) return tiles_of(weight).bytes;
    if (weight.group_size < weight.columns && weight.group_size % 8 != 0) return 0;
    if (has_row_tables(weight)) return row_table_tile_bytes(weight);
    if (weight.spread) return tiles_of(weight).bytes;
    if (weight.storage == Storage::plain_int8) return tiles_of(weight).bytes;
    if (weight.storage != Storage::packed_int) return 0;
#if defined(LINNET_AVX512)
    // Few rows read these as they lie about as fast (gemv.cpp).
    if (weight.bits < 4) return 0;
#endif
    return tiles_of(weight).bytes;
}

// Element [n + i][group] of a table of `bytes` wide elements to target[group][i]; zeros past the last row.
static void write_table(const LinearWeight& weight, const void* table, int64_t row_stride, int64_t group_stride,
                        int64_t groups, int64_t bytes, int64_t n, uint8_t* target) {
    for (int64_t i = 0; i < 16; ++i) {
        const uint8_t* own = (const uint8_t*)table + (n + i - weight.first_row) * row_stride * bytes;
        for (int64_t group = 0; group < groups; ++group) {
            uint8_t* place = target + (group * 16 + i) * bytes;
            if (n + i >= weight.rows)
                std::memset(place, 0, size_t(bytes));
            else if (bytes == 1)
                *place = own[group * group_stride];
            else if (bytes == 2)
                std::memcpy(place, own + group * group_stride * 2, 2);
            else
                std::memcpy(place, own + group * group_stride * 4, 4);
        }
    }
}

static void write_record(const LinearWeight& weight, const Tiles& tiles, int64_t n, uint8_t* record) {
    const int64_t row = weight.scale_row_stride, group = weight.scale_group_stride;
    write_table(weight, weight.scales, row, group, tiles.supers, tiles.scale_bytes, n, record);
    if (weight.offsets == Offsets::minimums)
        write_table(weight, weight.minimums, row, group, tiles.supers, tiles.scale_bytes, n,
                    record + tiles.minimums_at);
    if (weight.offsets == Offsets::zero_points)
        write_table(weight, weight.zero_points, weight.zero_point_row_stride, 1, tiles.groups, 1, n,
                    record + tiles.zeros_at);
    if (weight.super_group_size == 0) return;
    write_table(weight, weight.scale_codes, tiles.groups, 1, tiles.groups, 1, n, record + tiles.scale_codes_at);
    if (weight.offsets == Offsets::minimums)
        write_table(weight, weight.minimum_codes, tiles.groups, 1, tiles.groups, 1, n, record + tiles.minimum_codes_at);
}

void make_tiles(const LinearWeight& weight, void* table, int64_t n_begin, int64_t n_end) {
    if (has_row_tables(weight)) return make_row_table_tiles(weight, table, n_begin, n_end);
    constexpr int64_t CHUNK_RUNS = 16;
    const Tiles tiles = tiles_of(weight);
    Int8Input whole = {};
    whole.groups = 1;
    whole.group_size = weight.columns;
    whole.group_bytes = round_up(weight.columns, 8);
    alignas(64) uint8_t bytes[CHUNK_RUNS * RUN_EIGHTS * PANEL_STEP];
    for (int64_t n = n_begin; n < round_up(n_end, 16 * TILE_COUNT); n += 16) {
        const int64_t outputs = larger(0, smaller(16, weight.rows - n)), tile = n / 16 % TILE_COUNT;
        uint8_t* target = (uint8_t*)tile_codes(tiles, table, n);
        if (tiles.record_bytes > 0) write_record(weight, tiles, n, (uint8_t*)tile_record(tiles, table, n));
        if (weight.two_of_four) {
            uint8_t* code_sums = (uint8_t*)tile_record(tiles, table, n) + tiles.code_sums_at;
            write_sparse_tile(weight, n, outputs, target + tile * sparse_tile_bytes(weight), code_sums);
            continue;
        }
        for (int64_t run = 0; run < tiles.runs; run += CHUNK_RUNS) {
            const int64_t runs = smaller(CHUNK_RUNS, tiles.runs - run);
            const int64_t eights = smaller(runs * RUN_EIGHTS, tiles.eights - run * RUN_EIGHTS);
            std::memset(bytes, 0, sizeof bytes);
            if (outputs > 0)
                expand_codes(weight, whole, n - weight.first_row, outputs, run * RUN_COLUMNS, eights, bytes);
            for (int64_t i = 0; i < runs; ++i)
                pack_run(tiles.bits, bytes + i * RUN_EIGHTS * PANEL_STEP, PANEL_STEP,
                         target + (run + i) * tiles.run_bytes, int(tile));
        }
    }
}

// A group of one output: what its codes become. One rounding per operation, as PackedWeight.dequantize does them.
struct Meaning {
    Floats zero, scale, minimum;
};

static Meaning meaning_of(const LinearWeight& weight, const Tiles& tiles, const uint8_t* record, int64_t group) {
    const bool two_level = weight.super_group_size > 0;
    const int64_t super = two_level ? group * weight.group_size / weight.super_group_size : group;
    const int64_t place = super * 16 * tiles.scale_bytes;
    Meaning meaning = {splat(0.0f), load_scales(weight.scale_type, record + place), splat(0.0f)};
    if (weight.storage == Storage::packed_int || weight.storage == Storage::plain_int8)
        meaning.zero = splat(float(constant_zero(weight)));
    if (weight.offsets == Offsets::zero_points)
        meaning.zero = meaning.zero + to_floats(widen_bytes((const int8_t*)record + tiles.zeros_at + group * 16));
    if (weight.offsets == Offsets::minimums)
        meaning.minimum = load_scales(weight.scale_type, record + tiles.minimums_at + place);
    if (two_level) {
        meaning.scale =
            meaning.scale * to_floats(widen_bytes((const int8_t*)record + tiles.scale_codes_at + group * 16));
        if (weight.offsets == Offsets::minimums)
            meaning.minimum =
                meaning.minimum * to_floats(widen_bytes((const int8_t*)record + tiles.minimum_codes_at + group * 16));
    }
    return meaning;
}

// The lowest byte of every lane, an unsigned code, as a weight.
LINNET_INLINE Floats mean(const LinearWeight& weight, const Meaning& meaning, Ints code) {
    const bool codebook = weight.storage == Storage::codebook;
    const Floats value = codebook ? look_up(weight.codebook, code) : to_floats(code & splat_int(255)) - meaning.zero;
    if (weight.offsets == Offsets::minimums) return value * meaning.scale - meaning.minimum;
    return value * meaning.scale;
}

template <int bits>
static void decode_runs(const LinearWeight& weight, const Tiles& tiles, int64_t n, int64_t column, int64_t columns,
                        float* panel) {
    const uint8_t* record = tile_record(tiles, weight.tiles, n);
    const uint8_t* codes = weight.two_of_four ? sparse_tile(weight, tiles, n) : tile_codes(tiles, weight.tiles, n);
    alignas(64) uint8_t expanded[run_bytes(bits)];
    Meaning meaning = {};
    int64_t group_end = 0;
    for (int64_t first = column; first < column + columns; first += RUN_COLUMNS) {
        Ints even[4], odd[4];
        if (first < weight.columns) {
            const int tile = int(n / 16 % TILE_COUNT);
            const uint8_t* run = codes + first / RUN_COLUMNS * tiles.run_bytes;
            if (weight.two_of_four) {
                expand_sparse_run(bits, codes, first / RUN_COLUMNS, expanded, tile);
                run = expanded;
            }
            unpack_run<bits>(run, tile, even, odd);
        }
        for (int64_t c = 0; c < smaller(RUN_COLUMNS, column + columns - first); ++c) {
            float* target = panel + (first + c - column) * 16;
            if (first + c >= weight.columns) {
                store(target, splat(0.0f));
                continue;
            }
            if (first + c >= group_end) {
                const int64_t group = (first + c) / weight.group_size;
                meaning = meaning_of(weight, tiles, record, group);
                group_end = (group + 1) * weight.group_size;
            }
            Ints& word = c % 2 == 0 ? even[c / 8] : odd[c / 8];
            store(target, mean(weight, meaning, word));
            word = shift_right_unsigned<8>(word);
        }
    }
}

void decode_tiled_panel(const LinearWeight& weight, int64_t n, int64_t column, int64_t columns, float* panel) {
    if (has_row_tables(weight)) return decode_row_table_panel(weight, n, column, columns, panel);
    if (weight.storage == Storage::bf16) return decode_sparse_numbers(weight, n, column, columns, panel);
    const Tiles tiles = tiles_of(weight);
    const auto decode = tiles.bits == 1   ? decode_runs<1>
                        : tiles.bits == 2 ? decode_runs<2>
                        : tiles.bits == 3 ? decode_runs<3>
                        : tiles.bits == 4 ? decode_runs<4>
                        : tiles.bits == 5 ? decode_runs<5>
                        : tiles.bits == 6 ? decode_runs<6>
                                          : decode_runs<8>;
    decode(weight, tiles, n, column, columns, panel);
}

// What the head reads in every step is in memory already; the same rows as they are stored would have to come into it.
void decode_tiled_row(const LinearWeight& weight, int64_t row, float* y) {
    if (has_row_tables(weight)) return decode_row_table_row(weight, row, y);
    alignas(64) float panel[RUN_COLUMNS * 16];
    for (int64_t c = 0; c < weight.columns; c += RUN_COLUMNS) {
        decode_tiled_panel(weight, row / 16 * 16, c, RUN_COLUMNS, panel);
        for (int64_t i = 0; i < smaller(RUN_COLUMNS, weight.columns - c); ++i) y[c + i] = panel[i * 16 + row % 16];
    }
}

}  // namespace linnet::LINNET_TIER
