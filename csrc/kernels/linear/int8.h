// SPDX-License-Identifier: Apache-2.0
// Shared by the int8 kernels: the input as they see it, and the expansion of canonical codes, scales and zero points.
#pragma once

#include "kernels.h"

namespace linnet::LINNET_TIER {

// Quantised rows cut into the finer of the weight's and the activations' groups.
struct Int8Input {
    const int8_t* codes;
    int64_t row_bytes;
    const float* scales;
    int64_t scale_stride;
    const int32_t* sums;  // per group
    int64_t sum_stride;
    int64_t group_size, group_bytes, groups;
    int64_t groups_per_scale, groups_per_weight_group;
    int64_t split_offset;  // bytes into the row where the block begins, when the only group is cut into blocks

    int64_t scale_group(int64_t group) const { return groups_per_scale == 1 ? group : group / groups_per_scale; }
    int64_t weight_group(int64_t group) const {
        return groups_per_weight_group == 1 ? group : group / groups_per_weight_group;
    }
};

// Bytes of a panel per run of 8 columns: TILE_COUNT tiles of 16 outputs x 8 codes.
constexpr int64_t PANEL_STEP = 128 * TILE_COUNT;

// gemv.cpp: kernels of the tiers with VNNI for up to 4 rows; false where it does not apply (the GEMM then serves).
int64_t scratch_bytes_gemv(const LinearWeight& weight);
bool try_gemv(const LinearWeight& weight, const Int8Input& x, float* y, int64_t ldy, int64_t rows, int64_t n_begin,
              int64_t n_end, void* scratch);

// What is subtracted from every unsigned code, before any zero point.
LINNET_INLINE int32_t constant_zero(const LinearWeight& weight) {
    if (weight.offsets == Offsets::minimums) return 0;
    return weight.storage == Storage::plain_int8 ? 128 : 1 << (weight.bits - 1);
}

LINNET_INLINE Floats load_scales_first(const LinearWeight& weight, int64_t index, int64_t count) {
    if (weight.scale_type == ScaleType::fp32) return load_first((const float*)weight.scales + index, count);
    const uint16_t* half = (const uint16_t*)weight.scales + index;
    return weight.scale_type == ScaleType::bf16 ? load_bf16_first(half, count) : load_fp16_first(half, count);
}

// scales[group * 16 + i] of outputs n + i as fp32; zero for i >= outputs.
LINNET_INLINE void expand_scales(const LinearWeight& weight, int64_t n, int64_t outputs, float* scales) {
    const int64_t groups = divide_up(weight.columns, weight.group_size);
    for (int64_t g = 0; g < groups; g += 16) {
        const int64_t count = smaller(16, groups - g);
        Ints rows[16];
        if (weight.scale_group_stride == 1 || groups == 1) {
            for (int i = 0; i < 16; ++i)
                rows[i] = i >= outputs
                              ? splat_int(0)
                              : as_ints(load_scales_first(weight, (n + i) * weight.scale_row_stride + g, count));
            transpose(rows);
            for (int64_t j = 0; j < count; ++j) store_ints((int32_t*)scales + (g + j) * 16, rows[j]);
        } else {
            for (int64_t j = 0; j < count; ++j) {
                for (int64_t i = 0; i < 16; ++i) {
                    const int64_t index = (n + i) * weight.scale_row_stride + (g + j) * weight.scale_group_stride;
                    if (i < outputs)
                        store_first(scales + (g + j) * 16 + i, 1, load_scales_first(weight, index, 1));
                    else
                        scales[(g + j) * 16 + i] = 0.0f;
                }
            }
        }
    }
}

// As expand_scales: minus the zero point of the unsigned codes.
LINNET_INLINE void expand_minus_zeros(const LinearWeight& weight, int64_t n, int64_t outputs, int32_t* zeros) {
    const int64_t groups = divide_up(weight.columns, weight.group_size);
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t i = 0; i < 16; ++i)
            zeros[g * 16 + i] =
                i >= outputs ? 0
                             : -constant_zero(weight) - weight.zero_points[(n + i) * weight.zero_point_row_stride + g];
}

// Unsigned code of one column, by bits (any width up to 8, codes that cross bytes too).
LINNET_INLINE uint8_t unsigned_code(const LinearWeight& weight, const uint8_t* row, int64_t column) {
    if (weight.storage == Storage::plain_int8) return uint8_t(row[column] ^ 0x80);
    const int64_t bit = column * weight.bits;
    uint32_t word = row[bit / 8];
    if (bit % 8 + weight.bits > 8) word |= uint32_t(row[bit / 8 + 1]) << 8;
    return uint8_t((word >> (bit % 8)) & ((1u << weight.bits) - 1));
}

// Eights [eight, eight + 8) of a row counted from `column`, as 64 bytes in quantised-row order; any bits, any groups.
LINNET_INLINE Ints expand_slowly(const LinearWeight& weight, const Int8Input& x, const uint8_t* row, int64_t column,
                                 int64_t eight) {
    alignas(64) uint8_t bytes[64] = {};
    for (int64_t i = 0; i < 64; ++i) {
        const int64_t place = eight * 8 + i;
        const int64_t within = place % x.group_bytes;
        const int64_t own = column + place / x.group_bytes * x.group_size + within;
        if (within < x.group_size && own < weight.columns) bytes[i] = unsigned_code(weight, row, own);
    }
    return evens_before_odds(load_ints((const int32_t*)bytes));
}

