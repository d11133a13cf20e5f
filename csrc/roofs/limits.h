// SPDX-License-Identifier: Apache-2.0
// What the machine allows: the most an instruction-set tier can read and multiply on one core. bench/ divides by these.
#pragma once

#include <cstdint>

#include "kernels/tiers.h"

namespace linnet {

struct LimitKernels {
    // Read bytes (a multiple of 4096) once, front to back or in four parts at a time; the result only keeps the loads
    // alive. Which of the two is faster depends on the machine's prefetchers.
    int64_t (*read)(const uint8_t* p, int64_t bytes);
    int64_t (*read_four)(const uint8_t* p, int64_t bytes);
    // Multiply-adds on registers alone, with enough chains to hide their latency; they return how many were done, or 0
    // where the tier has no instruction of its own for the type.
    int64_t (*multiply_int8)(int64_t iterations);
    int64_t (*multiply_bf16)(int64_t iterations);
    int64_t (*multiply_fp32)(int64_t iterations);
};

LINNET_TIERS(LINNET_DECLARE_TABLE, LimitKernels, limit_kernels)

}  // namespace linnet
