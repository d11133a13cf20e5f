// SPDX-License-Identifier: Apache-2.0
// Stored codes as fp32: float(code - zero_point) * float(scale), one rounding, as PackedWeight.dequantize defines it.
#include "kernels.h"

namespace linnet::LINNET_TIER {

// Dettmers et al. 2023 (QLoRA), appendix E.
static const float NF4[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

// 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity; 0x7f and 0xff are not a number.
static float fp8_value(uint8_t bits) {
    const uint32_t sign = uint32_t(bits & 0x80) << 24;
    const uint32_t exponent = (bits >> 3) & 15;
    const uint32_t mantissa = bits & 7;
    if ((bits & 0x7f) == 0x7f) return bits_to_float(sign | 0x7fc00000u);
    if (exponent == 0) return bits_to_float(float_to_bits(float(mantissa) * 0.001953125f) | sign);
    return bits_to_float(sign | ((exponent + 120) << 23) | (mantissa << 20));
}

static float scale_value(const LinearWeight& weight, int64_t row, int64_t group) {
    const int64_t index = row * weight.scale_row_stride + group * weight.scale_group_stride;
    if (weight.scale_type == ScaleType::fp32) return ((const float*)weight.scales)[index];
    const uint16_t* half = (const uint16_t*)weight.scales + index;
    alignas(64) float lanes[16];
    store(lanes, weight.scale_type == ScaleType::bf16 ? load_bf16_first(half, 1) : load_fp16_first(half, 1));
    return lanes[0];
}

static int32_t zero_value(const LinearWeight& weight, int64_t row, int64_t group) {
    return weight.zero_points == nullptr ? 0 : weight.zero_points[row * weight.zero_point_row_stride + group];
}

// Signed codes of `count` <= 16 columns from `column` (a multiple of 16), which never straddle a byte at 16.
LINNET_INLINE Ints packed_codes(const uint8_t* row, int32_t bits, int64_t column, int64_t count, int32_t offset) {
    alignas(64) int32_t lanes[16] = {};
    uint64_t window[2] = {};
    const uint8_t* p = row + column * bits / 8;
    std::memcpy(window, p, size_t(divide_up(count * bits, 8)));
    if (bits == 4) {
        for (int i = 0; i < 16; ++i) lanes[i] = int32_t((window[0] >> (4 * i)) & 15) - offset;
    } else if (bits == 8) {
        uint8_t bytes[16];
        std::memcpy(bytes, window, 16);
        for (int i = 0; i < 16; ++i) lanes[i] = int32_t(bytes[i]) - offset;
    } else {  // 2 and 3 bits: sixteen codes fit one window
        const uint64_t mask = (uint64_t(1) << bits) - 1;
        for (int i = 0; i < 16; ++i) lanes[i] = int32_t((window[0] >> (bits * i)) & mask) - offset;
    }
    return load_ints(lanes);
}

// The stored numbers of columns [column, column + 16) of a row before scaling; column is a multiple of 16.
LINNET_INLINE Floats unscaled(const LinearWeight& weight, const uint8_t* row, int64_t column, int64_t count) {
    alignas(64) float lanes[16] = {};
    switch (weight.storage) {
        case Storage::fp32:
            return load_first((const float*)row + column, count);
        case Storage::bf16:
            return load_bf16_first((const uint16_t*)row + column, count);
        case Storage::fp16:
            return load_fp16_first((const uint16_t*)row + column, count);
        case Storage::packed_int:
            return to_floats(packed_codes(row, weight.bits, column, count, 1 << (weight.bits - 1)));
        case Storage::plain_int8:
            for (int64_t i = 0; i < count; ++i) lanes[i] = float(((const int8_t*)row)[column + i]);
            return load(lanes);
        case Storage::fp8_e4m3:
            for (int64_t i = 0; i < count; ++i) lanes[i] = fp8_value(row[column + i]);
            return load(lanes);
        case Storage::nf4:
            for (int64_t i = 0; i < count; ++i)
                lanes[i] = NF4[(row[(column + i) / 2] >> (4 * ((column + i) & 1))) & 15];
            return load(lanes);
    }
    return load(lanes);
}

// Scales and zero points of sixteen columns that may lie in several groups.
LINNET_INLINE Floats scaled(const LinearWeight& weight, int64_t row, int64_t column, int64_t count, Floats value) {
    if (weight.scales == nullptr) return value;
    const int64_t group = column / weight.group_size;
    if ((column + count - 1) / weight.group_size == group) {
        if (weight.zero_points != nullptr) value = value - splat(float(zero_value(weight, row, group)));
        value = value * splat(scale_value(weight, row, group));
    } else {
        alignas(64) float scales[16] = {};
        alignas(64) float zeros[16] = {};
        for (int64_t i = 0; i < count; ++i) {
            const int64_t own = (column + i) / weight.group_size;
            scales[i] = scale_value(weight, row, own);
            zeros[i] = float(zero_value(weight, row, own));
        }
        value = (value - load(zeros)) * load(scales);
    }
    return value;
}

LINNET_INLINE Floats decode_sixteen(const LinearWeight& weight, int64_t row, int64_t column) {
    const int64_t count = smaller(16, weight.columns - column);
    if (count <= 0) return splat(0.0f);
    const uint8_t* codes = (const uint8_t*)weight.codes + row * weight.code_row_bytes;
    return scaled(weight, row, column, count, unscaled(weight, codes, column, count));
}

void decode_panel(const LinearWeight& weight, int64_t n, int64_t outputs, int64_t column, int64_t columns, float* panel) {
    for (int64_t c = 0; c < columns; c += 16) {
        Ints rows[16];
        for (int i = 0; i < 16; ++i)
            rows[i] = i < outputs ? as_ints(decode_sixteen(weight, n + i, column + c)) : splat_int(0);
        transpose(rows);
        for (int i = 0; i < 16; ++i) store(panel + (c + i) * 16, as_floats(rows[i]));
    }
}

void decode_row(const LinearWeight& weight, int64_t row, float* y) {
    for (int64_t c = 0; c < weight.columns; c += 16)
        store_first(y + c, weight.columns - c, decode_sixteen(weight, row, c));
}

}  // namespace linnet::LINNET_TIER
