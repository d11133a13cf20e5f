// SPDX-License-Identifier: Apache-2.0
// Weights whose every row has a table of its own: Storage::codebook without a codebook, in tiles only. Rows lie one
// after another: runs of codes, then the table's 2^bits entries as bf16, padded to 64 bytes.
//
//   bits 4   a run is 128 columns, 64 bytes: two vectors of 64 columns, the first in the low halves of bytes
//   bits 2   256 columns, 64 bytes: four vectors, the first in the lowest bits
//   bits 3   256 columns as bits 2 and 64 bytes more for 512: the high bits of eight vectors
#pragma once

#include "int8.h"

namespace linnet::LINNET_TIER {

constexpr int64_t VECTOR_COLUMNS = 64;

LINNET_INLINE bool has_row_tables(const LinearWeight& weight) {
    return weight.spread && weight.storage == Storage::codebook && weight.codebook == nullptr;
}

const char* refuse_row_tables(const LinearWeight& weight, InputType input, int64_t input_group_size);
int64_t row_table_tile_bytes(const LinearWeight& weight);
void make_row_table_tiles(const LinearWeight& weight, void* tiles, int64_t n_begin, int64_t n_end);
int64_t scratch_bytes_row_tables(const LinearWeight& weight, int64_t rows);
void linear_row_tables(const LinearWeight& weight, const QuantisedRows& x, float* y, int64_t ldy, int64_t rows,
                       int64_t n_begin, int64_t n_end, void* scratch);
// As decode_tiled_panel, decode_tiled_row.
void decode_row_table_panel(const LinearWeight& weight, int64_t n, int64_t column, int64_t columns, float* panel);
void decode_row_table_row(const LinearWeight& weight, int64_t row, float* y);

}  // namespace linnet::LINNET_TIER
