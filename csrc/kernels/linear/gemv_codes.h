// SPDX-License-Identifier: Apache-2.0
// A piece of a weight's row as the GEMV reads it: one load, unpacked to unsigned bytes in registers, and the order in
// which activations meet those bytes. A quarter of a vector never mixes columns of different quarters of a piece, so
// groups of a piece, a half or a quarter of it (2 bits: an eighth) can be told apart in the sums. Tiers with VNNI only.
//
//   bits  bytes  columns  vectors
//   8     64     64       1        natural order
//   4     64     128      2        even columns, odd columns
//   3     48     128      2        columns 0 .. 15 and 16 .. 31 of every 32
//   2     64     256      4        columns 4 j + k of vector k
#pragma once

#include "lanes.h"

#if defined(LINNET_VNNI)

namespace linnet::LINNET_TIER {

template <int bits>
constexpr int64_t PIECE_BYTES = bits == 3 ? 48 : 64;
template <int bits>
constexpr int64_t PIECE_COLUMNS = PIECE_BYTES<bits> * 8 / bits;
template <int bits>
constexpr int PIECE_VECTORS = int(PIECE_COLUMNS<bits> / 64);

// Codes of three bits as bytes, of vector `half`: byte 8 e + j is code j of the 24 bits that qword e unpacks, which
// begin at byte 12 (e / 2) + 6 half + 3 (e % 2).
template <int half>
LINNET_INLINE __m512i unpack_three_bits(__m512i codes) {
#if defined(__AVX512VBMI__)
    alignas(64) static constexpr auto places = [] {
        struct {
            uint8_t bytes[64];
        } found = {};
        for (int e = 0; e < 8; ++e)
            for (int j = 0; j < 8; ++j)
                found.bytes[8 * e + j] = uint8_t(12 * (e / 2) + 6 * half + 3 * (e % 2) + (j < 3 ? j : 0));
        return found;
    }();
    const __m512i shifts = _mm512_set1_epi64(0x15120f0c09060300);  // 0, 3, 6 .. 21
    const __m512i own = _mm512_permutexvar_epi8(_mm512_load_si512(places.bytes), codes);
    return _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, own), _mm512_set1_epi8(7));
#else
    // Every quarter takes the twelve bytes of its two qwords' halves, of which a code's two bytes become a word.
    const __m512i quarters =
        _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11), codes);
    const __m512i shifts = _mm512_broadcast_i32x4(_mm_setr_epi16(0, 3, 6, 1, 4, 7, 2, 5));
    const auto eight = [&](int first) __attribute__((always_inline)) {
        const char a = char(first), b = char(first + 1), c = char(first + 2);
        const __m128i places = _mm_setr_epi8(a, b, a, b, a, b, b, c, b, c, b, c, c, -1, c, -1);
        const __m512i words = _mm512_shuffle_epi8(quarters, _mm512_broadcast_i32x4(places));
        return _mm512_and_si512(_mm512_srlv_epi16(words, shifts), _mm512_set1_epi16(7));
    };
    return _mm512_packus_epi16(eight(6 * half), eight(6 * half + 3));
#endif
}

// `bytes`: how many may be read from p; `whole`: all of the piece. `flip` makes signed bytes unsigned.
template <int bits, bool whole>
LINNET_INLINE void unpack_piece(const uint8_t* p, int64_t bytes, __m512i flip, __m512i (&out)[PIECE_VECTORS<bits>]) {
    __m512i codes;
    if constexpr (whole)
        codes = bits == 3 ? _mm512_maskz_loadu_epi32(0x0fff, p) : _mm512_loadu_si512(p);
    else
        codes = load_words_first(p, smaller(bytes, PIECE_BYTES<bits>)).v;
    asm("" : "+v"(codes));  // one load, several uses
    if constexpr (bits == 8) {
        out[0] = _mm512_xor_si512(codes, flip);
    } else if constexpr (bits == 4) {
        const __m512i nibble = _mm512_set1_epi8(15);
        out[0] = _mm512_and_si512(codes, nibble);
        out[1] = _mm512_and_si512(_mm512_srli_epi32(codes, 4), nibble);
    } else if constexpr (bits == 3) {
        out[0] = unpack_three_bits<0>(codes);
        out[1] = unpack_three_bits<1>(codes);
    } else {
        const __m512i mask = _mm512_set1_epi8(3);
        out[0] = _mm512_and_si512(codes, mask);
        out[1] = _mm512_and_si512(_mm512_srli_epi32(codes, 2), mask);
        out[2] = _mm512_and_si512(_mm512_srli_epi32(codes, 4), mask);
        out[3] = _mm512_and_si512(_mm512_srli_epi32(codes, 6), mask);
    }
}

// 256 columns of a quantised row (see rows.cpp for its order) to the order of pieces.
template <int bits>
LINNET_INLINE void arrange_columns(const __m512i (&in)[4], int8_t* out) {
    const __m512i natural = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
    const __m512i even_first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd_first = _mm512_add_epi32(even_first, _mm512_set1_epi32(1));
    __m512i made[4];
    if constexpr (bits == 8) {
        for (int i = 0; i < 4; ++i) made[i] = _mm512_shuffle_epi8(in[i], natural);
    } else if constexpr (bits == 4) {
        for (int i = 0; i < 4; i += 2) {
            made[i] = _mm512_permutex2var_epi32(in[i], even_first, in[i + 1]);
            made[i + 1] = _mm512_permutex2var_epi32(in[i], odd_first, in[i + 1]);
        }
    } else if constexpr (bits == 3) {
        for (int i = 0; i < 4; i += 2) {
            const __m512i first = _mm512_shuffle_epi8(in[i], natural), second = _mm512_shuffle_epi8(in[i + 1], natural);
            made[i] = _mm512_shuffle_i32x4(first, second, 0x88);
            made[i + 1] = _mm512_shuffle_i32x4(first, second, 0xdd);
        }
    } else {
        // Of every sixteen columns, dword k: 4 j + k; then dword k of all lanes to quarter k; then quarters to vectors.
        const __m512i by_four =
            _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 8, 10, 4, 6, 12, 14, 1, 3, 9, 11, 5, 7, 13, 15));
        const __m512i by_lane = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        __m512i own[4];
        for (int i = 0; i < 4; ++i) own[i] = _mm512_permutexvar_epi32(by_lane, _mm512_shuffle_epi8(in[i], by_four));
        const __m512i low01 = _mm512_shuffle_i32x4(own[0], own[1], 0x44);
        const __m512i low23 = _mm512_shuffle_i32x4(own[2], own[3], 0x44);
        const __m512i high01 = _mm512_shuffle_i32x4(own[0], own[1], 0xee);
        const __m512i high23 = _mm512_shuffle_i32x4(own[2], own[3], 0xee);
        made[0] = _mm512_shuffle_i32x4(low01, low23, 0x88);
        made[1] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
        made[2] = _mm512_shuffle_i32x4(high01, high23, 0x88);
        made[3] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
    for (int i = 0; i < 4; ++i) _mm512_storeu_si512(out + 64 * i, made[i]);
}

}  // namespace linnet::LINNET_TIER

#endif
