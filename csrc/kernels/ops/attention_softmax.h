// SPDX-License-Identifier: Apache-2.0
// Softmax of one partition of scores, in base 2 (the call's scale carries log2 e), and the merging of partitions.
#pragma once

#include "attention_tiles.h"
#include "kernels/vector_math.h"

namespace linnet::LINNET_TIER {

namespace {

constexpr float MINUS_INFINITY = -__builtin_inff();
constexpr float LOG2_E = 1.44269504088896341f;

// 2^x for x <= 0, exactly 1 for 0, 0 below 2^-126; NaN passes through. Polynomial of Cephes exp2f (S. Moshier).
LINNET_INLINE Floats power_of_two(Floats x) {
    const Floats n = round_even(x), r = x - n;
    Floats p = splat(1.535336188319500e-4f);
    p = fma(p, r, splat(1.339887440266574e-3f));
    p = fma(p, r, splat(9.618437357674640e-3f));
    p = fma(p, r, splat(5.550332471162809e-2f));
    p = fma(p, r, splat(2.402264791363012e-1f));
    p = fma(p, r, splat(6.931472028550421e-1f));
    p = fma(p, r, splat(1.0f));
#if defined(LINNET_AVX512)
    const __mmask16 normal = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    return {_mm512_maskz_scalef_ps(normal, p.v, n.v)};
#else
    const Floats power = as_floats(shift_left<23>(to_ints(n) + splat_int(127)));
    return select(less(x, splat(-126.0f)), splat(0.0f), p * power);
#endif
}

// The scores of one vector, and the scales of the keys and values they belong to (null: none), by key of the partition.
struct Scored {
    float* scores;
    const float *key_scales, *value_scales;
    int64_t partition_start, begin, end;  // keys [begin, end) of the partition are visible
    float slope;
};

// Keys [begin, end) keep x, the others get `hidden`.
LINNET_INLINE Floats keep_visible(Floats x, int64_t key, const Scored& at, Floats hidden) {
    const Ints keys = lane_numbers() + splat_int(int32_t(key));
    x = select(less(keys, splat_int(int32_t(at.begin))), hidden, x);
    return select(less(keys, splat_int(int32_t(at.end))), x, hidden);
}

// What is prefetched meanwhile: nothing, or so many bytes with every sixteen scores that are looked at.
struct Nothing {
    void step() const {}
};
struct Trail {
    const char* at;
    int64_t bytes;
    void step() {
        for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 3);
        at += bytes;
    }
};

// Weights of [begin, end) become 2^(score - maximum), times the value's scale; those beside them up to a whole vector
// are zero. Returns the maximum, and the sum without the value's scales. A plain call has neither soft cap nor slopes,
// and its keys no scales: scores enter the difference as they are.
template <typename Form, bool plain, typename Ahead>
LINNET_INLINE void soft_maximum(const AttentionCall& call, const Scored& at, typename Form::Element* weights,
                                float& maximum, float& sum, Ahead ahead) {
    const int64_t from = at.begin / LANES * LANES, whole = (at.begin + LANES - 1) / LANES * LANES;
    const Floats scale = splat(call.scale * LOG2_E), hidden = splat(MINUS_INFINITY);
    Floats best = hidden;
    const auto visit = [&](int64_t k, bool edge) __attribute__((always_inline)) {
        Floats s = load(at.scores + k);
        ahead.step();
        if constexpr (!plain) {
            if (at.key_scales) s = s * load(at.key_scales + k);
            if (call.softcap > 0.0f) {
                const Floats cap = splat(call.softcap);
                s = splat(call.softcap * LOG2_E) * hyperbolic_tangent(s * splat(call.scale) / cap);
            } else {
                s = s * scale;
            }
            if (call.alibi_slopes) {
                const Floats key = to_floats(lane_numbers() + splat_int(int32_t(at.partition_start + k)));
                s = fma(splat(at.slope * LOG2_E), key, s);
            }
        }
        if (edge) s = keep_visible(s, k, at, hidden);
        best = greatest(best, s);
        if (!plain || edge) store(at.scores + k, s);
    };
    int64_t k = from;
    if (from < whole) visit(k, true), k += LANES;
    for (; k + LANES <= at.end; k += LANES) visit(k, false);
    if (k < at.end) visit(k, true);
    maximum = top(best);
    if (plain) maximum *= call.scale * LOG2_E;

    Floats total_lanes = splat(0.0f);
    const Floats peak = splat(maximum);
    for (k = from; k < at.end; k += LANES) {
        const Floats s = load(at.scores + k);
        ahead.step();
        Floats p = power_of_two(plain ? fma(s, scale, splat(0.0f) - peak) : s - peak);
        total_lanes = total_lanes + p;
        if constexpr (!plain) {
            if (at.value_scales) {  // a hidden key's scale may be anything
                p = p * load(at.value_scales + k);
                if (k < at.begin || k + LANES > at.end) p = keep_visible(p, k, at, splat(0.0f));
            }
        }
        Form::store_elements(weights + k, p, call.rounded);
    }
    sum = total(total_lanes);
}

// (values, maximum, sum) of the keys so far, with those of the next partition. An empty side has sum 0.
LINNET_INLINE void merge(float* values, float& maximum, float& sum, const float* next, float next_maximum,
                         float next_sum, int64_t n) {
    if (next_sum == 0.0f) return;
    if (sum == 0.0f) {
        for (int64_t i = 0; i < n; i += LANES) store(values + i, load(next + i));
        maximum = next_maximum;
        sum = next_sum;
        return;
    }
    const Floats both = greatest(splat(maximum), splat(next_maximum));
    const Floats keep = power_of_two(splat(maximum) - both), bring = power_of_two(splat(next_maximum) - both);
    for (int64_t i = 0; i < n; i += LANES) store(values + i, fma(load(next + i), bring, load(values + i) * keep));
    sum = total(select(first_lanes(1), fma(splat(next_sum), bring, splat(sum) * keep), splat(0.0f)));
    maximum = top(both);
}

}  // namespace

}  // namespace linnet::LINNET_TIER
