// SPDX-License-Identifier: Apache-2.0
// What carries a state from row to row: causal convolution and selective scan. One lane is one channel and rows are
// taken in their order, so the bits of a row are the same wherever a step begins or a run of channels does.
#include "kernels/vector_math.h"
#include "ops.h"

namespace linnet::LINNET_TIER {

void conv(const ConvCall& call, const SequenceRows& rows, int64_t begin, int64_t end) {
    const int64_t width = call.width, before = call.taps - 1;
    for (int64_t c = begin; c < end; c += LANES) {
        const int64_t n = smaller(end - c, LANES);
        float* state = rows.state + c;
        if (rows.fresh) {
            for (int64_t k = 0; k < before; ++k) store_first(state + k * width, n, splat(0.0f));
        }
        // Row `at` counted from the first of the step; those before it lie in the state.
        const auto input = [&](int64_t at) __attribute__((always_inline)) {
            return load_first(at < 0 ? state + (at + before) * width : rows.x + at * width + c, n);
        };
        const Floats bias = call.bias ? load_first(call.bias + c, n) : splat(0.0f);
        for (int64_t t = 0; t < rows.rows; ++t) {
            Floats sum = bias;
            for (int64_t k = 0; k < call.taps; ++k) {
                sum = fma(load_first(call.weight + k * width + c, n), input(t + k - before), sum);
            }
            store_first(rows.y + t * width + c, n, sum);
        }
        for (int64_t k = 0; k < before; ++k) store_first(state + k * width, n, input(rows.rows + k - before));
    }
}

namespace {

// Channels [c, c + n), all of one group: V whole vectors side by side, so that no sum waits for itself, or a part of
// one. What a row needs again lies in local memory, one vector after the other: of a model's array neighbouring states
// are whole pages apart.
template <int64_t V, bool SHARED>
void scan_lanes(const ScanCall& call, const SequenceRows& rows, int64_t c, int64_t n) {
    constexpr int64_t WIDE = V * LANES, LOCAL = ScanCall::MOST_STATES * WIDE;
    const int64_t width = call.width, states = call.states, heads = width / call.head_size;
    const int64_t group = c / (width / call.groups) * states;
    const auto part = [n](const float* p, int64_t v)
                          __attribute__((always_inline)) { return V == 1 ? load_first(p, n) : load(p + v * LANES); };
    const auto put = [n](float* p, int64_t v, Floats a)
                         __attribute__((always_inline)) { V == 1 ? store_first(p, n, a) : store(p + v * LANES, a); };
    alignas(64) float carried[LOCAL], decays[SHARED ? WIDE : LOCAL], of_heads[WIDE] = {};
    int64_t head[WIDE];
    for (int64_t i = 0; i < WIDE; ++i) head[i] = i < n ? (c + i) / call.head_size : 0;
    for (int64_t s = 0; s < states; ++s) {
        for (int64_t v = 0; v < V; ++v) {
            const int64_t at = s * WIDE + v * LANES;
            store(carried + at, rows.fresh ? splat(0.0f) : part(rows.state + s * width + c, v));
            if (s == 0 || !SHARED) store(decays + at, part(call.decay + s * width + c, v));
        }
    }
    Floats step[V], x[V], scaled[V], kept[V], sum[V];
    for (int64_t t = 0; t < rows.rows; ++t) {
        const float* steps = rows.steps + t * heads;
        const float *in = rows.in + t * call.groups * states + group,
                    *out = rows.out + t * call.groups * states + group;
        if (call.head_size > 1) {
            for (int64_t i = 0; i < n; ++i) of_heads[i] = steps[head[i]];
        }
        for (int64_t v = 0; v < V; ++v) {
            const Floats given = call.head_size > 1 ? load(of_heads + v * LANES) : part(steps + c, v);
            step[v] = soft_plus(given + (call.bias ? part(call.bias + c, v) : splat(0.0f)));
            x[v] = part(rows.x + t * width + c, v);
            scaled[v] = step[v] * x[v];
            sum[v] = splat(0.0f);
            if (SHARED) kept[v] = exponential(step[v] * load(decays + v * LANES));
        }
        for (int64_t s = 0; s < states; ++s) {
            const Floats inward = splat(in[s]), outward = splat(out[s]);
            for (int64_t v = 0; v < V; ++v) {
                const int64_t at = s * WIDE + v * LANES;
                if (!SHARED) kept[v] = exponential(step[v] * load(decays + at));
                const Floats h = fma(kept[v], load(carried + at), scaled[v] * inward);
                store(carried + at, h);
                sum[v] = fma(h, outward, sum[v]);
            }
        }
        for (int64_t v = 0; v < V; ++v) put(rows.y + t * width + c, v, fma(part(call.skip + c, v), x[v], sum[v]));
    }
    for (int64_t s = 0; s < states; ++s) {
        for (int64_t v = 0; v < V; ++v) put(rows.state + s * width + c, v, load(carried + s * WIDE + v * LANES));
    }
}

template <bool SHARED>
void scan_channels(const ScanCall& call, const SequenceRows& rows, int64_t begin, int64_t end) {
    constexpr int64_t TOGETHER = 2;
    const int64_t of_group = call.width / call.groups;
    for (int64_t c = begin; c < end;) {
        const int64_t left = smaller(end, (c / of_group + 1) * of_group) - c;
        if (left >= TOGETHER * LANES) {
            scan_lanes<TOGETHER, SHARED>(call, rows, c, TOGETHER * LANES);
            c += TOGETHER * LANES;
        } else {
            scan_lanes<1, SHARED>(call, rows, c, smaller(left, LANES));
            c += smaller(left, LANES);
        }
    }
}

}  // namespace

void scan(const ScanCall& call, const SequenceRows& rows, int64_t begin, int64_t end) {
    (call.shared_decay ? scan_channels<true> : scan_channels<false>)(call, rows, begin, end);
}

}  // namespace linnet::LINNET_TIER
