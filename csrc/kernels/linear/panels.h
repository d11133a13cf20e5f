// SPDX-License-Identifier: Apache-2.0
// Integer weights for many rows, in the tiers whose instructions it suits: a block of columns of some tiles is unpacked
// once into L1, what rows need besides is made once for all of those tiles, and sums stay in registers over a span
// (tiled.cpp says what that is, and defines the order of the sums). panels.cpp: products of bytes that come as pairs in
// 16 bits, with 256 bits (AVX2 without VNNI); panels_vnni.cpp: exact dot products with 512 bits.
#pragma once

#include "tiles.h"

namespace linnet::LINNET_TIER {

// Rows whose codes stay in the second-level cache while outputs pass, and outputs for which rows are arranged once.
#if defined(LINNET_VNNI)
constexpr ItemShape PANEL_ITEM = {128, 256};
#else
constexpr ItemShape PANEL_ITEM = {128, 128};
#endif

// Whether `rows` rows of such groups go this way; false where the tier has no panels.
bool reads_panels(const LinearWeight& weight, int64_t input_group_size, int64_t rows);
// Whether they make sums of x themselves, and read tiles of four and eight bits better than int8.cpp.
#if defined(LINNET_VNNI)
constexpr bool PANELS_SUM_CODES = true;
#else
constexpr bool PANELS_SUM_CODES = false;
#endif
int64_t scratch_bytes_panels(int64_t rows);
void linear_panels(const LinearWeight& weight, const Int8Input& x, float* y, int64_t ldy, int64_t rows, int64_t n_begin,
                   int64_t n_end, uint8_t* scratch);

}  // namespace linnet::LINNET_TIER
