// SPDX-License-Identifier: Apache-2.0
// Tiles of a weight of which two of every four neighbouring columns are kept (LinearWeight::two_of_four), tile after
// tile of sixteen outputs; what columns and outputs do not fill is zero. Records of scales follow as in tiles.h.
//
//   codes  per stretch of 64 columns 96 bytes of places, then per eight of columns 32 bytes (4 bits) or 64 (8 bits) of
//          unsigned codes. A vector of 32 bytes is sixteen pairs, pair 2 j of output j and 2 j + 1 of output 8 + j: of
//          the eight's first four columns and of its last four. Of the two that are kept of four, the first lies in the
//          low half of a byte and the second in the high one; of 8 bits, firsts lie before seconds.
//          Places are numbers of three bits, in three vectors: which two of four (PLACES). Vector i holds eight 2 i in
//          bits 0 to 2 and eight 2 i + 1 in bits 4 to 6; bit i of eights 6 and 7 lies in its bits 3 and 7.
//   bf16   per run of 32 columns 64 bytes of places, a word per output: two bits per number that is kept, in the order
//          of columns; then per four columns 64 bytes, the two numbers of every output
//
// The record of codes of four bits goes on with the sums of codes of blocks of columns (sum_columns), [..][16] int8 of
// blocks of up to 32 columns, else int16: with them activations can be counted from -128, which keeps their products
// with codes within 16 bits and makes nothing of a zero (sparse_few.cpp).
//
// Three bits say which two of four, where columns would take four: int4 is read at 2.75 bits a weight, not at 3.
#pragma once

#include "tiles.h"

namespace linnet::LINNET_TIER {

constexpr int64_t STRETCH_EIGHTS = 8, STRETCH_COLUMNS = 64, PLACES_BYTES = 96, VECTOR_BYTES = 32;
// Which two of four columns each number stands for.
constexpr uint8_t PLACES[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
constexpr int64_t BF16_RUN_BYTES = 64 * 9;

LINNET_INLINE constexpr int64_t stretch_bytes(int bits) { return PLACES_BYTES + STRETCH_EIGHTS * 8 * bits; }

// Columns whose codes are summed together: a group's, and of long ones 128.
LINNET_INLINE int64_t sum_columns(const LinearWeight& weight) {
    const bool own = weight.group_size < weight.columns && weight.group_size % 128 != 0;
    return own ? weight.group_size : 128;
}
LINNET_INLINE int64_t code_sum_size(const LinearWeight& weight) { return sum_columns(weight) <= 32 ? 1 : 2; }

LINNET_INLINE const uint8_t* sparse_tile(const LinearWeight& weight, const Tiles& tiles, int64_t n) {
    return tile_codes(tiles, weight.tiles, n) + n / 16 % TILE_COUNT * sparse_tile_bytes(weight);
}

// sparse.cpp
// A run of 32 columns of a tile of codes, as tile t of a run of dense tiles (planes.h).
void expand_sparse_run(int bits, const uint8_t* tile, int64_t run, uint8_t* dense, int t);
// Expands some tiles at a time and multiplies those.
int64_t scratch_bytes_expanded(const LinearWeight& weight, int64_t rows);
void linear_expanded(const LinearWeight& weight, const QuantisedRows& x, float* y, int64_t ldy, int64_t rows,
                     int64_t n_begin, int64_t n_end, uint8_t* scratch);

// sparse_few.cpp: few int8 rows meet kept codes as they lie; the same bits.
bool reads_sparse(const LinearWeight& weight, const Int8Input& x, int64_t rows);
int64_t scratch_bytes_sparse_few(const LinearWeight& weight, int64_t rows);
void linear_sparse_few(const LinearWeight& weight, const Int8Input& x, float* y, int64_t ldy, int64_t rows,
                       int64_t n_begin, int64_t n_end, uint8_t* scratch);

}  // namespace linnet::LINNET_TIER
