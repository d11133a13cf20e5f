// SPDX-License-Identifier: Apache-2.0
// swap_lanes<n>(x): lane i takes what lane i ^ n had; n is 1, 2, 4 or 8.
#pragma once

#include "kernels/simd.h"

namespace linnet::LINNET_TIER {

#if defined(LINNET_AVX512)
template <int n>
LINNET_INLINE Floats swap_lanes(Floats x) {
    if constexpr (n == 8) return {_mm512_shuffle_f32x4(x.v, x.v, 0x4e)};
    if constexpr (n == 4) return {_mm512_shuffle_f32x4(x.v, x.v, 0xb1)};
    if constexpr (n == 2) return {_mm512_permute_ps(x.v, 0x4e)};
    if constexpr (n == 1) return {_mm512_permute_ps(x.v, 0xb1)};
}
#elif defined(LINNET_AVX2)
template <int n>
LINNET_INLINE Floats swap_lanes(Floats x) {
    if constexpr (n == 8) return {x.b, x.a};
    if constexpr (n == 4) return {_mm256_permute2f128_ps(x.a, x.a, 1), _mm256_permute2f128_ps(x.b, x.b, 1)};
    if constexpr (n == 2) return {_mm256_permute_ps(x.a, 0x4e), _mm256_permute_ps(x.b, 0x4e)};
    if constexpr (n == 1) return {_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)};
}
#else
template <int n>
LINNET_INLINE Floats swap_lanes(Floats x) {
    Floats swapped;
    for (int i = 0; i < LANES; ++i) swapped.v[i] = x.v[i ^ n];
    return swapped;
}
#endif

}  // namespace linnet::LINNET_TIER
