// SPDX-License-Identifier: Apache-2.0
// Declarations of this tier's op kernels (see kernels.h for what they do).
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace linnet::LINNET_TIER {

void rms_norm(const float*, float*, int64_t, int64_t, int64_t, const float*, int64_t, float, float);
void layer_norm(const float*, float*, int64_t, int64_t, int64_t, const float*, const float*, int64_t, float, float);
void add(const float*, const float*, float*, int64_t);
void scale(const float*, float*, int64_t, float);
void softcap(const float*, float*, int64_t, float);
void hadamard(const float*, float*, int64_t, int64_t);
void round_rows(const float*, float*, int64_t, int64_t, const Rounding&);
void route(const float*, int32_t*, float*, int64_t, const Routing&);
void combine(const float*, const float*, float*, int64_t, int64_t, int64_t);
void gate(const float*, const float*, float*, int64_t, const Gating&);
void low_rank(const LowRankCall&, int64_t, int64_t, int64_t, int64_t);
void rope(const float*, float*, int64_t, int64_t, int64_t, int64_t, RopeStyle, const int32_t*, const float*,
          const float*);
void kv_write(const KVLayout&, const KVMemory&, const float*, const float*, const int32_t*, int64_t);
int64_t attention_scratch_bytes(const AttentionCall&, int64_t);
void attention(const AttentionCall&, const AttentionTask&, void*);
int64_t attention_abreast_scratch_bytes(const AttentionCall&, int64_t);  // of few rows (attention.cpp chooses)
void attention_abreast(const AttentionCall&, const AttentionTask&, void*);
void attention_merge(const AttentionCall&, const AttentionTask&);
void conv(const ConvCall&, const SequenceRows&, int64_t, int64_t);
void scan(const ScanCall&, const SequenceRows&, int64_t, int64_t);

}  // namespace linnet::LINNET_TIER
