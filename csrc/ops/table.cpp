// SPDX-License-Identifier: Apache-2.0
#include "ops/ops.h"

#define LINNET_QUOTE_(x) #x
#define LINNET_QUOTE(x) LINNET_QUOTE_(x)

namespace linnet::LINNET_TIER {

const KernelTable& kernel_table() {
    static constexpr auto isa = LINNET_QUOTE(LINNET_TIER);
    static KernelTable table = {
        .isa = isa,
        .linear = nullptr,
        .rms_norm = rms_norm,
        .layer_norm = layer_norm,
        .add = add,
        .scale = scale,
        .softcap = softcap,
        .gate = gate,
        .rope = rope,
        .kv_write = kv_write,
        .attention_scratch_bytes = attention_scratch_bytes,
        .attention = attention,
        .attention_merge = attention_merge,
    };
    // Not in the initialiser: the linear table is another translation unit's, made on first use.
    static const bool linked = (table.linear = &linear_kernels(), true);
    (void)linked;
    return table;
}

}  // namespace linnet::LINNET_TIER
