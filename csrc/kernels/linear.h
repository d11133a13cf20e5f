// SPDX-License-Identifier: Apache-2.0
// Between the executor and the linear kernels: what a weight looks like in memory, what quantised rows look like,
// and the functions each instruction-set tier provides. Plain data only; everything is borrowed.
//
// Bits of y[r][n] depend on row r, weight row n and the tier alone: not on rows, n_begin, n_end or scratch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tiers.h"

namespace linnet {

enum class Storage : int32_t {
    fp32,
    bf16,
    fp16,
    packed_int,  // compressed-tensors pack-quantized: int32 words along columns, code + 2^(bits-1) unsigned, low bits
                 // first
    plain_int8,  // int-quantized: one signed byte per code
    fp8_e4m3,    // float-quantized: one byte per code
    codebook,    // linnet: packed as packed_int with 4 bits, unsigned index into LinearWeight::codebook
};
enum class ScaleType : int32_t { fp32, bf16, fp16 };
// What a group has besides its scale: weight = code * scale, (code - zero_point) * scale or code * scale - minimum.
enum class Offsets : int32_t { none, zero_points, minimums };
enum class InputType : int32_t { fp32, bf16, int8 };  // int8: QuantisedRows

struct LinearWeight {
    Storage storage = Storage::fp32;
    int32_t bits = 32;            // of one code
    int64_t rows = 0;             // outputs
    int64_t columns = 0;          // inputs
    int64_t group_size = 0;       // columns per scale; columns itself for channel and tensor scales
    const void* codes = nullptr;  // row n starts at codes + n * code_row_bytes, not always 64-byte aligned
    int64_t code_row_bytes = 0;
    const void* scales =
        nullptr;  // element index n * scale_row_stride + group * scale_group_stride; null for dense storage
    ScaleType scale_type = ScaleType::fp32;
    int64_t scale_row_stride = 0;  // 0: one scale for the whole tensor
    int64_t scale_group_stride = 0;
    // Signed-code convention: weight = (code - zero_point) * scale with code in [-2^(bits-1), 2^(bits-1) - 1].
    // prepare unpacks compressed-tensors' zero points into this int8 [rows, groups] table; null when symmetric.
    const int8_t* zero_points = nullptr;
    int64_t zero_point_row_stride = 0;
    Offsets offsets = Offsets::none;  // which of the two there are, wherever they lie
    // Unsigned codes then: weight = code * scale - minimum. Same type and strides as scales.
    const void* minimums = nullptr;
    // Two levels: a group's scale is scale_codes[n * groups + group] times the scale of its super group, which then is
    // what `scales` (and `minimums`) hold. Codes are signed bytes, of minimums 0 .. 127. 0: one level.
    int64_t super_group_size = 0;
    const int8_t* scale_codes = nullptr;
    const int8_t* minimum_codes = nullptr;
    const float* codebook = nullptr;  // [16]: weight = codebook[index] * scale; null: none, or every row has its own
    const float* bias = nullptr;      // [rows] or null, added after the sum
    const void* tiles = nullptr;  // codes and scales again, in the tier's order of reading (see tile_bytes), or null
    // Storages packed_int and codebook: every code is a byte of its own (int8, or uint8 with minimums and codebooks).
    // Only make_tiles reads such codes; everything else needs tiles.
    bool spread = false;
    // Of every four neighbouring columns at most two are other than zero, and tiles hold just two: codes are spread
    // then, or bf16.
    bool two_of_four = false;
    int64_t first_row = 0;  // the row that codes, scales and offsets begin with; other than 0 for make_tiles only

