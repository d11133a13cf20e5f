// SPDX-License-Identifier: Apache-2.0
// Integer codes as the GEMM wants them, in the order of its reading: for 16 * TILE_COUNT outputs after each other, for
// every run of 8 columns, one tile per 16 outputs. A tile of 4 bits is the transposed canonical words (64 bytes: byte j
// of output i holds columns 2 j and 2 j + 1), a tile of bytes is what expand_codes makes (64 bytes of even columns, 64
// of odd ones). Scales follow the codes, as stored, [tile][group][16], and zero points, if any, follow the scales.
#pragma once

#include "int8.h"

namespace linnet::LINNET_TIER {

struct Tiles {
    bool nibbles;
    int64_t eights, groups;
    int64_t step_bytes;   // of one run of 8 columns, TILE_COUNT tiles
    int64_t panel_bytes;  // codes of 16 * TILE_COUNT outputs
    int64_t panels;
    int64_t scale_bytes;  // of one scale
    int64_t bytes;
};

LINNET_INLINE Tiles tiles_of(const LinearWeight& weight) {
    Tiles tiles;
    tiles.nibbles = weight.storage == Storage::packed_int && weight.bits == 4;
    tiles.eights = divide_up(weight.columns, 8);
    tiles.groups = divide_up(weight.columns, weight.group_size);
    tiles.step_bytes = TILE_COUNT * (tiles.nibbles ? 64 : 128);
    tiles.panel_bytes = tiles.eights * tiles.step_bytes;
    tiles.panels = divide_up(weight.rows, 16 * TILE_COUNT);
    tiles.scale_bytes = weight.scale_type == ScaleType::fp32 ? 4 : 2;
    tiles.bytes =
        tiles.panels * (tiles.panel_bytes +
                        TILE_COUNT * tiles.groups * 16 * (tiles.scale_bytes + (weight.zero_points != nullptr ? 1 : 0)));
    return tiles;
}

LINNET_INLINE uint8_t* tile_scales(const Tiles& tiles, void* table, int64_t n) {
    return (uint8_t*)table + tiles.panels * tiles.panel_bytes + n * tiles.groups * tiles.scale_bytes;
}

LINNET_INLINE int8_t* tile_zeros(const Tiles& tiles, void* table, int64_t n) {
    return (int8_t*)tile_scales(tiles, table, tiles.panels * 16 * TILE_COUNT) + n * tiles.groups;
}

}  // namespace linnet::LINNET_TIER
