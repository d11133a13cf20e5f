// SPDX-License-Identifier: Apache-2.0
// The portable side of simd.h: GCC vector extensions, which become whatever the target has (SSE2 on x86-64).
// fma here rounds twice: bits are promised per tier, not across tiers.
#pragma once

namespace linnet::LINNET_TIER {

typedef float FloatLanes __attribute__((vector_size(64)));
typedef int32_t IntLanes __attribute__((vector_size(64)));

struct Floats {
    FloatLanes v;
};
struct Ints {
    IntLanes v;
};
struct Mask {
    IntLanes v;  // all ones or all zeros per lane
};

LINNET_INLINE Floats splat(float x) { return {x - FloatLanes{}}; }
LINNET_INLINE Ints splat_int(int32_t x) { return {x - IntLanes{}}; }
LINNET_INLINE Ints lane_numbers() { return {IntLanes{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}}; }
LINNET_INLINE Mask first_lanes(int64_t n) { return {lane_numbers().v < splat_int(int32_t(n > 16 ? 16 : n)).v}; }

LINNET_INLINE Floats load(const float* p) {
    Floats x;
    std::memcpy(&x.v, p, 64);
    return x;
}
LINNET_INLINE Floats load_first(const float* p, int64_t n) {
    Floats x = {};
    std::memcpy(&x.v, p, size_t(n > 16 ? 16 : n) * 4);
    return x;
}
LINNET_INLINE void store(float* p, Floats x) { std::memcpy(p, &x.v, 64); }
LINNET_INLINE void store_first(float* p, int64_t n, Floats x) { std::memcpy(p, &x.v, size_t(n > 16 ? 16 : n) * 4); }
LINNET_INLINE Ints load_ints(const int32_t* p) {
    Ints x;
    std::memcpy(&x.v, p, 64);
    return x;
}
LINNET_INLINE void store_ints(int32_t* p, Ints x) { std::memcpy(p, &x.v, 64); }

LINNET_INLINE Floats operator+(Floats x, Floats y) { return {x.v + y.v}; }
LINNET_INLINE Floats operator-(Floats x, Floats y) { return {x.v - y.v}; }
LINNET_INLINE Floats operator*(Floats x, Floats y) { return {x.v * y.v}; }
LINNET_INLINE Floats operator/(Floats x, Floats y) { return {x.v / y.v}; }
LINNET_INLINE Floats fma(Floats x, Floats y, Floats z) { return {x.v * y.v + z.v}; }
LINNET_INLINE Floats fnma(Floats x, Floats y, Floats z) { return {z.v - x.v * y.v}; }
LINNET_INLINE Mask less(Floats x, Floats y) { return {x.v < y.v}; }
LINNET_INLINE Mask equal(Floats x, Floats y) { return {x.v == y.v}; }
LINNET_INLINE Mask less(Ints x, Ints y) { return {x.v < y.v}; }
LINNET_INLINE Mask equal(Ints x, Ints y) { return {x.v == y.v}; }
LINNET_INLINE Ints as_ints(Floats x) { return {(IntLanes)x.v}; }
LINNET_INLINE Floats as_floats(Ints x) { return {(FloatLanes)x.v}; }
LINNET_INLINE Ints select(Mask m, Ints x, Ints y) { return {(m.v & x.v) | (~m.v & y.v)}; }
LINNET_INLINE Floats select(Mask m, Floats x, Floats y) { return as_floats(select(m, as_ints(x), as_ints(y))); }
LINNET_INLINE Floats smallest(Floats x, Floats y) { return select(less(x, y), x, y); }
LINNET_INLINE Floats greatest(Floats x, Floats y) { return select(less(y, x), x, y); }
LINNET_INLINE Floats absolute(Floats x) { return as_floats({as_ints(x).v & 0x7fffffff}); }
LINNET_INLINE Floats root(Floats x) {
    for (int i = 0; i < LANES; ++i) x.v[i] = __builtin_sqrtf(x.v[i]);
    return x;
}
// Adding 1.5 * 2^23 leaves no room for a fraction, so the addition itself rounds to nearest even.
LINNET_INLINE Floats round_even(Floats x) {
    const Floats magic = splat(12582912.0f);
    return select(less(absolute(x), splat(4194304.0f)), (x + magic) - magic, x);
}
LINNET_INLINE Ints to_ints(Floats x) { return {__builtin_convertvector(round_even(x).v, IntLanes)}; }
LINNET_INLINE Floats to_floats(Ints x) { return {__builtin_convertvector(x.v, FloatLanes)}; }

LINNET_INLINE Ints operator+(Ints x, Ints y) { return {x.v + y.v}; }
LINNET_INLINE Ints operator-(Ints x, Ints y) { return {x.v - y.v}; }
LINNET_INLINE Ints operator*(Ints x, Ints y) { return {x.v * y.v}; }
LINNET_INLINE Ints operator&(Ints x, Ints y) { return {x.v & y.v}; }
LINNET_INLINE Ints operator|(Ints x, Ints y) { return {x.v | y.v}; }
template <int n>
LINNET_INLINE Ints shift_left(Ints x) {
    return {x.v << n};
}
template <int n>
LINNET_INLINE Ints shift_right(Ints x) {
    return {x.v >> n};
}

LINNET_INLINE Floats load_bf16_first(const uint16_t* p, int64_t n) {
    Ints x = {};
    for (int i = 0; i < LANES; ++i) x.v[i] = i < n ? int32_t(uint32_t(p[i]) << 16) : 0;
    return as_floats(x);
}
LINNET_INLINE Floats load_bf16(const uint16_t* p) { return load_bf16_first(p, LANES); }
// The half's exponent and mantissa, moved into place, are the value times 2^-112 (denormals too); 31 means inf or NaN.
LINNET_INLINE Floats load_fp16_first(const uint16_t* p, int64_t n) {
    Ints raw = {};
    for (int i = 0; i < LANES; ++i) raw.v[i] = i < n ? p[i] : 0;
    const Floats moved = as_floats(shift_left<13>(raw & splat_int(0x7fff)));
    const Mask special = less(splat_int(0x7bff), raw & splat_int(0x7fff));
    const Ints magnitude = as_ints(moved * splat(0x1p112f)) | select(special, splat_int(0x7f800000), splat_int(0));
    return as_floats(magnitude | shift_left<16>(raw & splat_int(0x8000)));
}
LINNET_INLINE Floats load_fp16(const uint16_t* p) { return load_fp16_first(p, LANES); }

LINNET_INLINE uint16_t narrow_bf16(float x) {
    const uint32_t bits = float_to_bits(x);
    return x != x ? uint16_t(0x7fc0) : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
LINNET_INLINE uint16_t narrow_fp16(float x) {
    const uint32_t bits = float_to_bits(x), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
    if (magnitude < 0x38800000) {  // a denormal half: adding 0.5 aligns the mantissa and rounds to nearest even
        return uint16_t(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000));
    }
    return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
}
LINNET_INLINE void store_bf16_first(uint16_t* p, int64_t n, Floats x) {
    for (int64_t i = 0; i < smaller(n, LANES); ++i) p[i] = narrow_bf16(x.v[i]);
}
LINNET_INLINE void store_bf16(uint16_t* p, Floats x) { store_bf16_first(p, LANES, x); }
LINNET_INLINE void store_fp16_first(uint16_t* p, int64_t n, Floats x) {
    for (int64_t i = 0; i < smaller(n, LANES); ++i) p[i] = narrow_fp16(x.v[i]);
}
LINNET_INLINE void store_fp16(uint16_t* p, Floats x) { store_fp16_first(p, LANES, x); }

LINNET_INLINE float total(Floats x) {
    for (int half = 8; half >= 1; half /= 2) {
        for (int i = 0; i < half; ++i) x.v[i] = x.v[i] + x.v[i + half];
    }
    return x.v[0];
}
LINNET_INLINE float top(Floats x) {
    for (int half = 8; half >= 1; half /= 2) {
        for (int i = 0; i < half; ++i) x.v[i] = x.v[i] > x.v[i + half] ? x.v[i] : x.v[i + half];
    }
    return x.v[0];
}

}  // namespace linnet::LINNET_TIER
