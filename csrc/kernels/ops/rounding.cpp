// SPDX-License-Identifier: Apache-2.0
// Activations rounded to the codes that a checkpoint prescribes, kept as the numbers those stand for: fp8 (e4m3) and
// int8, with dynamic or static scales, with zero points. The definition is compressed-tensors'; divisions are true
// ones, so that every number equals the reference's bit for bit.
#include "ops.h"

namespace linnet::LINNET_TIER {

namespace {

// |x| <= 448 to nearest even; what is below 2^-6 counts in steps of 2^-9. Keeps NaN.
LINNET_INLINE Floats nearest_fp8(Floats x) {
    const Ints bits = as_ints(x), odd = shift_right<20>(bits) & splat_int(1);
    const Floats normal = as_floats((bits + odd + splat_int(0x7ffff)) & splat_int(~0xfffff));
    const Floats small = round_even(x * splat(512.0f)) * splat(0x1p-9f);
    return select(less(absolute(x), splat(0x1p-6f)), small, normal);
}

struct Range {
    float smallest, largest;
};

LINNET_INLINE Range range_of(const Rounding& rounding) {
    return rounding.fp8 ? Range{-448.0f, 448.0f} : Range{-128.0f, 127.0f};
}

// Scale and zero point of `size` elements that share them.
void dynamic_parameters(const Rounding& rounding, const float* x, int64_t size, float& scale, float& zero_point) {
    const Range range = range_of(rounding);
    Floats low = splat(0.0f), high = splat(0.0f), poison = splat(0.0f);  // poison: NaN if an element is not finite
    for (int64_t i = 0; i < size; i += LANES) {
        const Floats part = load_first(x + i, size - i);
        low = smallest(low, part);
        high = greatest(high, part);
        poison = fma(part, splat(0.0f), poison);
    }
    const float most = top(high), least = -top(splat(0.0f) - low), bad = total(poison);
    if (rounding.symmetric) {
        scale = (most > -least ? most : -least) / ((range.largest - range.smallest) / 2) + bad;
        zero_point = 0.0f;
        return;
    }
    scale = (most - least) / (range.largest - range.smallest) + bad;
    const float exact = range.smallest - least / (scale == 0.0f ? 1.0f : scale);
    alignas(64) float lanes[LANES];
    store(lanes, round_even(splat(exact)));
    zero_point = lanes[0] < range.smallest ? range.smallest : lanes[0] > range.largest ? range.largest : lanes[0];
}

void round_run(const Rounding& rounding, const float* x, float* y, int64_t size, float scale, float zero_point) {
    const Range range = range_of(rounding);
    const Floats divisor = splat(scale == 0.0f ? 1.0f : scale), factor = splat(scale), zero = splat(zero_point);
    for (int64_t i = 0; i < size; i += LANES) {
        Floats code = load_first(x + i, size - i) / divisor;
        if (!rounding.symmetric) code = code + zero;
        code = greatest(splat(range.smallest), smallest(splat(range.largest), code));
        code = rounding.fp8 ? nearest_fp8(code) : round_even(code);
        if (!rounding.symmetric) code = code - zero;
        store_first(y + i, size - i, code * factor);
    }
}

}  // namespace

void round_rows(const float* x, float* y, int64_t rows, int64_t width, const Rounding& rounding) {
    for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
        for (int64_t first = 0; first < width; first += rounding.group_size) {
            const int64_t size = smaller(rounding.group_size, width - first);
            float scale = rounding.scale, zero_point = rounding.zero_point;
            if (rounding.dynamic) dynamic_parameters(rounding, x + first, size, scale, zero_point);
            round_run(rounding, x + first, y + first, size, scale, zero_point);
        }
    }
}

}  // namespace linnet::LINNET_TIER
