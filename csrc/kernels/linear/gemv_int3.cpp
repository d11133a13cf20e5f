// SPDX-License-Identifier: Apache-2.0
#include "gemv_kernels.h"

#if defined(LINNET_VNNI)

namespace linnet::LINNET_TIER {

GemvKernel gemv_kernel_3(int lanes, const GemvShape& shape) { return choose_gemv<3>(lanes, shape); }

}  // namespace linnet::LINNET_TIER

#endif
