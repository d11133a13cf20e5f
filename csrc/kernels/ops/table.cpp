// SPDX-License-Identifier: Apache-2.0
#include "ops.h"

#define LINNET_QUOTE_(x) #x
#define LINNET_QUOTE(x) LINNET_QUOTE_(x)

namespace linnet::LINNET_TIER {

const KernelTable& kernel_table() {
    static constexpr auto isa = LINNET_QUOTE(LINNET_TIER);
    static constexpr KernelTable table = {
        .isa = isa,
        .linear = nullptr,  // isa.cpp joins them: the tier's own, or those of a tier that only has projections
        .rms_norm = rms_norm,
        .layer_norm = layer_norm,
        .add = add,
        .scale = scale,
        .softcap = softcap,
        .hadamard = hadamard,
        .round_rows = round_rows,
        .gate = gate,
        .route = route,
        .combine = combine,
        .low_rank = low_rank,
        .rope = rope,
        .kv_write = kv_write,
        .attention_scratch_bytes = attention_scratch_bytes,
        .attention = attention,
        .attention_merge = attention_merge,
        .conv = conv,
        .scan = scan,
    };
    return table;
}

}  // namespace linnet::LINNET_TIER
