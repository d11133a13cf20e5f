// SPDX-License-Identifier: Apache-2.0
// sample.cpp names it in the tier's table, score.cpp defines it.
#pragma once

#include "kernels/simd.h"
#include "sampling.h"

namespace linnet::LINNET_TIER {

void score(const ScoreRow& row);

}  // namespace linnet::LINNET_TIER