// Sum of sixteen codes.
LINNET_INLINE int32_t sum_sixteen(const int8_t* codes) {
#if defined(LINNET_AVX512) || defined(LINNET_AVX2)
    const __m128i lifted = _mm_xor_si128(_mm_loadu_si128((const __m128i*)codes), _mm_set1_epi8(-128));
    const __m128i sums = _mm_sad_epu8(lifted, _mm_setzero_si128());
    return _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4) - 16 * 128;
#else
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += codes[i];
    return sum;
#endif
}

// Sums of the codes per weight group, where the weight's groups are finer than the activations'.
[[maybe_unused]] static __attribute__((noinline)) void sum_codes(const Int8Input& x, int64_t rows, int64_t columns,
                                                                 int32_t* sums) {
    for (int64_t row = 0; row < rows; ++row) {
        const int8_t* codes = x.codes + row * x.row_bytes;
        if (x.group_size % 16 == 0) {  // zeros follow the last column
            for (int64_t group = 0; group < x.groups; ++group) {
                const int64_t first = group * x.group_size, end = smaller(first + x.group_size, columns);
                int32_t sum = 0;
                for (int64_t i = first; i < end; i += 16) sum += sum_sixteen(codes + i);
                sums[row * x.groups + group] = sum;
            }
            continue;
        }
        for (int64_t group = 0; group < x.groups; ++group) {
            const int64_t first = group * x.group_size;
            const int64_t end = round_up(smaller(first + x.group_size, columns), 8);
            int32_t sum = 0;
            for (int64_t i = first; i < end; ++i) sum += codes[i];
            sums[row * x.groups + group] = sum;
        }
    }
}

// From so many rows on, y leaves the caches before anybody reads it: it is written past them.
static constexpr int64_t STREAMED_ROWS = 128;

LINNET_INLINE bool can_stream(int64_t rows, int64_t outputs, const float* y, int64_t ldy) {
    return rows >= STREAMED_ROWS && outputs % 16 == 0 && ((uintptr_t)y | uintptr_t(ldy * 4)) % 64 == 0;
}

// The finished sums [rows][16 tiles], with the bias, to `outputs` columns of y; finish_stores follows streamed ones.
[[maybe_unused]] static __attribute__((noinline)) void write_rows(const float* totals, int64_t tiles, int64_t rows,
                                                                  int64_t outputs, const float* bias, float* y,
                                                                  int64_t ldy, bool streamed) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t n = 0; n < outputs; n += 16) {
            Floats total = load(totals + row * 16 * tiles + n);
            if (bias != nullptr) total = total + load_first(bias + n, outputs - n);
            if (streamed)
                store_past_caches(y + row * ldy + n, total);
            else
                store_first(y + row * ldy + n, outputs - n, total);
        }
    }
}
LINNET_INLINE void write_outputs(const float* totals, int64_t tiles, int64_t rows, int64_t outputs, const float* bias,
                                 float* y, int64_t ldy) {
    const bool streamed = can_stream(rows, outputs, y, ldy);
    write_rows(totals, tiles, rows, outputs, bias, y, ldy, streamed);
    if (streamed) finish_stores();
}

// Bytes 0 and 1 of every lane to bytes 0 and 2.
LINNET_INLINE Ints spread(Ints a) {
    const Ints low = a & splat_int(0xffff);
    return (low | shift_left<8>(low)) & splat_int(0x00ff00ff);
}

// 2 bits: a word is 16 columns, byte b holds columns 4 b .. 4 b + 3. Two eights go to `panel`.
LINNET_INLINE void expand_two_bits(Ints word, int64_t eights, uint8_t* panel) {
    const Ints mask = splat_int(0x03030303);
    const Ints codes[4] = {word & mask, shift_right_unsigned<2>(word) & mask, shift_right_unsigned<4>(word) & mask,
                           shift_right_unsigned<6>(word) & mask};
    for (int odd = 0; odd < 2; ++odd) {
        store_ints((int32_t*)(panel + 64 * odd), spread(codes[odd]) | shift_left<8>(spread(codes[odd + 2])));
        if (eights < 2) continue;
        const Ints high[2] = {shift_right_unsigned<16>(codes[odd]), shift_right_unsigned<16>(codes[odd + 2])};
        store_ints((int32_t*)(panel + PANEL_STEP + 64 * odd), spread(high[0]) | shift_left<8>(spread(high[1])));
    }
}

// Of eight 3-bit codes in 24 bits, numbers 0, 2, 4, 6 to one byte each.
LINNET_INLINE Ints every_other_of_three_bits(Ints a) {
    return (a & splat_int(7)) | (shift_left<2>(a) & splat_int(7 << 8)) | (shift_left<4>(a) & splat_int(7 << 16)) |
           (shift_left<6>(a) & splat_int(7 << 24));
}

