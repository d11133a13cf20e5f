// SPDX-License-Identifier: Apache-2.0
// The tier's LinearKernels: which kernel serves which weight and input.
#include "panels.h"
#include "tables.h"

namespace linnet::LINNET_TIER {

#define LINNET_TEXT_(x) #x
#define LINNET_TEXT(x) LINNET_TEXT_(x)

#if defined(LINNET_BF16)
static constexpr bool HAS_BF16 = true;
#else
static constexpr bool HAS_BF16 = false;
#endif

static bool native_bf16(const LinearWeight& weight) { return HAS_BF16 && weight.storage == Storage::bf16; }

static const char* refuse(const LinearWeight& weight, InputType input, int64_t input_group_size) {
    if (has_row_tables(weight)) return refuse_row_tables(weight, input, input_group_size);
    const bool packed = weight.storage == Storage::packed_int;
    if (weight.two_of_four)
        if (const char* reason = refuse_sparse(weight, input)) return reason;
    if (weight.two_of_four && weight.storage == Storage::bf16) return nullptr;
    if (weight.spread && (weight.bits < 1 || weight.bits > 8 || weight.bits == 7))
        return "weights read as tiles have 1, 2, 3, 4, 5, 6 or 8 bits";
    if (weight.spread && weight.group_size < weight.columns && weight.group_size % 8 != 0)
        return "weights read as tiles have groups of a multiple of 8 columns";
    if (packed && !weight.spread && weight.bits != 2 && weight.bits != 3 && weight.bits != 4 && weight.bits != 8)
        return "packed integer weights have 2, 3, 4 or 8 bits";
    if (weight.storage == Storage::codebook && weight.bits != 4) return "a codebook has 16 entries, codes of 4 bits";
    if (weight.group_size <= 0 && weight.scales != nullptr) return "a weight with scales needs its group size";
    return input == InputType::int8 ? refuse_int8(weight, input_group_size) : nullptr;
}

static const char* name(const LinearWeight& weight, InputType input) {
    if (weight.two_of_four) {
        if (input == InputType::int8)
            return weight.bits == 8 ? "sparse_int8_x_int8_" LINNET_TEXT(LINNET_TIER)
                                    : "sparse_int4_x_int8_" LINNET_TEXT(LINNET_TIER);
        if (weight.storage == Storage::bf16)
            return input == InputType::bf16 ? "sparse_bf16_x_bf16_fp32_" LINNET_TEXT(LINNET_TIER)
                                            : "sparse_bf16_x_fp32_" LINNET_TEXT(LINNET_TIER);
    }
    if (input == InputType::int8) {
        if (has_row_tables(weight)) return "tables_x_int8_" LINNET_TEXT(LINNET_TIER);
        if (weight.storage == Storage::plain_int8) return "int8_x_int8_" LINNET_TEXT(LINNET_TIER);
        switch (weight.bits) {
            case 1:
                return "int1_x_int8_" LINNET_TEXT(LINNET_TIER);
            case 2:
                return "int2_x_int8_" LINNET_TEXT(LINNET_TIER);
            case 3:
                return "int3_x_int8_" LINNET_TEXT(LINNET_TIER);
            case 4:
                return "int4_x_int8_" LINNET_TEXT(LINNET_TIER);
            case 5:
                return "int5_x_int8_" LINNET_TEXT(LINNET_TIER);
            case 6:
                return "int6_x_int8_" LINNET_TEXT(LINNET_TIER);
            default:
                return "packed_int8_x_int8_" LINNET_TEXT(LINNET_TIER);
        }
    }
    if (input == InputType::bf16 && becomes_bf16(weight))
        return weight.storage == Storage::codebook ? "codebook_x_bf16_" LINNET_TEXT(LINNET_TIER)
                                                   : "fp8_x_bf16_" LINNET_TEXT(LINNET_TIER);
    if (input == InputType::bf16)
        return native_bf16(weight) ? "bf16_x_bf16_" LINNET_TEXT(LINNET_TIER)
                                   : "decoded_x_bf16_fp32_" LINNET_TEXT(LINNET_TIER);
    return "decoded_x_fp32_" LINNET_TEXT(LINNET_TIER);
}

static int64_t column_unit(const LinearWeight& weight, InputType input) {
    const bool panels = input == InputType::bf16 && (native_bf16(weight) || becomes_bf16(weight));
    return panels ? BF16_PANEL : 16 * TILE_COUNT;
}

static ItemShape item_shape(const LinearWeight& weight, InputType input, int64_t input_group_size, int64_t rows) {
    if (input == InputType::int8 && weight.tiles != nullptr && rows >= PANEL_ITEM.rows / 2 && !has_row_tables(weight) &&
        reads_panels(weight, input_group_size, rows))
        return PANEL_ITEM;
    return {rows, column_unit(weight, input)};
}

static int64_t scratch_bytes(const LinearWeight& weight, InputType input, int64_t rows) {
    if (input == InputType::int8 && has_row_tables(weight)) return scratch_bytes_row_tables(weight, rows);
    if (input == InputType::int8) return scratch_bytes_int8(weight, rows);
    if (input == InputType::bf16 && native_bf16(weight)) return scratch_bytes_bf16(weight, rows);
    if (input == InputType::bf16 && becomes_bf16(weight)) return scratch_bytes_narrow(weight, rows);
    return scratch_bytes_fp32(weight);
}

static void bf16(const LinearWeight& weight, const uint16_t* x, int64_t ldx, float* y, int64_t ldy, int64_t rows,
                 int64_t n_begin, int64_t n_end, void* scratch) {
    if (native_bf16(weight))
        linear_bf16(weight, x, ldx, y, ldy, rows, n_begin, n_end, scratch);
    else if (becomes_bf16(weight))
        linear_narrow(weight, x, ldx, y, ldy, rows, n_begin, n_end, scratch);
    else
        linear_fp32_of_bf16(weight, x, ldx, y, ldy, rows, n_begin, n_end, scratch);
}

static void int8(const LinearWeight& weight, const QuantisedRows& x, float* y, int64_t ldy, int64_t rows,
                 int64_t n_begin, int64_t n_end, void* scratch) {
    const auto linear = has_row_tables(weight) ? linear_row_tables : linear_int8;
    linear(weight, x, y, ldy, rows, n_begin, n_end, scratch);
}

static void any_row(const LinearWeight& weight, int64_t row, float* y) {
    if (weight.tiles != nullptr)
        decode_tiled_row(weight, row, y);
    else
        decode_row(weight, row, y);
}

const LinearKernels& linear_kernels() {
    static constexpr LinearKernels table = {
        .refuse = refuse,
        .name = name,
        .tile_bytes = tile_bytes,
        .make_tiles = make_tiles,
        .column_unit = column_unit,
        .item_shape = item_shape,
        .scratch_bytes = scratch_bytes,
        .linear_fp32 = linear_fp32,
        .linear_bf16 = bf16,
        .linear_int8 = int8,
        .quantised_row_bytes = quantised_row_bytes,
        .quantise_rows = quantise_rows,
        .quantise_groups = quantise_groups,
        .dequantise_rows = dequantise_rows,
        .decode_row = any_row,
        .cast_bf16 = cast_bf16,
        .cast_fp16 = cast_fp16,
        .widen_bf16 = widen_bf16,
        .widen_fp16 = widen_fp16,
    };
    return table;
}

}  // namespace linnet::LINNET_TIER
