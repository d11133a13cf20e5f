// SPDX-License-Identifier: Apache-2.0
// Codes as the GEMM wants them, in the order of its reading: for 16 * TILE_COUNT outputs after each other, run after
// run of 32 columns, in the planes of planes.h. What columns and outputs do not fill is zero. Then for every sixteen
// outputs a record of their scales, always [..][16]:
// (2:4 weights: sparse.h)
//
//   one level    scales of groups as stored, then zero points (int8) or minimums (as stored) of groups
//   two levels   scales, then minimums of super groups as stored, then codes of scales, of minimums of groups (int8)
#pragma once

#include "int8.h"
#include "planes.h"

namespace linnet::LINNET_TIER {

struct Tiles {
    int bits;
    int64_t eights, runs, groups;
    int64_t supers;       // super groups; groups where there is one level
    int64_t run_bytes;    // of TILE_COUNT tiles
    int64_t panel_bytes;  // codes of 16 * TILE_COUNT outputs
    int64_t panels;
    int64_t scale_bytes;                                              // of one scale
    int64_t minimums_at, zeros_at, scale_codes_at, minimum_codes_at;  // within a record
    int64_t code_sums_at;                                             // of 2:4 codes of four bits
    int64_t record_bytes;
    int64_t bytes;
};

// sparse.cpp: one tile of a weight with two_of_four, without its record of scales.
int64_t sparse_tile_bytes(const LinearWeight& weight);
int64_t code_sum_bytes(const LinearWeight& weight);  // of what its record has besides
void write_sparse_tile(const LinearWeight& weight, int64_t n, int64_t outputs, uint8_t* tile, uint8_t* code_sums);
void decode_sparse_numbers(const LinearWeight& weight, int64_t n, int64_t column, int64_t columns, float* panel);

LINNET_INLINE Tiles tiles_of(const LinearWeight& weight) {
    Tiles tiles;
    const bool two_level = weight.super_group_size > 0;
    const bool minimums = weight.offsets == Offsets::minimums;
    const bool scaled = weight.storage != Storage::bf16;
    tiles.bits = weight.bits;
    tiles.eights = divide_up(weight.columns, 8);
    tiles.runs = divide_up(weight.columns, RUN_COLUMNS);
    tiles.groups = scaled ? divide_up(weight.columns, weight.group_size) : 0;
    tiles.supers = two_level ? divide_up(weight.columns, weight.super_group_size) : tiles.groups;
    tiles.run_bytes = run_bytes(tiles.bits);
    tiles.panel_bytes =
        weight.two_of_four ? round_up(TILE_COUNT * sparse_tile_bytes(weight), 64) : tiles.runs * tiles.run_bytes;
    tiles.panels = divide_up(weight.rows, 16 * TILE_COUNT);
    tiles.scale_bytes = weight.scale_type == ScaleType::fp32 ? 4 : 2;
    tiles.minimums_at = tiles.zeros_at = tiles.supers * 16 * tiles.scale_bytes;
    tiles.scale_codes_at = tiles.minimums_at * (minimums ? 2 : 1);
    tiles.minimum_codes_at = tiles.scale_codes_at + (two_level ? tiles.groups * 16 : 0);
    tiles.record_bytes = tiles.minimum_codes_at + (two_level && minimums ? tiles.groups * 16 : 0) +
                         (weight.offsets == Offsets::zero_points ? tiles.groups * 16 : 0);
    tiles.code_sums_at = tiles.record_bytes;
    if (weight.two_of_four) tiles.record_bytes += code_sum_bytes(weight);
    tiles.bytes = tiles.panels * (tiles.panel_bytes + TILE_COUNT * tiles.record_bytes);
    return tiles;
}

LINNET_INLINE const uint8_t* tile_codes(const Tiles& tiles, const void* table, int64_t n) {
    return (const uint8_t*)table + n / (16 * TILE_COUNT) * tiles.panel_bytes;
}
LINNET_INLINE const uint8_t* tile_record(const Tiles& tiles, const void* table, int64_t n) {
    return (const uint8_t*)table + tiles.panels * tiles.panel_bytes + n / 16 * tiles.record_bytes;
}

LINNET_INLINE Floats load_scales(ScaleType type, const uint8_t* p) {
    if (type == ScaleType::fp16) return load_fp16((const uint16_t*)p);
    return type == ScaleType::bf16 ? load_bf16((const uint16_t*)p) : load((const float*)p);
}

// Columns of a span (tiled.cpp): what shares one scale on both sides. Asked before there is an input, and of one.
LINNET_INLINE int64_t span_columns(const LinearWeight& weight, int64_t input_group_size) {
    const int64_t own = smaller(weight.group_size, weight.columns), input = smaller(input_group_size, weight.columns);
    if (weight.super_group_size == 0) return smaller(own, input);
    return smaller(larger(own, input), weight.super_group_size);
}
LINNET_INLINE int64_t span_columns(const LinearWeight& weight, const Int8Input& x) {
    if (weight.super_group_size == 0) return x.group_size;
    return smaller(x.groups_per_scale * x.group_size, weight.super_group_size);
}

// tiled.cpp. Codes of fewer than eight bits as tiles of eight bits lie.
void unpack_block(int bits, const uint8_t* codes, int64_t runs, uint8_t* panel);
// reads_tiles: whether it can, for activations in such groups.
bool reads_tiles(const LinearWeight& weight, int64_t input_group_size);
int64_t scratch_bytes_tiled(const LinearWeight& weight, int64_t rows);
void linear_tiled(const LinearWeight& weight, const Int8Input& x, float* y, int64_t ldy, int64_t rows, int64_t n_begin,
                  int64_t n_end, uint8_t* scratch);

}  // namespace linnet::LINNET_TIER
