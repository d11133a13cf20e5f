// SPDX-License-Identifier: Apache-2.0
// The AVX-512 (F, BW, VL, DQ) side of simd.h.
#pragma once

namespace linnet::LINNET_TIER {

struct Floats {
    __m512 v;
};
struct Ints {
    __m512i v;
};
struct Mask {
    __mmask16 m;
};

LINNET_INLINE Mask first_lanes(int64_t n) { return {__mmask16(n >= 16 ? 0xffff : (1u << n) - 1u)}; }
LINNET_INLINE Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
LINNET_INLINE Floats load_first(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n).m, p)}; }
LINNET_INLINE void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
LINNET_INLINE void store_first(float* p, int64_t n, Floats a) { _mm512_mask_storeu_ps(p, first_lanes(n).m, a.v); }
LINNET_INLINE Ints load_ints(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
LINNET_INLINE void store_ints(int32_t* p, Ints a) { _mm512_storeu_si512(p, a.v); }

LINNET_INLINE Floats splat(float x) { return {_mm512_set1_ps(x)}; }
LINNET_INLINE Ints splat_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
LINNET_INLINE Ints lane_numbers() { return {_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)}; }

LINNET_INLINE Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
LINNET_INLINE Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
LINNET_INLINE Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
LINNET_INLINE Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
LINNET_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
LINNET_INLINE Floats fnma(Floats a, Floats b, Floats c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
LINNET_INLINE Floats smallest(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
LINNET_INLINE Floats greatest(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
LINNET_INLINE Floats root(Floats a) { return {_mm512_sqrt_ps(a.v)}; }
LINNET_INLINE Floats absolute(Floats a) { return {_mm512_abs_ps(a.v)}; }
LINNET_INLINE Floats round_even(Floats a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

LINNET_INLINE Mask less(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
LINNET_INLINE Mask equal(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
LINNET_INLINE Mask less(Ints a, Ints b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
LINNET_INLINE Mask equal(Ints a, Ints b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
LINNET_INLINE Floats select(Mask m, Floats a, Floats b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }
LINNET_INLINE Ints select(Mask m, Ints a, Ints b) { return {_mm512_mask_blend_epi32(m.m, b.v, a.v)}; }

LINNET_INLINE Ints as_ints(Floats a) { return {_mm512_castps_si512(a.v)}; }
LINNET_INLINE Floats as_floats(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
LINNET_INLINE Ints to_ints(Floats a) { return {_mm512_cvtps_epi32(a.v)}; }
LINNET_INLINE Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }

LINNET_INLINE Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
LINNET_INLINE Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
LINNET_INLINE Ints operator*(Ints a, Ints b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
LINNET_INLINE Ints operator&(Ints a, Ints b) { return {_mm512_and_si512(a.v, b.v)}; }
LINNET_INLINE Ints operator|(Ints a, Ints b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int n>
LINNET_INLINE Ints shift_left(Ints a) {
    return {_mm512_slli_epi32(a.v, n)};
}
template <int n>
LINNET_INLINE Ints shift_right(Ints a) {
    return {_mm512_srai_epi32(a.v, n)};
}

LINNET_INLINE Floats widen_bf16(__m256i raw) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
}
LINNET_INLINE Floats load_bf16(const uint16_t* p) { return widen_bf16(_mm256_loadu_si256((const __m256i*)p)); }
LINNET_INLINE Floats load_bf16_first(const uint16_t* p, int64_t n) {
    return widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(n).m, p));
}
LINNET_INLINE Floats load_fp16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
LINNET_INLINE Floats load_fp16_first(const uint16_t* p, int64_t n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n).m, p))};
}
// Integer rounding, not VCVTNEPS2BF16: that instruction flushes denormals, and bits must match the other tiers'
// meaning.
LINNET_INLINE __m256i narrow_bf16(Floats a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, rounded, _mm512_set1_epi32(0x7fc0)));
}
LINNET_INLINE void store_bf16(uint16_t* p, Floats a) { _mm256_storeu_si256((__m256i*)p, narrow_bf16(a)); }
LINNET_INLINE void store_bf16_first(uint16_t* p, int64_t n, Floats a) {
    _mm256_mask_storeu_epi16(p, first_lanes(n).m, narrow_bf16(a));
}
LINNET_INLINE __m256i narrow_fp16(Floats a) {
    return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
LINNET_INLINE void store_fp16(uint16_t* p, Floats a) { _mm256_storeu_si256((__m256i*)p, narrow_fp16(a)); }
LINNET_INLINE void store_fp16_first(uint16_t* p, int64_t n, Floats a) {
    _mm256_mask_storeu_epi16(p, first_lanes(n).m, narrow_fp16(a));
}

LINNET_INLINE float total(Floats a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
LINNET_INLINE float top(Floats a) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

}  // namespace linnet::LINNET_TIER
