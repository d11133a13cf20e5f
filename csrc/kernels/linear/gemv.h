// SPDX-License-Identifier: Apache-2.0
// What gemv.cpp prepares and the kernels of one width of codes run on. Tiers with VNNI only.
#pragma once

#include "gemv_dots.h"
#include "int8.h"

#if defined(LINNET_VNNI)

namespace linnet::LINNET_TIER {

static constexpr int64_t RUN_GROUPS = 64;  // most groups of a run

// What the kernel reads per row of activations, laid out for it: codes (in the order of gemv_codes.h), then per group
// the scale and minus zero times sum, padded with zeros.
struct Prepared {
    const int8_t* codes;
    const float* scales;
    const int32_t* offsets;  // -constant_zero * sum; with zero points: -sum
};

struct GemvShape {
    int64_t loads;         // pieces per group (1 when a piece holds several groups)
    int64_t piece_groups;  // groups per piece (1 when a group has several pieces)
    int64_t run_groups;    // groups per run, a multiple of 16
    bool single;           // one group: its pieces are dealt out as if to sixteen, whose sums are then one
};

// Multiplies `rows` prepared rows with outputs [n_begin, n_end).
using GemvKernel = void (*)(const LinearWeight& weight, const Int8Input& x, const Prepared* prepared,
                            const GemvShape& shape, float* y, int64_t ldy, int64_t rows, int64_t n_begin,
                            int64_t n_end);

// The kernel for a width, by how many lanes of a piece belong to a group. One source per width: together they are a
// sixth of the time to compile everything.
GemvKernel gemv_kernel_8(int lanes, const GemvShape& shape);
GemvKernel gemv_kernel_4(int lanes, const GemvShape& shape);
GemvKernel gemv_kernel_3(int lanes, const GemvShape& shape);
GemvKernel gemv_kernel_2(int lanes, const GemvShape& shape);

}  // namespace linnet::LINNET_TIER

#endif
