// SPDX-License-Identifier: Apache-2.0
// add, scale, softcap and gated activations: one loop, the tail in the same code with zero lanes.
#include "kernels/vector_math.h"
#include "ops.h"

namespace linnet::LINNET_TIER {

namespace {

template <typename Body>
LINNET_INLINE void map(const float* x, float* y, int64_t n, const Body& body) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(y + i, body(load(x + i)));
    if (i < n) store_first(y + i, n - i, body(load_first(x + i, n - i)));
}

template <typename Body>
LINNET_INLINE void map(const float* a, const float* b, float* y, int64_t n, const Body& body) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(y + i, body(load(a + i), load(b + i)));
    if (i < n) store_first(y + i, n - i, body(load_first(a + i, n - i), load_first(b + i, n - i)));
}

LINNET_INLINE Floats silu(Floats x) { return x / (splat(1.0f) + exponential(splat(0.0f) - x)); }
LINNET_INLINE Floats gelu(Floats x) {
    return splat(0.5f) * x * one_plus_error_function(x * splat(0.70710678118654752f));
}
LINNET_INLINE Floats gelu_tanh(Floats x) {
    const Floats inner = splat(0.7978845608028654f) * fma(splat(0.044715f) * x * x, x, x);
    return splat(0.5f) * x * (splat(1.0f) + hyperbolic_tangent(inner));
}
LINNET_INLINE Floats gelu_sigmoid(Floats x) { return x / (splat(1.0f) + exponential(splat(-1.702f) * x)); }
LINNET_INLINE Floats relu(Floats x) { return greatest(splat(0.0f), x); }  // this operand order keeps NaN

LINNET_INLINE Floats within(Floats x, float limit) { return smallest(splat(limit), greatest(splat(-limit), x)); }

template <typename Act>
LINNET_INLINE void gate_with(const float* x, const float* up, float* y, int64_t n, const Gating& gating,
                             const Act& act) {
    const float limit = gating.limit, offset = gating.up_offset;
    if (up && (limit > 0.0f || offset != 0.0f)) {
        const float most = limit > 0.0f ? limit : __builtin_inff();
        map(x, up, y, n, [&](Floats g, Floats u) __attribute__((always_inline)) {
            return act(smallest(splat(most), g)) * (within(u, most) + splat(offset));
        });
    } else if (up) {
        map(x, up, y, n, [&](Floats g, Floats u) __attribute__((always_inline)) { return act(g) * u; });
    } else {
        map(x, y, n, act);
    }
}

}  // namespace

void add(const float* a, const float* b, float* y, int64_t n) {
    map(a, b, y, n, [](Floats p, Floats q) __attribute__((always_inline)) { return p + q; });
}

void scale(const float* x, float* y, int64_t n, float factor) {
    const Floats f = splat(factor);
    map(x, y, n, [f](Floats v) __attribute__((always_inline)) { return v * f; });
}

void softcap(const float* x, float* y, int64_t n, float limit) {
    const Floats l = splat(limit);
    map(x, y, n, [l](Floats v) __attribute__((always_inline)) { return l * hyperbolic_tangent(v / l); });
}

void gate(const float* x, const float* up, float* y, int64_t n, const Gating& gating) {
    switch (gating.activation) {
        case Activation::silu:
            return gate_with(x, up, y, n, gating, [](Floats v) __attribute__((always_inline)) { return silu(v); });
        case Activation::gelu:
            return gate_with(x, up, y, n, gating, [](Floats v) __attribute__((always_inline)) { return gelu(v); });
        case Activation::gelu_tanh:
            return gate_with(x, up, y, n, gating, [](Floats v) __attribute__((always_inline)) { return gelu_tanh(v); });
        case Activation::gelu_sigmoid:
            return gate_with(x, up, y, n, gating,
                             [](Floats v) __attribute__((always_inline)) { return gelu_sigmoid(v); });
        case Activation::relu:
            return gate_with(x, up, y, n, gating, [](Floats v) __attribute__((always_inline)) { return relu(v); });
        case Activation::relu_squared:
            return gate_with(x, up, y, n, gating,
                             [](Floats v) __attribute__((always_inline)) { return relu(v) * relu(v); });
    }
}

}  // namespace linnet::LINNET_TIER
