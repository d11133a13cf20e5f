// SPDX-License-Identifier: Apache-2.0
// Activations: int8 codes per token and group, and element casts.
//
// scale = max|x| / 127.5, code = clamp(round_to_even(x / scale), -128, 127): compressed-tensors' definition, as for
// weights; codes of 4 bits, 7.5 and -8 to 7, lie in bytes too. A static scale is given; only what is not finite changes
// it, so that NaN is not lost. The division is a true one, so that codes equal the reference's bit for bit.
// Codes of a group are stored in eights, 0 2 4 6 1 3 5 7: the low nibbles of a canonical int4 word are its even columns
// and the high ones its odd columns, so that a dot product of bytes meets the right codes without moving the weights.
// A group whose size is not a multiple of 8 is padded with zero codes to one; a row to a multiple of 128 bytes.
#include "kernels.h"

namespace linnet::LINNET_TIER {

int64_t quantised_row_bytes(int64_t columns, int64_t group_size) {
    const int64_t bytes = round_up(divide_up(columns, group_size) * round_up(group_size, 8), 128);
    // Rows a power of two apart share a few places of the caches, and push each other out.
    return bytes % 1024 == 0 ? bytes + 128 : bytes;
}

static const uint8_t EIGHT_ORDER[8] = {0, 2, 4, 6, 1, 3, 5, 7};

// Sixteen codes (or, count == 8, the first eight) in stored order.
LINNET_INLINE void store_codes(int8_t* p, Ints codes, int64_t count) {
#if defined(LINNET_AVX512)
    const __m512i order = _mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_permutexvar_epi32(order, codes.v));
    if (count == 16)
        _mm_storeu_si128((__m128i*)p, bytes);
    else
        _mm_storel_epi64((__m128i*)p, bytes);
#elif defined(LINNET_AVX2)
    // A quarter's four codes go where they belong among eight bytes; the other quarter fills the rest.
    const __m256i order = _mm256_setr_epi8(0, 8, -1, -1, 4, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                           -1, -1, 0, 8, -1, -1, 4, 12, -1, -1, -1, -1, -1, -1, -1, -1);
    const auto eight = [order](__m256i lanes) __attribute__((always_inline)) {
        const __m256i placed = _mm256_shuffle_epi8(lanes, order);
        return _mm_or_si128(_mm256_castsi256_si128(placed), _mm256_extracti128_si256(placed, 1));
    };
    _mm_storel_epi64((__m128i*)p, eight(codes.a));
    if (count == 16) _mm_storel_epi64((__m128i*)(p + 8), eight(codes.b));
#else
    alignas(64) int32_t lanes[16];
    store_ints(lanes, codes);
    for (int64_t i = 0; i < count; ++i) p[i] = int8_t(lanes[(i & 8) + EIGHT_ORDER[i & 7]]);
#endif
}

#if defined(LINNET_AVX512)
LINNET_INLINE int32_t sum_of_lanes(Ints a) { return _mm512_reduce_add_epi32(a.v); }
LINNET_INLINE int32_t greatest_lane(Ints a) { return _mm512_reduce_max_epi32(a.v); }
#elif defined(LINNET_AVX2)
LINNET_INLINE int32_t sum_of_lanes(Ints a) {
    const __m256i eight = _mm256_add_epi32(a.a, a.b);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x0e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0x01)));
}
LINNET_INLINE int32_t greatest_lane(Ints a) {
    const __m256i eight = _mm256_max_epi32(a.a, a.b);
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x0e));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0x01)));
}
#else
LINNET_INLINE int32_t sum_of_lanes(Ints a) {
    alignas(64) int32_t lanes[16];
    store_ints(lanes, a);
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += lanes[i];
    return sum;
}

LINNET_INLINE int32_t greatest_lane(Ints a) {
    alignas(64) int32_t lanes[16];
    store_ints(lanes, a);
    int32_t peak = lanes[0];
    for (int i = 1; i < 16; ++i) peak = lanes[i] > peak ? lanes[i] : peak;
    return peak;
}
#endif

