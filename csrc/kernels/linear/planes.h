// SPDX-License-Identifier: Apache-2.0
// Codes of 1 to 8 bits in planes, as tiles hold them. A run is 32 columns (four eights) of TILE_COUNT tiles of sixteen
// outputs; of every eight there are, per output, four even and four odd columns, each a byte once they are unpacked.
//
//   bits 8        per eight and tile 64 bytes of even columns, 64 of odd ones
//   bits 4, 5, 6  the low four bits: per eight and tile 64 bytes, even columns in the low halves of bytes
//   bits 2, 3, 6  two bits: per two eights and tile 64 bytes: even, odd, even, odd from the lowest up
//   bits 1, 3, 5  one bit: per run and tile 64 bytes, likewise over all four eights
//
// A code of one bit is 0 or 2, and its zero 1: binary weights are -1 and 1.
//
// The planes of a run follow each other in this order, so that memory is read as it lies.
#pragma once

#include "lanes.h"

namespace linnet::LINNET_TIER {

constexpr int64_t RUN_EIGHTS = 4, RUN_COLUMNS = 32;

// Bytes of a run of TILE_COUNT tiles.
LINNET_INLINE constexpr int64_t run_bytes(int bits) { return 64 * TILE_COUNT * bits; }

LINNET_INLINE constexpr bool has_nibbles(int bits) { return bits >= 4 && bits <= 6; }
LINNET_INLINE constexpr bool has_twos(int bits) { return bits == 2 || bits == 3 || bits == 6; }
LINNET_INLINE constexpr bool has_ones(int bits) { return bits == 1 || bits == 3 || bits == 5; }
LINNET_INLINE constexpr int64_t twos_offset(int bits) { return bits == 6 ? 256 * TILE_COUNT : 0; }
LINNET_INLINE constexpr int64_t ones_offset(int bits) { return (bits == 5 ? 256 : bits == 3 ? 128 : 0) * TILE_COUNT; }

LINNET_INLINE Ints every_byte(int32_t byte) { return splat_int(int32_t(uint32_t(byte) * 0x01010101u)); }

// Bits of a plane moved from bit `from` of every byte to bit `to`, the rest cleared.
template <int from, int to, int width>
LINNET_INLINE Ints move_bits(Ints plane) {
    const Ints mask = every_byte(((1 << width) - 1) << to);
    if constexpr (from < to) return shift_left<to - from>(plane) & mask;
    if constexpr (from > to) return shift_right_unsigned<from - to>(plane) & mask;
    return plane & mask;
}

// Eight `e` of a run, tile t: a byte per code; p is the run.
template <int bits, int e>
LINNET_INLINE void unpack_eight(const uint8_t* p, int t, Ints& even, Ints& odd) {
    if constexpr (bits == 8) {
        const int32_t* own = (const int32_t*)(p + (e * TILE_COUNT + t) * 128);
        even = load_ints(own);
        odd = load_ints(own + 16);
        return;
    }
    if constexpr (has_nibbles(bits)) {
        const Ints nibbles = load_ints((const int32_t*)(p + (e * TILE_COUNT + t) * 64));
        even = move_bits<0, 0, 4>(nibbles);
        odd = move_bits<4, 0, 4>(nibbles);
    }
    if constexpr (has_twos(bits)) {
        constexpr int from = e % 2 * 4, to = bits == 6 ? 4 : 0;
        const Ints twos = load_ints((const int32_t*)(p + twos_offset(bits) + (e / 2 * TILE_COUNT + t) * 64));
        const Ints own[2] = {move_bits<from, to, 2>(twos), move_bits<from + 2, to, 2>(twos)};
        even = bits == 6 ? even | own[0] : own[0];
        odd = bits == 6 ? odd | own[1] : own[1];
    }
    if constexpr (has_ones(bits)) {
        constexpr int to = bits == 1 ? 1 : bits - 1;
        const Ints ones = load_ints((const int32_t*)(p + ones_offset(bits) + t * 64));
        const Ints own[2] = {move_bits<2 * e, to, 1>(ones), move_bits<2 * e + 1, to, 1>(ones)};
        even = bits == 1 ? own[0] : even | own[0];
        odd = bits == 1 ? own[1] : odd | own[1];
    }
}

template <int bits>
LINNET_INLINE void unpack_run(const uint8_t* p, int t, Ints (&even)[4], Ints (&odd)[4]) {
    unpack_eight<bits, 0>(p, t, even[0], odd[0]);
    unpack_eight<bits, 1>(p, t, even[1], odd[1]);
    unpack_eight<bits, 2>(p, t, even[2], odd[2]);
    unpack_eight<bits, 3>(p, t, even[3], odd[3]);
}

// The other way: `bytes` holds the run's eights, 64 bytes of even and 64 of odd columns each, `step` bytes apart.
LINNET_INLINE void pack_run(int bits, const uint8_t* bytes, int64_t step, uint8_t* p, int t) {
    Ints codes[8];
    for (int i = 0; i < 8; ++i) codes[i] = load_ints((const int32_t*)(bytes + i / 2 * step + i % 2 * 64));
    if (bits == 8) {
        for (int i = 0; i < 8; ++i) store_ints((int32_t*)(p + (i / 2 * TILE_COUNT + t) * 128 + i % 2 * 64), codes[i]);
        return;
    }
    if (has_nibbles(bits))
        for (int e = 0; e < 4; ++e)
            store_ints((int32_t*)(p + (e * TILE_COUNT + t) * 64),
                       (codes[2 * e] & every_byte(15)) | shift_left<4>(codes[2 * e + 1] & every_byte(15)));
    const auto high = [&](int i, int width) {
        const Ints shifted = bits == 6 || (bits == 5 && width == 1) ? shift_right_unsigned<4>(codes[i])
                             : bits == 1                            ? shift_right_unsigned<1>(codes[i])
                             : width == 1                           ? shift_right_unsigned<2>(codes[i])
                                                                    : codes[i];
        return shifted & every_byte((1 << width) - 1);
    };
    if (has_twos(bits))
        for (int pair = 0; pair < 2; ++pair)
            store_ints((int32_t*)(p + twos_offset(bits) + (pair * TILE_COUNT + t) * 64),
                       high(4 * pair, 2) | shift_left<2>(high(4 * pair + 1, 2)) | shift_left<4>(high(4 * pair + 2, 2)) |
                           shift_left<6>(high(4 * pair + 3, 2)));
    if (has_ones(bits))
        store_ints((int32_t*)(p + ones_offset(bits) + t * 64),
                   high(0, 1) | shift_left<1>(high(1, 1)) | shift_left<2>(high(2, 1)) | shift_left<3>(high(3, 1)) |
                       shift_left<4>(high(4, 1)) | shift_left<5>(high(5, 1)) | shift_left<6>(high(6, 1)) |
                       shift_left<7>(high(7, 1)));
}

}  // namespace linnet::LINNET_TIER
