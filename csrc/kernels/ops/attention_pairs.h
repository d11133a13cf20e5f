// SPDX-License-Identifier: Apache-2.0
// Pair vectors (see KVLayout) as operands of a dot product: sum + first * first + second * second on sixteen lanes.
// Planar is fp32; Packed is bf16 and needs rounded queries and weights. A stored pair vector that is neither is widened
// to one of them: every code, and every bf16, is exact in both.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace linnet::LINNET_TIER {

namespace {

// To the nearest bf16, ties to even; NaN stays.
LINNET_INLINE Floats rounded_to_bf16(Floats x) {
    const Ints bits = as_ints(x), odd = shift_right<16>(bits) & splat_int(1);
    const Ints rounded = (bits + odd + splat_int(0x7fff)) & splat_int(int32_t(0xffff0000u));
    return select(equal(x, x), as_floats(rounded), x);
}

struct Planar {
    static constexpr int64_t BYTES = 128;
    using Element = float;  // of queries and weights
    struct Pair {
        Floats first, second;
    };
    LINNET_INLINE Pair load_pair(const char* p) { return {load((const float*)p), load((const float*)p + LANES)}; }
    LINNET_INLINE void store_pair(char* p, Floats first, Floats second) {
        store((float*)p, first);
        store((float*)p + LANES, second);
    }
    LINNET_INLINE Pair keep(Pair pair, bool first, bool second) {
        return {first ? pair.first : splat(0.0f), second ? pair.second : splat(0.0f)};
    }
    LINNET_INLINE Pair spread(const Element* two) { return {splat(two[0]), splat(two[1])}; }
    LINNET_INLINE Floats dot(Pair a, Pair b, Floats sum) { return fma(a.second, b.second, fma(a.first, b.first, sum)); }
    LINNET_INLINE void store_elements(Element* to, Floats x, bool rounded) {
        store(to, rounded ? rounded_to_bf16(x) : x);
    }
};

#if defined(LINNET_BF16)
struct Packed {
    static constexpr int64_t BYTES = 64;
    using Element = uint16_t;
    using Pair = __m512i;
    LINNET_INLINE Pair load_pair(const char* p) { return _mm512_loadu_si512(p); }
    LINNET_INLINE void store_pair(char* p, Floats first, Floats second) {
        const __m512i low = _mm512_srli_epi32(as_ints(first).v, 16);
        _mm512_storeu_si512(p, _mm512_mask_blend_epi16(0xaaaaaaaau, low, as_ints(second).v));
    }
    LINNET_INLINE Pair keep(Pair pair, bool first, bool second) {
        return _mm512_and_si512(pair, _mm512_set1_epi32(int32_t((first ? 0xffffu : 0u) | (second ? 0xffff0000u : 0u))));
    }
    LINNET_INLINE Pair spread(const Element* two) {
        int32_t both;
        std::memcpy(&both, two, 4);
        return _mm512_set1_epi32(both);
    }
    LINNET_INLINE Floats dot(Pair a, Pair b, Floats sum) { return {_mm512_dpbf16_ps(sum.v, (__m512bh)a, (__m512bh)b)}; }
    LINNET_INLINE void store_elements(Element* to, Floats x, bool) {
        _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x.v));
    }
};
using Widened = Packed;  // what rounded arithmetic widens codes to
#else
struct Packed {
    static constexpr int64_t BYTES = 64;
    using Element = float;
    using Pair = Planar::Pair;
    LINNET_INLINE Pair load_pair(const char* p) {
        const Ints raw = load_ints((const int32_t*)p);
        return {as_floats(shift_left<16>(raw)), as_floats(raw & splat_int(int32_t(0xffff0000u)))};
    }
    LINNET_INLINE void store_pair(char* p, Floats first, Floats second) {
        const Ints low = shift_right<16>(as_ints(first)) & splat_int(0xffff);
        store_ints((int32_t*)p, low | (as_ints(second) & splat_int(int32_t(0xffff0000u))));
    }
    LINNET_INLINE Pair keep(Pair pair, bool first, bool second) { return Planar::keep(pair, first, second); }
    LINNET_INLINE Pair spread(const Element* two) { return Planar::spread(two); }
    LINNET_INLINE Floats dot(Pair a, Pair b, Floats sum) { return Planar::dot(a, b, sum); }
    LINNET_INLINE void store_elements(Element* to, Floats x, bool rounded) { Planar::store_elements(to, x, rounded); }
};
using Widened = Planar;
#endif