    bool readable() const { return tiles != nullptr || !spread; }
};

// Rows of int8 activations, symmetric: x[r][c] ~ code * scales[r][c / group_size]. The order of codes inside a group is
// the tier's own business; row_bytes comes from LinearKernels::quantised_row_bytes.
struct QuantisedRows {
    int8_t* codes = nullptr;
    int64_t row_bytes = 0;    // multiple of 64
    float* scales = nullptr;  // [rows, groups]
    int32_t* sums = nullptr;  // [rows, groups]: sum of the codes of a group, for unsigned weight codes and zero points
    int64_t columns = 0;
    int64_t groups = 0;
    int64_t group_size = 0;     // the last group may be shorter
    float half_range = 127.5f;  // codes are -n - 1 to n, its whole part; 127 in a narrow range, of 4 bits 7.5
    float static_scale = 0.0f;  // of every group; 0: max|x| / half_range
};

// Of one call of a kernel: how many rows it likes at most, and outputs at least.
struct ItemShape {
    int64_t rows, outputs;
};

struct LinearKernels {
    // null when `input` x `weight` is supported on a fast path, else a sentence saying why not.
    // fp32 input is supported for every storage (codes are expanded in cache), so it never refuses a valid weight.
    const char* (*refuse)(const LinearWeight& weight, InputType input, int64_t input_group_size);
    // Name for reports, for instance "gemv_int4_group_vnni".
    const char* (*name)(const LinearWeight& weight, InputType input);
    // An integer weight in this tier's order of reading: 64-byte aligned memory that the caller owns, and may map from
    // a file that an earlier process wrote. 0 bytes where the canonical layout is read. Bits of y are the same either
    // way.
    int64_t (*tile_bytes)(const LinearWeight& weight);
    // Fills the tiles of rows [n_begin, n_end), of the whole weight's tiles; whole column units; zeros past the last
    // row.
    void (*make_tiles)(const LinearWeight& weight, void* tiles, int64_t n_begin, int64_t n_end);
    // Work is handed out in runs of whole units of weight rows; n_begin is a multiple of it (n_end too, or rows).
    int64_t (*column_unit)(const LinearWeight& weight, InputType input);
    // Into what shape `rows` rows are best cut, where there is work for all.
    ItemShape (*item_shape)(const LinearWeight& weight, InputType input, int64_t input_group_size, int64_t rows);
    // Per-thread scratch (64-byte aligned, contents undefined) for any call with at most `rows` rows.
    int64_t (*scratch_bytes)(const LinearWeight& weight, InputType input, int64_t rows);

    // y[r * ldy + n] = sum_c x[r][c] * weight[n][c] + bias[n], r in [0, rows), n in [n_begin, n_end); ld in elements.
    void (*linear_fp32)(const LinearWeight& weight, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t rows,
                        int64_t n_begin, int64_t n_end, void* scratch);
    // A codebook's scaled values are rounded to bf16 here (not with fp32 rows).
    void (*linear_bf16)(const LinearWeight& weight, const uint16_t* x, int64_t ldx, float* y, int64_t ldy, int64_t rows,
                        int64_t n_begin, int64_t n_end, void* scratch);
    void (*linear_int8)(const LinearWeight& weight, const QuantisedRows& x, float* y, int64_t ldy, int64_t rows,
                        int64_t n_begin, int64_t n_end, void* scratch);

    // Bytes of one row of codes, a multiple of 64 (padding codes are zero).
    int64_t (*quantised_row_bytes)(int64_t columns, int64_t group_size);
    // Rows [row_begin, row_end) of x (fp32) into the same rows of out; symmetric, a scale per group.
    void (*quantise_rows)(const float* x, int64_t ldx, const QuantisedRows& out, int64_t row_begin, int64_t row_end);
    // Groups [first_group, last_group) of rows [0, rows) of out; x begins at the first of those columns.
    void (*quantise_groups)(const float* x, int64_t ldx, const QuantisedRows& out, int64_t rows, int64_t first_group,
                            int64_t last_group);
    void (*dequantise_rows)(const QuantisedRows& x, float* y, int64_t ldy, int64_t row_begin, int64_t row_end);
    // One row of a weight of any storage as fp32 [columns] (embedding look-up).
    void (*decode_row)(const LinearWeight& weight, int64_t row, float* y);
    // Element casts, round to nearest even; n elements.
    void (*cast_bf16)(const float* x, uint16_t* y, int64_t n);
    void (*cast_fp16)(const float* x, uint16_t* y, int64_t n);
    void (*widen_bf16)(const uint16_t* x, float* y, int64_t n);
    void (*widen_fp16)(const uint16_t* x, float* y, int64_t n);
};

// Each tier defines its own table in kernels/linear/table.cpp (compiled once per tier): LINNET_TIER::linear_kernels().
LINNET_TIERS(LINNET_DECLARE_TABLE, LinearKernels, linear_kernels)

// Build conventions: every csrc/kernels/*/*.cpp and csrc/roofs/*.cpp is a kernel source (compiled once per tier, see
// simd.h), except files named *_bind.cpp (nanobind, compiled once) and *_host.cpp (plain C++, compiled once, no kernel
// code). Everything else is plain C++, compiled once.

}  // namespace linnet