// 3 bits: 32 columns in three words, an eight is 24 bits.
LINNET_INLINE void expand_three_bits(const Ints* words, int64_t eights, uint8_t* panel) {
    const Ints fields[4] = {words[0], shift_right_unsigned<24>(words[0]) | shift_left<8>(words[1]),
                            shift_right_unsigned<16>(words[1]) | shift_left<16>(words[2]),
                            shift_right_unsigned<8>(words[2])};
    for (int64_t i = 0; i < smaller(4, eights); ++i) {
        store_ints((int32_t*)(panel + i * PANEL_STEP), every_other_of_three_bits(fields[i]));
        store_ints((int32_t*)(panel + i * PANEL_STEP + 64),
                   every_other_of_three_bits(shift_right_unsigned<3>(fields[i])));
    }
}

// One tile's part of a panel, outputs n .. n + 15: for every run of 8 columns from `column`, 64 bytes of even and 64 of
// odd columns, four bytes per output, PANEL_STEP apart. Codes past the last column meet zero activations, so what they
// hold does not matter.
LINNET_INLINE void expand_codes(const LinearWeight& weight, const Int8Input& x, int64_t n, int64_t outputs,
                                int64_t column, int64_t eights, uint8_t* panel) {
    const uint8_t* base = (const uint8_t*)weight.codes + n * weight.code_row_bytes;
    const int64_t row_bytes = weight.storage == Storage::plain_int8 ? weight.columns : weight.code_row_bytes;
    const Ints nibble = splat_int(0x0f0f0f0f);
    const bool aligned = x.group_bytes == x.group_size || x.groups == 1;
    if (aligned && !weight.spread && weight.storage == Storage::packed_int && weight.bits == 4) {
        for (int64_t eight = 0; eight < eights; eight += 16) {
            Ints words[16];
            const int64_t offset = column / 2 + eight * 4;
            load_rows(words, base + offset, weight.code_row_bytes, outputs, row_bytes - offset);
            transpose(words);
            const int64_t count = smaller(16, eights - eight);
            for (int64_t w = 0; w < count; ++w) {
                store_ints((int32_t*)(panel + (eight + w) * PANEL_STEP), words[w] & nibble);
                store_ints((int32_t*)(panel + (eight + w) * PANEL_STEP + 64),
                           shift_right_unsigned<4>(words[w]) & nibble);
            }
        }
        return;
    }
    if (aligned && !weight.spread && weight.storage == Storage::packed_int && weight.bits < 4 && column % 32 == 0) {
        const int64_t chunk = weight.bits == 2 ? 32 : 16;  // eights in 64 or 48 bytes
        for (int64_t eight = 0; eight < eights; eight += chunk) {
            Ints words[16];
            const int64_t offset = (column + eight * 8) * weight.bits / 8;
            load_rows(words, base + offset, weight.code_row_bytes, outputs, row_bytes - offset);
            transpose(words);
            const int64_t count = smaller(chunk, eights - eight);
            uint8_t* target = panel + eight * PANEL_STEP;
            if (weight.bits == 2)
                for (int64_t w = 0; 2 * w < count; ++w)
                    expand_two_bits(words[w], count - 2 * w, target + w * 2 * PANEL_STEP);
            else
                for (int64_t w = 0; 4 * w < count; ++w)
                    expand_three_bits(words + 3 * w, count - 4 * w, target + w * 4 * PANEL_STEP);
        }
        return;
    }
    const bool bytes = aligned && (weight.storage == Storage::plain_int8 || weight.bits == 8 || weight.spread);
    // Bytes of signed codes become unsigned: within their bits, the sign is turned.
    const bool turned = weight.storage == Storage::plain_int8 ||
                        (weight.spread && weight.storage == Storage::packed_int && weight.offsets != Offsets::minimums);
    // Of one bit, -1 and 1, the second bit tells.
    const bool binary = weight.spread && weight.bits == 1;
    const Ints flip = splat_int(turned ? int32_t(0x01010101u << (binary ? 1 : weight.bits - 1)) : 0);
    const uint32_t own_bits = binary ? 2 : (1u << weight.bits) - 1;
    const Ints mask = splat_int(weight.spread ? int32_t(own_bits * 0x01010101u) : -1);
    for (int64_t eight = 0; eight < eights; eight += 8) {
        Ints words[16];
        const int64_t offset = column + eight * 8;
        if (bytes) {
            load_rows(words, base + offset, weight.code_row_bytes, outputs, row_bytes - offset);
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) words[i] = evens_before_odds(exclusive_or(words[i] & mask, flip));
        } else {
            for (int i = 0; i < 16; ++i)
                words[i] = i < outputs ? expand_slowly(weight, x, base + i * weight.code_row_bytes, column, eight)
                                       : splat_int(0);
        }
        transpose(words);
        const int64_t count = smaller(8, eights - eight);
        for (int64_t w = 0; w < 2 * count; ++w)
            store_ints((int32_t*)(panel + (eight + w / 2) * PANEL_STEP + w % 2 * 64), words[w]);
    }
}

}  // namespace linnet::LINNET_TIER