// The pair vector number `index` of those that start at `base`, as fp32.
template <KVStorage storage>
LINNET_INLINE Planar::Pair widen(const char* base, int64_t index) {
    if constexpr (storage == KVStorage::fp32) {
        return Planar::load_pair(base + index * 128);
    } else if constexpr (storage == KVStorage::bf16) {
        const Ints raw = load_ints((const int32_t*)(base + index * 64));
        return {as_floats(shift_left<16>(raw)), as_floats(raw & splat_int(int32_t(0xffff0000u)))};
    } else if constexpr (storage == KVStorage::int4) {
        Ints raw = as_ints(load_bf16((const uint16_t*)(base + index / 2 * 32)));  // a lane's 16 bits, shifted up by 16
        if (index % 2 == 0) raw = shift_left<4>(raw);
        return {to_floats(shift_right<28>(shift_left<8>(raw))), to_floats(shift_right<28>(raw))};
    } else {
        const Ints raw = as_ints(load_bf16((const uint16_t*)(base + index * 32)));
        if constexpr (storage == KVStorage::int8) {
            return {to_floats(shift_right<24>(shift_left<8>(raw))), to_floats(shift_right<24>(raw))};
        } else {
            // Sign, four bits of exponent and three of mantissa, moved to fp32's places; 2^120 makes up for the bias.
            const Ints kept = splat_int(int32_t(0x87f00000u));
            const Floats bias = splat(0x1p120f);
            return {as_floats(shift_right<4>(shift_left<8>(raw)) & kept) * bias,
                    as_floats(shift_right<4>(raw) & kept) * bias};
        }
    }
}

// The pair vectors [0, count) that start at `from`, as operands at `to`; count is even for int4.
template <typename Form, KVStorage storage>
LINNET_INLINE void widen_run(const char* from, int64_t count, char* to) {
    for (int64_t i = 0; i < count; ++i) {
        const Planar::Pair wide = widen<storage>(from, i);
        Form::store_pair(to + i * Form::BYTES, wide.first, wide.second);
    }
}

#if defined(LINNET_BF16)
// The same numbers in fewer instructions: (first, second) per lane is the order of a Packed operand too.
template <>
inline __attribute__((always_inline)) void widen_run<Packed, KVStorage::int8>(const char* from, int64_t count,
                                                                              char* to) {
    for (int64_t i = 0; i < count; ++i) {
        const auto half = [&](int64_t at) {
            return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(from + at))));
        };
        _mm512_storeu_si512(to + i * 64, (__m512i)_mm512_cvtne2ps_pbh(half(i * 32 + 16), half(i * 32)));
    }
}
template <>
inline __attribute__((always_inline)) void widen_run<Packed, KVStorage::int4>(const char* from, int64_t count,
                                                                              char* to) {
    // bf16 of 0 .. 7, -8 .. -1, twice: a permutation looks at five bits of a word, four of them are the code.
    alignas(64) static constexpr uint16_t CODES[32] = {0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
                                                       0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                                                       0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
                                                       0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};
    const __m512i codes = _mm512_load_si512(CODES);
    for (int64_t i = 0; i < count; i += 2) {
        const __m512i two = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(from + i * 16)));
        _mm512_storeu_si512(to + i * 64, _mm512_permutexvar_epi16(two, codes));
        _mm512_storeu_si512(to + i * 64 + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(two, 4), codes));
    }
}
#endif

// Calls body(integral constant of the storage).
template <KVStorage value>
struct StorageConstant {
    static constexpr KVStorage VALUE = value;
};
template <typename Body>
LINNET_INLINE void with_storage(KVStorage storage, const Body& body) {
    switch (storage) {
        case KVStorage::fp32:
            return body(StorageConstant<KVStorage::fp32>{});
        case KVStorage::bf16:
            return body(StorageConstant<KVStorage::bf16>{});
        case KVStorage::int8:
            return body(StorageConstant<KVStorage::int8>{});
        case KVStorage::fp8:
            return body(StorageConstant<KVStorage::fp8>{});
        case KVStorage::int4:
            return body(StorageConstant<KVStorage::int4>{});
    }
}

}  // namespace

}  // namespace linnet::LINNET_TIER
