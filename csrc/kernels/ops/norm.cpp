// SPDX-License-Identifier: Apache-2.0
// RMS and layer normalisation of runs of `size` elements. Sums: four vector accumulators taken in turn, then one tree.
#include "ops.h"

namespace linnet::LINNET_TIER {

namespace {

// Sum of body(x) over n elements; lanes past the end contribute body's value at zero masked to 0.
template <typename Body>
LINNET_INLINE float sum_of(const float* x, int64_t n, const Body& body) {
    Floats sums[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
    for (int64_t i = 0; i < n; i += 4 * LANES) {
        for (int64_t k = 0; k < 4; ++k) {
            const int64_t at = i + k * LANES;
            if (at + LANES <= n) {
                sums[k] = body(sums[k], load(x + at));
            } else if (at < n) {
                sums[k] = select(first_lanes(n - at), body(sums[k], load_first(x + at, n - at)), sums[k]);
            }
        }
    }
    return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace

void rms_norm(const float* x, float* y, int64_t rows, int64_t width, int64_t size, const float* gain, int64_t gains,
              float offset, float epsilon) {
    const int64_t runs = rows * (width / size);
    for (int64_t run = 0, first = 0; run < runs; ++run, x += size, y += size) {
        const float squares =
            sum_of(x, size, [](Floats sum, Floats v) __attribute__((always_inline)) { return fma(v, v, sum); });
        const Floats factor = splat(1.0f) / root(splat(squares / float(size) + epsilon));
        for (int64_t i = 0; i < size; i += LANES) {
            const int64_t n = size - i;
            store_first(y + i, n, load_first(x + i, n) * factor * (load_first(gain + first + i, n) + splat(offset)));
        }
        first = first + size < gains ? first + size : 0;
    }
}

void layer_norm(const float* x, float* y, int64_t rows, int64_t width, int64_t size, const float* gain,
                const float* bias, int64_t gains, float offset, float epsilon) {
    const int64_t runs = rows * (width / size);
    for (int64_t run = 0, first = 0; run < runs; ++run, x += size, y += size) {
        const float sum = sum_of(x, size, [](Floats s, Floats v) __attribute__((always_inline)) { return s + v; });
        const Floats mean = splat(sum / float(size));
        const float squares = sum_of(x, size, [mean](Floats s, Floats v) __attribute__((always_inline)) {
            const Floats d = v - mean;
            return fma(d, d, s);
        });
        const Floats factor = splat(1.0f) / root(splat(squares / float(size) + epsilon));
        for (int64_t i = 0; i < size; i += LANES) {
            const int64_t n = size - i;
            const Floats normal = (load_first(x + i, n) - mean) * factor;
            const Floats g = load_first(gain + first + i, n) + splat(offset);
            store_first(y + i, n, bias ? fma(normal, g, load_first(bias + first + i, n)) : normal * g);
        }
        first = first + size < gains ? first + size : 0;
    }
}

}  // namespace linnet::LINNET_TIER
