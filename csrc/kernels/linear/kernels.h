// SPDX-License-Identifier: Apache-2.0
// The linear kernels of one tier, by source file; table.cpp chooses between them.
#pragma once

#include "kernels/linear.h"
#include "lanes.h"

namespace linnet::LINNET_TIER {

// rows.cpp
int64_t quantised_row_bytes(int64_t columns, int64_t group_size);
void quantise_rows(const float* x, int64_t ldx, const QuantisedRows& out, int64_t row_begin, int64_t row_end);
void quantise_groups(const float* x, int64_t ldx, const QuantisedRows& out, int64_t rows, int64_t first_group,
                     int64_t last_group);
void dequantise_rows(const QuantisedRows& x, float* y, int64_t ldy, int64_t row_begin, int64_t row_end);
void cast_bf16(const float* x, uint16_t* y, int64_t n);
void cast_fp16(const float* x, uint16_t* y, int64_t n);
void widen_bf16(const uint16_t* x, float* y, int64_t n);
void widen_fp16(const uint16_t* x, float* y, int64_t n);

// decode.cpp: stored codes as numbers
// panel[c * 16 + i] = weight[n + i][column + c], zero for i >= outputs; c in [0, columns), columns a multiple of 16 may
// run past the weight's last column (zeros).
void decode_panel(const LinearWeight& weight, int64_t n, int64_t outputs, int64_t column, int64_t columns,
                  float* panel);
void decode_row(const LinearWeight& weight, int64_t row, float* y);

// fp32.cpp: any storage times fp32 or bf16 rows, fp32 arithmetic
int64_t scratch_bytes_fp32(const LinearWeight& weight);
void linear_fp32(const LinearWeight& weight, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t rows,
                 int64_t n_begin, int64_t n_end, void* scratch);
void linear_fp32_of_bf16(const LinearWeight& weight, const uint16_t* x, int64_t ldx, float* y, int64_t ldy,
                         int64_t rows, int64_t n_begin, int64_t n_end, void* scratch);

// bf16.cpp: bf16 storage times bf16 rows through vdpbf16ps (top tier only)
constexpr int64_t BF16_PANEL = 64;  // outputs that are expanded together: its unit of work
int64_t scratch_bytes_bf16(const LinearWeight& weight, int64_t rows);
void linear_bf16(const LinearWeight& weight, const uint16_t* x, int64_t ldx, float* y, int64_t ldy, int64_t rows,
                 int64_t n_begin, int64_t n_end, void* scratch);

// narrow.cpp: fp8 and codebooks times bf16 rows, as bf16 (top tier only)
bool becomes_bf16(const LinearWeight& weight);
void round_to_bf16(float* values, int64_t count);
int64_t scratch_bytes_narrow(const LinearWeight& weight, int64_t rows);
void linear_narrow(const LinearWeight& weight, const uint16_t* x, int64_t ldx, float* y, int64_t ldy, int64_t rows,
                   int64_t n_begin, int64_t n_end, void* scratch);

// sparse.cpp, sparse_bf16.cpp: 2:4 weights, which are tiles only (the rest of them: sparse.h)
const char* refuse_sparse(const LinearWeight& weight, InputType input);
bool reads_sparse_numbers(const LinearWeight& weight, int64_t rows);  // bf16
int64_t scratch_bytes_sparse_numbers(const LinearWeight& weight);
void linear_sparse_numbers(const LinearWeight& weight, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t rows,
                           int64_t n_begin, int64_t n_end);

// int8.cpp, tiles.cpp, tiled.cpp: integer storage times quantised rows
const char* refuse_int8(const LinearWeight& weight, int64_t input_group_size);
int64_t tile_bytes(const LinearWeight& weight);
void make_tiles(const LinearWeight& weight, void* tiles, int64_t n_begin, int64_t n_end);
void decode_tiled_row(const LinearWeight& weight, int64_t row, float* y);
// As decode_panel, of outputs n .. n + 15; n and column are whole tiles and runs.
void decode_tiled_panel(const LinearWeight& weight, int64_t n, int64_t column, int64_t columns, float* panel);
int64_t scratch_bytes_int8(const LinearWeight& weight, int64_t rows);
void linear_int8(const LinearWeight& weight, const QuantisedRows& x, float* y, int64_t ldy, int64_t rows,
                 int64_t n_begin, int64_t n_end, void* scratch);

}  // namespace linnet::LINNET_TIER
