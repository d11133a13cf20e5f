// SPDX-License-Identifier: Apache-2.0
// The AVX2 + FMA + F16C side of simd.h: two halves of eight lanes.
#pragma once

namespace linnet::LINNET_TIER {

struct Floats {
    __m256 a, b;
};
struct Ints {
    __m256i a, b;
};
struct Mask {
    __m256i a, b;  // all ones or all zeros per lane
};

LINNET_INLINE Ints splat_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
LINNET_INLINE Ints lane_numbers() {
    return {_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), _mm256_set_epi32(15, 14, 13, 12, 11, 10, 9, 8)};
}
LINNET_INLINE Mask less(Ints x, Ints y) { return {_mm256_cmpgt_epi32(y.a, x.a), _mm256_cmpgt_epi32(y.b, x.b)}; }
LINNET_INLINE Mask equal(Ints x, Ints y) { return {_mm256_cmpeq_epi32(x.a, y.a), _mm256_cmpeq_epi32(x.b, y.b)}; }
LINNET_INLINE Mask first_lanes(int64_t n) { return less(lane_numbers(), splat_int(int32_t(n > 16 ? 16 : n))); }

LINNET_INLINE Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
// All sixteen is the common case, and Zen's masked stores take dozens of operations.
LINNET_INLINE Floats load_first(const float* p, int64_t n) {
    if (n >= 16) return load(p);
    const Mask m = first_lanes(n);
    return {_mm256_maskload_ps(p, m.a), _mm256_maskload_ps(p + 8, m.b)};
}
LINNET_INLINE void store(float* p, Floats x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
LINNET_INLINE void store_first(float* p, int64_t n, Floats x) {
    if (n >= 16) return store(p, x);
    const Mask m = first_lanes(n);
    _mm256_maskstore_ps(p, m.a, x.a);
    _mm256_maskstore_ps(p + 8, m.b, x.b);
}
LINNET_INLINE Ints load_ints(const int32_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
LINNET_INLINE void store_ints(int32_t* p, Ints x) {
    _mm256_storeu_si256((__m256i*)p, x.a);
    _mm256_storeu_si256((__m256i*)(p + 8), x.b);
}
LINNET_INLINE Floats splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }

LINNET_INLINE Floats operator+(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
LINNET_INLINE Floats operator-(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
LINNET_INLINE Floats operator*(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
LINNET_INLINE Floats operator/(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
LINNET_INLINE Floats fma(Floats x, Floats y, Floats z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
LINNET_INLINE Floats fnma(Floats x, Floats y, Floats z) {
    return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
LINNET_INLINE Floats smallest(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
LINNET_INLINE Floats greatest(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
LINNET_INLINE Floats root(Floats x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
LINNET_INLINE Floats absolute(Floats x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
LINNET_INLINE Floats round_even(Floats x) {
    return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

LINNET_INLINE Mask less(Floats x, Floats y) {
    return {_mm256_castps_si256(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
            _mm256_castps_si256(_mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
LINNET_INLINE Mask equal(Floats x, Floats y) {
    return {_mm256_castps_si256(_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ)),
            _mm256_castps_si256(_mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ))};
}
LINNET_INLINE Floats select(Mask m, Floats x, Floats y) {
    return {_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(m.a)), _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(m.b))};
}
LINNET_INLINE Ints select(Mask m, Ints x, Ints y) {
    return {_mm256_blendv_epi8(y.a, x.a, m.a), _mm256_blendv_epi8(y.b, x.b, m.b)};
}

LINNET_INLINE Ints as_ints(Floats x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
LINNET_INLINE Floats as_floats(Ints x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
LINNET_INLINE Ints to_ints(Floats x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
LINNET_INLINE Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

LINNET_INLINE Ints operator+(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
LINNET_INLINE Ints operator-(Ints x, Ints y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
LINNET_INLINE Ints operator*(Ints x, Ints y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
LINNET_INLINE Ints operator&(Ints x, Ints y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
LINNET_INLINE Ints operator|(Ints x, Ints y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
template <int n>
LINNET_INLINE Ints shift_left(Ints x) {
    return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)};
}
template <int n>
LINNET_INLINE Ints shift_right(Ints x) {
    return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)};
}

// A short row of 16-bit values is copied to a zeroed buffer first: AVX2 has no masked 16-bit load.
struct Halves {
    __m128i a, b;
};
LINNET_INLINE Halves load_halves(const uint16_t* p) {
    return {_mm_loadu_si128((const __m128i*)p), _mm_loadu_si128((const __m128i*)(p + 8))};
}
LINNET_INLINE Halves load_halves_first(const uint16_t* p, int64_t n) {
    if (n >= 16) return load_halves(p);
    alignas(32) uint16_t buffer[16] = {};
    std::memcpy(buffer, p, size_t(n) * 2);
    return load_halves(buffer);
}
LINNET_INLINE void store_halves(uint16_t* p, Halves h) {
    _mm_storeu_si128((__m128i*)p, h.a);
    _mm_storeu_si128((__m128i*)(p + 8), h.b);
}
LINNET_INLINE void store_halves_first(uint16_t* p, int64_t n, Halves h) {
    if (n >= 16) return store_halves(p, h);
    alignas(32) uint16_t buffer[16];
    store_halves(buffer, h);
    std::memcpy(p, buffer, size_t(n) * 2);
}
LINNET_INLINE __m256 widen_bf16(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
LINNET_INLINE __m128i narrow_bf16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i out = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    out = _mm256_blendv_epi8(out, _mm256_set1_epi32(0x7fc0), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(out), _mm256_extracti128_si256(out, 1));
}
LINNET_INLINE Floats load_bf16(const uint16_t* p) {
    const Halves h = load_halves(p);
    return {widen_bf16(h.a), widen_bf16(h.b)};
}
LINNET_INLINE Floats load_bf16_first(const uint16_t* p, int64_t n) {
    const Halves h = load_halves_first(p, n);
    return {widen_bf16(h.a), widen_bf16(h.b)};
}
LINNET_INLINE Floats load_fp16(const uint16_t* p) {
    const Halves h = load_halves(p);
    return {_mm256_cvtph_ps(h.a), _mm256_cvtph_ps(h.b)};
}
LINNET_INLINE Floats load_fp16_first(const uint16_t* p, int64_t n) {
    const Halves h = load_halves_first(p, n);
    return {_mm256_cvtph_ps(h.a), _mm256_cvtph_ps(h.b)};
}
LINNET_INLINE void store_bf16(uint16_t* p, Floats x) { store_halves(p, {narrow_bf16(x.a), narrow_bf16(x.b)}); }
LINNET_INLINE void store_bf16_first(uint16_t* p, int64_t n, Floats x) {
    store_halves_first(p, n, {narrow_bf16(x.a), narrow_bf16(x.b)});
}
LINNET_INLINE Halves narrow_fp16(Floats x) {
    return {_mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
LINNET_INLINE void store_fp16(uint16_t* p, Floats x) { store_halves(p, narrow_fp16(x)); }
LINNET_INLINE void store_fp16_first(uint16_t* p, int64_t n, Floats x) { store_halves_first(p, n, narrow_fp16(x)); }

LINNET_INLINE float total(Floats x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
LINNET_INLINE float top(Floats x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

}  // namespace linnet::LINNET_TIER
