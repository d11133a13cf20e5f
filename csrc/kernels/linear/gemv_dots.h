// SPDX-License-Identifier: Apache-2.0
// The inner part of gemv.cpp: dot products of sixteen groups, one group per lane. Tiers with VNNI only.
#pragma once

#include "gemv_codes.h"

#if defined(LINNET_VNNI)

namespace linnet::LINNET_TIER {

LINNET_INLINE __m512i add(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }

// Lane 4 q + i: what the four lanes of quarter q of a[i] add up to.
LINNET_INLINE __m512i sum_quarters(const __m512i* a) {
    const __m512i low = add(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1]));
    const __m512i high = add(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));
    return add(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
}
LINNET_INLINE __m512i sum_pairs(__m512i a, __m512i b) {
    return add(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

// Dot products of 16 groups of R outputs with M rows of x; out[r * M + m]. `loads`: pieces per group; `one`: loads == 1
// and all of it may be read, else pieces from `limit` on do not exist and `bytes` may be read from p[0].
template <int bits, int lanes, int M, int R, bool one>
LINNET_INLINE void dots(const uint8_t* const* p, int64_t bytes, const int8_t* const* x, int64_t loads, int64_t limit,
                        __m512i flip, const uint8_t* later, __m512i* out) {
    constexpr int quads = lanes == 2 ? 1 : lanes / 4, pieces = lanes == 2 ? 2 : 4;
    constexpr int64_t piece_bytes = PIECE_BYTES<bits>;
    constexpr int vectors = PIECE_VECTORS<bits>;
    __m512i parts[R * M][quads];
#pragma GCC unroll 4
    for (int quad = 0; quad < quads; ++quad) {
        __m512i sums[R * M][pieces];
#pragma GCC unroll 4
        for (int i = 0; i < pieces; ++i) {
#pragma GCC unroll 8
            for (int k = 0; k < R * M; ++k) sums[k][i] = _mm512_setzero_si512();
            const int64_t begin = (quad * 4 + i) * (one ? 1 : loads);
            const int64_t end = one ? begin + 1 : smaller(begin + loads, limit);
            for (int64_t piece = begin; piece < end; ++piece) {
                _mm_prefetch((const char*)(later + piece * piece_bytes), _MM_HINT_T0);
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r) {
                    __m512i codes[vectors];
                    unpack_piece<bits, one>(p[r] + piece * piece_bytes, bytes - piece * piece_bytes, flip, codes);
#pragma GCC unroll 4
                    for (int m = 0; m < M; ++m) {
                        const int8_t* own = x[m] + piece * PIECE_COLUMNS<bits>;
                        __m512i& sum = sums[r * M + m][i];
#pragma GCC unroll 4
                        for (int v = 0; v < vectors; ++v)
                            sum = _mm512_dpbusd_epi32(sum, codes[v], _mm512_loadu_si512(own + 64 * v));
                    }
                }
            }
        }
        if constexpr (lanes == 2) {  // eight groups of two lanes in each of two pieces
            const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#pragma GCC unroll 8
            for (int k = 0; k < R * M; ++k)
                parts[k][0] = add(_mm512_permutex2var_epi32(sums[k][0], even, sums[k][1]),
                                  _mm512_permutex2var_epi32(sums[k][0], odd, sums[k][1]));
        } else {
#pragma GCC unroll 8
            for (int k = 0; k < R * M; ++k) parts[k][quad] = sum_quarters(sums[k]);
        }
    }
#pragma GCC unroll 8
    for (int k = 0; k < R * M; ++k) {
        if constexpr (lanes == 16)
            out[k] = sum_pairs(sum_pairs(parts[k][0], parts[k][1]), sum_pairs(parts[k][2], parts[k][3]));
        else if constexpr (lanes == 8)  // quarters: groups 0 2 4 6, 1 3 5 7, 8 10 12 14, 9 11 13 15
            out[k] = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15),
                                              sum_pairs(parts[k][0], parts[k][1]));
        else if constexpr (lanes == 2)
            out[k] = parts[k][0];
        else  // quarter q: groups q, 4 + q, 8 + q, 12 + q
            out[k] = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                                              parts[k][0]);
    }
}

}  // namespace linnet::LINNET_TIER

#endif
