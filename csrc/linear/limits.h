// SPDX-License-Identifier: Apache-2.0
// What the machine allows: the most an instruction-set tier can read and multiply on one core. bench/ divides by these.
#pragma once

#include <cstdint>

namespace linnet {

struct LimitKernels {
    // Reads bytes (a multiple of 4096) once, front to back; the result only keeps the loads alive.
    int64_t (*read)(const uint8_t* p, int64_t bytes);
    // Multiply-adds on registers alone, with enough chains to hide their latency; they return how many were done, or 0
    // where the tier has no instruction of its own for the type.
    int64_t (*multiply_int8)(int64_t iterations);
    int64_t (*multiply_bf16)(int64_t iterations);
    int64_t (*multiply_fp32)(int64_t iterations);
};

namespace portable {
const LimitKernels& limit_kernels();
}
namespace avx2 {
const LimitKernels& limit_kernels();
}
namespace avx512 {
const LimitKernels& limit_kernels();
}
namespace avx512_vnni {
const LimitKernels& limit_kernels();
}

}  // namespace linnet
