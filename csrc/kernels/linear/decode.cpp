// SPDX-License-Identifier: Apache-2.0
// Stored codes as fp32: float(code - zero_point) * float(scale), one rounding, as PackedWeight.dequantize defines it.
#include "kernels.h"

namespace linnet::LINNET_TIER {

LINNET_INLINE float half_to_float(const uint16_t* p, ScaleType type) {
    if (type == ScaleType::bf16) return bf16_to_float(*p);
    alignas(64) float lanes[16];
    store(lanes, load_fp16_first(p, 1));
    return lanes[0];
}

LINNET_INLINE float scale_value(const LinearWeight& weight, int64_t row, int64_t group) {
    const int64_t index = row * weight.scale_row_stride + group * weight.scale_group_stride;
    if (weight.scale_type == ScaleType::fp32) return ((const float*)weight.scales)[index];
    return half_to_float((const uint16_t*)weight.scales + index, weight.scale_type);
}

LINNET_INLINE float zero_value(const LinearWeight& weight, int64_t row, int64_t group) {
    return weight.zero_points == nullptr ? 0.0f : float(weight.zero_points[row * weight.zero_point_row_stride + group]);
}

// Lane i: bits [bits * i, bits * (i + 1)) of a window of at most 64 bits.
template <int bits>
LINNET_INLINE Ints unpack_window(uint64_t window) {
    const Ints halves = select(first_lanes(8), splat_int(int32_t(window)), splat_int(int32_t(window >> (8 * bits))));
    const Ints mask = splat_int((1 << bits) - 1);
#if defined(LINNET_AVX512)
    const __m512i shifts = _mm512_setr_epi32(0, bits, 2 * bits, 3 * bits, 4 * bits, 5 * bits, 6 * bits, 7 * bits, 0,
                                             bits, 2 * bits, 3 * bits, 4 * bits, 5 * bits, 6 * bits, 7 * bits);
    return Ints{_mm512_srlv_epi32(halves.v, shifts)} & mask;
#elif defined(LINNET_AVX2)
    const __m256i shifts = _mm256_setr_epi32(0, bits, 2 * bits, 3 * bits, 4 * bits, 5 * bits, 6 * bits, 7 * bits);
    return Ints{_mm256_srlv_epi32(halves.a, shifts), _mm256_srlv_epi32(halves.b, shifts)} & mask;
#else
    Ints out = halves;
    for (int i = 0; i < 16; ++i) out.v[i] = int32_t(uint32_t(halves.v[i]) >> (bits * (i & 7)));
    return out & mask;
#endif
}

LINNET_INLINE uint64_t load_window(const uint8_t* p, int64_t bytes) {
    uint64_t window = 0;
    if (bytes == 8)
        std::memcpy(&window, p, 8);
    else
        std::memcpy(&window, p, size_t(bytes));
    return window;
}

// Sixteen bytes as integers 0 .. 255, zeros from `count` on.
LINNET_INLINE Ints load_bytes(const uint8_t* p, int64_t count) {
    uint8_t bytes[16] = {};
    if (count == 16)
        std::memcpy(bytes, p, 16);
    else
        std::memcpy(bytes, p, size_t(count));
#if defined(LINNET_AVX512)
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)bytes))};
#elif defined(LINNET_AVX2)
    return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)bytes)),
            _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(bytes + 8)))};
#else
    Ints out = splat_int(0);
    for (int i = 0; i < 16; ++i) out.v[i] = bytes[i];
    return out;
#endif
}

// 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity; 0x7f and 0xff are not a number. Exponent and mantissa
// moved into place are the value times 2^-120, denormals too.
LINNET_INLINE Floats fp8_values(Ints code) {
    const Ints magnitude = code & splat_int(0x7f);
    const Ints value = as_ints(as_floats(shift_left<20>(magnitude)) * splat(0x1p120f));
    const Ints number = select(equal(magnitude, splat_int(0x7f)), splat_int(0x7fc00000), value);
    return as_floats(number | shift_left<24>(code & splat_int(0x80)));
}

// The stored numbers of columns [column, column + count), count <= 16, before scaling; column is a multiple of 16, so
// that codes begin at a byte.
LINNET_INLINE Floats unscaled(const LinearWeight& weight, const uint8_t* row, int64_t column, int64_t count) {
    const uint8_t* p = row + column * weight.bits / 8;
    const int64_t bytes = divide_up(count * weight.bits, 8);
    switch (weight.storage) {
        case Storage::fp32:
            return load_first((const float*)row + column, count);
        case Storage::bf16:
            return load_bf16_first((const uint16_t*)row + column, count);
        case Storage::fp16:
            return load_fp16_first((const uint16_t*)row + column, count);
        case Storage::plain_int8: {
            const Ints flipped = exclusive_or(load_bytes(p, count), splat_int(0x80));
            return to_floats(flipped - splat_int(128));
        }
        case Storage::fp8_e4m3:
            return fp8_values(load_bytes(p, count));
        case Storage::codebook:
            return look_up(weight.codebook, unpack_window<4>(load_window(p, bytes)));
        case Storage::packed_int:
            break;
    }
    Ints codes;
    if (weight.bits == 4)
        codes = unpack_window<4>(load_window(p, bytes));
    else if (weight.bits == 8)
        codes = load_bytes(p, count);
    else if (weight.bits == 3)
        codes = unpack_window<3>(load_window(p, bytes));
    else
        codes = unpack_window<2>(load_window(p, bytes));
    return to_floats(codes - splat_int(1 << (weight.bits - 1)));
}

