// SPDX-License-Identifier: Apache-2.0
#include "tiles.h"

namespace linnet::LINNET_TIER {

int64_t tile_bytes(const LinearWeight& weight) {
    const bool bytes =
        weight.storage == Storage::plain_int8 || (weight.storage == Storage::packed_int && weight.bits == 8);
    const bool nibbles = weight.storage == Storage::packed_int && weight.bits == 4;
    if (!bytes && !nibbles) return 0;
    // Groups are runs of whole eights: what the GEMM reads without expanding.
    if (weight.group_size < weight.columns && weight.group_size % 8 != 0) return 0;
    return tiles_of(weight).bytes;
}

static void write_scales(const LinearWeight& weight, const Tiles& tiles, int64_t n, uint8_t* target) {
    for (int64_t group = 0; group < tiles.groups; ++group)
        for (int64_t i = 0; i < 16; ++i) {
            uint8_t* own = target + (group * 16 + i) * tiles.scale_bytes;
            const int64_t index = (n + i) * weight.scale_row_stride + group * weight.scale_group_stride;
            if (n + i < weight.rows)
                std::memcpy(own, (const uint8_t*)weight.scales + index * tiles.scale_bytes, size_t(tiles.scale_bytes));
            else
                std::memset(own, 0, size_t(tiles.scale_bytes));
        }
}

static void write_zeros(const LinearWeight& weight, const Tiles& tiles, int64_t n, int8_t* target) {
    for (int64_t group = 0; group < tiles.groups; ++group)
        for (int64_t i = 0; i < 16; ++i)
            target[group * 16 + i] =
                n + i < weight.rows ? weight.zero_points[(n + i) * weight.zero_point_row_stride + group] : int8_t(0);
}

void make_tiles(const LinearWeight& weight, void* table, int64_t n_begin, int64_t n_end) {
    const Tiles tiles = tiles_of(weight);
    Int8Input whole = {};
    whole.groups = 1;
    whole.group_size = weight.columns;
    whole.group_bytes = round_up(weight.columns, 8);
    for (int64_t n = n_begin; n < n_end; n += 16) {
        const int64_t outputs = smaller(16, weight.rows - n), tile = n / 16 % TILE_COUNT;
        uint8_t* target =
            (uint8_t*)table + n / (16 * TILE_COUNT) * tiles.panel_bytes + tile * tiles.step_bytes / TILE_COUNT;
        write_scales(weight, tiles, n, tile_scales(tiles, table, n));
        if (weight.zero_points != nullptr) write_zeros(weight, tiles, n, tile_zeros(tiles, table, n));
        if (!tiles.nibbles) {
            expand_codes(weight, whole, n, outputs, 0, tiles.eights, target);
            continue;
        }
        const uint8_t* base = (const uint8_t*)weight.codes + n * weight.code_row_bytes;
        for (int64_t eight = 0; eight < tiles.eights; eight += 16) {
            Ints words[16];
            load_rows(words, base + eight * 4, weight.code_row_bytes, outputs, weight.code_row_bytes - eight * 4);
            transpose(words);
            const int64_t count = smaller(16, tiles.eights - eight);
            for (int64_t w = 0; w < count; ++w)
                store_ints((int32_t*)(target + (eight + w) * tiles.step_bytes), words[w]);
        }
    }
}

// As decode_row of the stored layout: (code - zero) * scale, one rounding. What the head reads in every step is in
// memory already; the same rows as they are stored would have to come into it.
void decode_tiled_row(const LinearWeight& weight, int64_t row, float* y) {
    const Tiles tiles = tiles_of(weight);
    const int64_t tile = row / 16 % TILE_COUNT, lane = row % 16;
    const uint8_t* codes = (const uint8_t*)weight.tiles + row / (16 * TILE_COUNT) * tiles.panel_bytes +
                           tile * tiles.step_bytes / TILE_COUNT + lane * 4;
    LinearWeight stored = weight;
    stored.scales = tile_scales(tiles, (void*)weight.tiles, row - lane);
    const int8_t* zeros = tile_zeros(tiles, (void*)weight.tiles, row - lane);
    for (int64_t group = 0; group < tiles.groups; ++group) {
        const float zero = weight.zero_points != nullptr ? float(zeros[group * 16 + lane]) : 0.0f;
        alignas(64) float scales[16];
        store(scales, load_scales_first(stored, group * 16, 16));
        const int64_t end = smaller(weight.columns, (group + 1) * weight.group_size);
        for (int64_t c = group * weight.group_size; c < end; ++c) {
            const uint8_t* eight = codes + c / 8 * tiles.step_bytes;
            const int64_t place = c % 8 / 2;
            const int32_t code = tiles.nibbles ? eight[place] >> (4 * (c % 2)) & 15 : eight[place + 64 * (c % 2)];
            y[c] = (float(code - constant_zero(weight)) - zero) * scales[lane];
        }
    }
}

}  // namespace linnet::LINNET_TIER
