// SPDX-License-Identifier: Apache-2.0
// Which instruction-set tiers this machine has, best first, and their kernel tables.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace linnet {

// "avx512_bf16", "avx512_vnni", "avx512", "avx2_vnni", "avx2"; "neon_i8mm"; "portable": those this CPU and operating
// system can run; portable is always last.
std::vector<std::string> available_tiers();

// Empty name: the best tier. Throws std::invalid_argument naming the available ones.
const KernelTable& kernel_table(const std::string& isa);

}  // namespace linnet