// The group of sixteen columns, or -1 if they lie in several.
LINNET_INLINE int64_t group_of(const LinearWeight& weight, int64_t column) {
    if (weight.scales == nullptr || weight.group_size >= weight.columns) return 0;
    const int64_t last = smaller(column + 15, weight.columns - 1);
    const int64_t group = column / weight.group_size;
    return last / weight.group_size == group ? group : -1;
}

// Columns past the last are zero: their codes mean nothing.
LINNET_INLINE Floats decode_sixteen(const LinearWeight& weight, int64_t row, int64_t column, int64_t group) {
    const int64_t count = smaller(16, weight.columns - column);
    if (count <= 0) return splat(0.0f);
    Floats value = unscaled(weight, (const uint8_t*)weight.codes + row * weight.code_row_bytes, column, count);
    if (weight.scales == nullptr) return value;
    if (group >= 0) {
        if (weight.zero_points != nullptr) value = value - splat(zero_value(weight, row, group));
        value = value * splat(scale_value(weight, row, group));
    } else {
        alignas(64) float scales[16] = {};
        alignas(64) float zeros[16] = {};
        for (int64_t i = 0; i < count; ++i) {
            const int64_t own = (column + i) / weight.group_size;
            scales[i] = scale_value(weight, row, own);
            zeros[i] = zero_value(weight, row, own);
        }
        value = (value - load(zeros)) * load(scales);
    }
    return count == 16 ? value : select(first_lanes(count), value, splat(0.0f));
}

// What a lane's lowest bits stand for, before scaling.
template <Storage storage, int bits>
LINNET_INLINE Floats code_values(const LinearWeight& weight, Ints word) {
    if constexpr (storage == Storage::codebook) return look_up(weight.codebook, word);
    const Ints code = word & splat_int((1 << bits) - 1);
    if constexpr (storage == Storage::fp8_e4m3) return fp8_values(code);
    if constexpr (storage == Storage::plain_int8)
        return to_floats(exclusive_or(code, splat_int(0x80)) - splat_int(128));
    return to_floats(code - splat_int(1 << (bits - 1)));
}

// decode_panel where words hold whole codes: the words are transposed before they are unpacked, a register then is one
// column of sixteen outputs, and a group's scales are fetched once.
template <Storage storage, int bits>
static void decode_words(const LinearWeight& weight, int64_t n, int64_t outputs, int64_t column, int64_t columns,
                         float* panel) {
    constexpr int64_t word_columns = 32 / bits;
    const uint8_t* base = (const uint8_t*)weight.codes + n * weight.code_row_bytes;
    const int64_t row_bytes = divide_up(weight.columns * bits, 8);
    alignas(64) float scales[16] = {}, zeros[16] = {};
    int64_t group = -1;
    for (int64_t first = 0; first < columns; first += 16 * word_columns) {
        const int64_t offset = (column + first) * bits / 8;
        Ints words[16];
        load_rows(words, base + offset, weight.code_row_bytes, outputs, row_bytes - offset);
        // Sixteen short streams are more than the hardware's prefetchers follow; the next outputs' come in turn.
        for (int64_t i = 0; i < 16; ++i)
            __builtin_prefetch(base + offset + (16 * TILE_COUNT + i) * weight.code_row_bytes, 0, 2);
        transpose(words);
        const int64_t count = smaller(16, (columns - first) / word_columns);
        for (int64_t w = 0; w < count; ++w) {
            const int64_t c = first + w * word_columns;
            const int64_t own = (column + c) / weight.group_size;
            if (own != group) {
                group = own;
                for (int64_t i = 0; i < outputs; ++i) scales[i] = scale_value(weight, n + i, group);
                for (int64_t i = 0; i < outputs && weight.zero_points != nullptr; ++i)
                    zeros[i] = zero_value(weight, n + i, group);
            }
            Ints word = words[w];
#pragma GCC unroll 16
            for (int64_t k = 0; k < word_columns; ++k) {
                Floats value = code_values<storage, bits>(weight, word);
                if (weight.zero_points != nullptr) value = value - load(zeros);
                store(panel + (c + k) * 16, value * load(scales));
                word = shift_right_unsigned<bits>(word);
            }
        }
    }
}