// Groups [first_group, last_group) of one row; x begins at the first of those columns.
static void quantise_row(const float* x, const QuantisedRows& out, int64_t row, int64_t first_group,
                         int64_t last_group) {
    int8_t* codes = out.codes + row * out.row_bytes;
    const int64_t stride = round_up(out.group_size, 8);
    const float largest = float(int32_t(out.half_range));
    const Floats least_code = splat(-largest - 1.0f), most_code = splat(largest);
    for (int64_t group = first_group; group < last_group; ++group, x += out.group_size) {
        const int64_t size = smaller(out.group_size, out.columns - group * out.group_size);
        Ints peak = splat_int(0);  // as bits, where NaN is greater than infinity and so reaches the scale
        for (int64_t c = 0; c < size; c += 16) {
            const Ints magnitude = as_ints(absolute(load_first(x + c, size - c)));
            peak = select(less(peak, magnitude), magnitude, peak);
        }
        const float greatest_size = bits_to_float(uint32_t(greatest_lane(peak)));
        const bool given = out.static_scale != 0.0f && greatest_size < __builtin_inff();
        const float scale = given ? out.static_scale : greatest_size / out.half_range;
        const Floats divisor = splat(scale != 0.0f ? scale : 1.0f);
        Ints sum = splat_int(0);
        const int64_t padded = round_up(size, 8);
        for (int64_t c = 0; c < padded; c += 16) {
            const Floats ratio = load_first(x + c, size - c) / divisor;
            const Ints code = to_ints(greatest(least_code, smallest(most_code, ratio)));
            sum = sum + code;
            store_codes(codes + group * stride + c, code, smaller(16, padded - c));
        }
        out.scales[row * out.groups + group] = scale;
        out.sums[row * out.groups + group] = sum_of_lanes(sum);
        if (group == out.groups - 1) {
            const int64_t used = group * stride + padded;
            std::memset(codes + used, 0, size_t(out.row_bytes - used));
        }
    }
}

void quantise_rows(const float* x, int64_t ldx, const QuantisedRows& out, int64_t row_begin, int64_t row_end) {
    for (int64_t row = row_begin; row < row_end; ++row) quantise_row(x + row * ldx, out, row, 0, out.groups);
}

void quantise_groups(const float* x, int64_t ldx, const QuantisedRows& out, int64_t rows, int64_t first_group,
                     int64_t last_group) {
    for (int64_t row = 0; row < rows; ++row) quantise_row(x + row * ldx, out, row, first_group, last_group);
}

void dequantise_rows(const QuantisedRows& x, float* y, int64_t ldy, int64_t row_begin, int64_t row_end) {
    const int64_t stride = round_up(x.group_size, 8);
    for (int64_t row = row_begin; row < row_end; ++row) {
        for (int64_t group = 0; group < x.groups; ++group) {
            const int8_t* codes = x.codes + row * x.row_bytes + group * stride;
            const float scale = x.scales[row * x.groups + group];
            const int64_t first = group * x.group_size;
            const int64_t size = smaller(x.group_size, x.columns - first);
            for (int64_t i = 0; i < round_up(size, 8); ++i) {
                const int64_t column = (i & ~int64_t(7)) + EIGHT_ORDER[i & 7];
                if (column < size) y[row * ldy + first + column] = float(codes[i]) * scale;
            }
        }
    }
}

void cast_bf16(const float* x, uint16_t* y, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) store_bf16_first(y + i, n - i, load_first(x + i, n - i));
}
void cast_fp16(const float* x, uint16_t* y, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) store_fp16_first(y + i, n - i, load_first(x + i, n - i));
}
void widen_bf16(const uint16_t* x, float* y, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) store_first(y + i, n - i, load_bf16_first(x + i, n - i));
}
void widen_fp16(const uint16_t* x, float* y, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) store_first(y + i, n - i, load_fp16_first(x + i, n - i));
}

}  // namespace linnet::LINNET_TIER
