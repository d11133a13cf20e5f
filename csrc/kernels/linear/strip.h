// SPDX-License-Identifier: Apache-2.0
// What a kernel over tiles is given: a block of columns of sixteen outputs (or twice that), and where its scales lie.
#pragma once

#include "tiles.h"

namespace linnet::LINNET_TIER {

// One block of columns: whole runs, whole spans.
struct Strip {
    const uint8_t* codes;
    int64_t column, eights;
    int64_t first_span, span_steps;    // steps (chunks of eights) in a span
    int64_t group_steps, span_groups;  // of a two-level weight
    const uint8_t* records[TILE_COUNT];
    const Tiles* tiles;
    const LinearWeight* weight;
    int64_t spans_per_super;  // of a two-level weight; spans per group of a one-level weight
    int64_t spans_per_x_scale;
    bool starts;
};

// Finished here, before anything that follows is loaded: g++ 12 would first make all products of a chunk, and spill
// them.
LINNET_INLINE void finish_here([[maybe_unused]] Ints& sum) {
#if defined(LINNET_AVX512)
    asm volatile("" : "+v"(sum.v));
#elif defined(LINNET_AVX2)
    asm volatile("" : "+x"(sum.a), "+x"(sum.b));
#endif
}
LINNET_INLINE void load_what_follows_later() {
#if !defined(LINNET_PORTABLE)
    asm volatile("" ::: "memory");
#endif
}

}  // namespace linnet::LINNET_TIER