// False where codes straddle words, a word straddles groups or the panel the last column.
static bool try_decode_words(const LinearWeight& weight, int64_t n, int64_t outputs, int64_t column, int64_t columns,
                             float* panel) {
    if (weight.scales == nullptr || column + columns > weight.columns) return false;
    if (weight.group_size < weight.columns && weight.group_size % 16 != 0) return false;
    if (weight.storage == Storage::codebook)
        decode_words<Storage::codebook, 4>(weight, n, outputs, column, columns, panel);
    else if (weight.storage == Storage::fp8_e4m3)
        decode_words<Storage::fp8_e4m3, 8>(weight, n, outputs, column, columns, panel);
    else if (weight.storage == Storage::plain_int8)
        decode_words<Storage::plain_int8, 8>(weight, n, outputs, column, columns, panel);
    else if (weight.storage == Storage::packed_int && weight.bits == 8)
        decode_words<Storage::packed_int, 8>(weight, n, outputs, column, columns, panel);
    else if (weight.storage == Storage::packed_int && weight.bits == 4)
        decode_words<Storage::packed_int, 4>(weight, n, outputs, column, columns, panel);
    else if (weight.storage == Storage::packed_int && weight.bits == 2)
        decode_words<Storage::packed_int, 2>(weight, n, outputs, column, columns, panel);
    else
        return false;
    return true;
}

// Whole rows of sixteen outputs in fp32, bf16 or fp16; bf16 is transposed in pairs of columns and widened afterwards.
template <Storage storage>
static void decode_dense(const LinearWeight& weight, int64_t n, int64_t column, int64_t columns, float* panel) {
    constexpr int64_t bytes = storage == Storage::fp32 ? 4 : 2;
    constexpr int64_t step = storage == Storage::bf16 ? 32 : 16;
    const uint8_t* base = (const uint8_t*)weight.codes + n * weight.code_row_bytes;
    const uint8_t* next = base + 16 * TILE_COUNT * weight.code_row_bytes;
    for (int64_t first = 0; first < columns; first += step) {
        const int64_t offset = (column + first) * bytes;
        Ints words[16];
        if constexpr (storage == Storage::fp16)
            for (int64_t i = 0; i < 16; ++i)
                words[i] = as_ints(load_fp16((const uint16_t*)(base + offset + i * weight.code_row_bytes)));
        else
            load_rows(words, base + offset, weight.code_row_bytes, 16, weight.columns * bytes - offset);
        for (int64_t i = 0; i < 16; ++i) __builtin_prefetch(next + offset + i * weight.code_row_bytes, 0, 2);
        transpose(words);
        float* target = panel + first * 16;
        if constexpr (storage == Storage::bf16) {
            const int64_t pairs = smaller(16, (columns - first) / 2);
            for (int64_t i = 0; i < pairs; ++i) {
                store(target + i * 32, as_floats(shift_left<16>(words[i])));
                store(target + i * 32 + 16, as_floats(words[i] & splat_int(int32_t(0xffff0000))));
            }
        } else {
#pragma GCC unroll 16
            for (int64_t i = 0; i < 16; ++i) store(target + i * 16, as_floats(words[i]));
        }
    }
}

// False where the panel passes the last output or column.
static bool try_decode_dense(const LinearWeight& weight, int64_t n, int64_t outputs, int64_t column, int64_t columns,
                             float* panel) {
    if (weight.scales != nullptr || outputs != 16 || column + columns > weight.columns) return false;
    if (weight.storage == Storage::bf16)
        decode_dense<Storage::bf16>(weight, n, column, columns, panel);
    else if (weight.storage == Storage::fp16)
        decode_dense<Storage::fp16>(weight, n, column, columns, panel);
    else if (weight.storage == Storage::fp32)
        decode_dense<Storage::fp32>(weight, n, column, columns, panel);
    else
        return false;
    return true;
}

void decode_panel(const LinearWeight& weight, int64_t n, int64_t outputs, int64_t column, int64_t columns,
                  float* panel) {
    if (weight.spread) return decode_tiled_panel(weight, n, column, columns, panel);
    if (try_decode_words(weight, n, outputs, column, columns, panel)) return;
    if (try_decode_dense(weight, n, outputs, column, columns, panel)) return;
    for (int64_t c = 0; c < columns; c += 16) {
        Ints rows[16];
        const int64_t group = group_of(weight, column + c);
        for (int i = 0; i < 16; ++i)
            rows[i] = i < outputs ? as_ints(decode_sixteen(weight, n + i, column + c, group)) : splat_int(0);
        transpose(rows);
        for (int i = 0; i < 16; ++i) store(panel + (c + i) * 16, as_floats(rows[i]));
    }
}

void decode_row(const LinearWeight& weight, int64_t row, float* y) {
    for (int64_t c = 0; c < weight.columns; c += 16)
        store_first(y + c, weight.columns - c, decode_sixteen(weight, row, c, group_of(weight, c)));
}

}  // namespace linnet::LINNET_TIER
