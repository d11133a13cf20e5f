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

// Channels [c, c + n), all of one group.
void scan_lanes(const ScanCall& call, const SequenceRows& rows, int64_t c, int64_t n) {
    const int64_t width = call.width, states = call.states, heads = width / call.head_size;
    const int64_t group = c / (width / call.groups) * states;
    alignas(64) float carried[ScanCall::MOST_STATES * LANES];
    for (int64_t s = 0; s < states; ++s) {
        store(carried + s * LANES, rows.fresh ? splat(0.0f) : load_first(rows.state + s * width + c, n));
    }
    const Floats skip = load_first(call.skip + c, n);
    const Floats bias = call.bias ? load_first(call.bias + c, n) : splat(0.0f);
    alignas(64) float of_heads[LANES] = {};
    for (int64_t t = 0; t < rows.rows; ++t) {
        const float* steps = rows.steps + t * heads;
        for (int64_t i = 0; i < n; ++i) of_heads[i] = steps[(c + i) / call.head_size];
        const Floats step = soft_plus(load(of_heads) + bias), x = load_first(rows.x + t * width + c, n);
        const Floats scaled = step * x;
        const float *in = rows.in + t * call.groups * states + group,
                    *out = rows.out + t * call.groups * states + group;
        Floats sum = splat(0.0f), kept = splat(0.0f);
        if (call.shared_decay) kept = exponential(step * load_first(call.decay + c, n));
        for (int64_t s = 0; s < states; ++s) {
            if (!call.shared_decay) kept = exponential(step * load_first(call.decay + s * width + c, n));
            const Floats h = fma(kept, load(carried + s * LANES), scaled * splat(in[s]));
            store(carried + s * LANES, h);
            sum = fma(h, splat(out[s]), sum);
        }
        store_first(rows.y + t * width + c, n, fma(skip, x, sum));
    }
    for (int64_t s = 0; s < states; ++s) store_first(rows.state + s * width + c, n, load(carried + s * LANES));
}

}  // namespace

void scan(const ScanCall& call, const SequenceRows& rows, int64_t begin, int64_t end) {
    const int64_t of_group = call.width / call.groups;
    for (int64_t c = begin; c < end;) {
        const int64_t n = smaller(smaller(end, (c / of_group + 1) * of_group) - c, LANES);
        scan_lanes(call, rows, c, n);
        c += n;
    }
}

}  // namespace linnet::LINNET_TIER
