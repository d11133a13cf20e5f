// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3).
#pragma once

#include "kernels/simd.h"

namespace linnet::LINNET_TIER {

// A number in [0, 1) with 53 random bits; key = seed, counter = (position low, position high, purpose, 0).
LINNET_INLINE double uniform_number(uint64_t seed, int64_t position, uint32_t purpose) {
    uint32_t counter[4] = {uint32_t(uint64_t(position)), uint32_t(uint64_t(position) >> 32), purpose, 0};
    uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    for (int round = 0; round < 10; ++round) {
        const uint64_t first = uint64_t(0xD2511F53u) * counter[0];
        const uint64_t second = uint64_t(0xCD9E8D57u) * counter[2];
        const uint32_t next[4] = {uint32_t(second >> 32) ^ counter[1] ^ key[0], uint32_t(second),
                                  uint32_t(first >> 32) ^ counter[3] ^ key[1], uint32_t(first)};
        std::memcpy(counter, next, sizeof counter);
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return (double(counter[0] >> 5) * 67108864.0 + double(counter[1] >> 6)) / 9007199254740992.0;
}

}  // namespace linnet::LINNET_TIER
