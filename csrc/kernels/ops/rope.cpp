// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding. half: pairs (i, i + rotary / 2), 16 at a time; interleaved: pairs (2i, 2i + 1).
#include "ops.h"

namespace linnet::LINNET_TIER {

namespace {

void rotate_half(const float* x, float* y, int64_t half, const float* cosine, const float* sine) {
    for (int64_t i = 0; i < half; i += LANES) {
        const int64_t n = half - i;
        const Floats a = load_first(x + i, n), b = load_first(x + half + i, n);
        const Floats c = load_first(cosine + i, n), s = load_first(sine + i, n);
        store_first(y + i, n, fnma(b, s, a * c));
        store_first(y + half + i, n, fma(a, s, b * c));
    }
}

// Deinterleaved through a small buffer so that the arithmetic is the same vector code.
void rotate_interleaved(const float* x, float* y, int64_t half, const float* cosine, const float* sine) {
    alignas(64) float even[LANES], odd[LANES];
    for (int64_t i = 0; i < half; i += LANES) {
        const int64_t n = smaller(half - i, LANES);
        for (int64_t k = 0; k < LANES; ++k) {
            even[k] = k < n ? x[2 * (i + k)] : 0.0f;
            odd[k] = k < n ? x[2 * (i + k) + 1] : 0.0f;
        }
        const Floats a = load(even), b = load(odd), c = load_first(cosine + i, n), s = load_first(sine + i, n);
        store(even, fnma(b, s, a * c));
        store(odd, fma(a, s, b * c));
        for (int64_t k = 0; k < n; ++k) {
            y[2 * (i + k)] = even[k];
            y[2 * (i + k) + 1] = odd[k];
        }
    }
}

}  // namespace

void rope(const float* x, float* y, int64_t rows, int64_t width, int64_t head_size, int64_t rotary_size,
          RopeStyle style, const int32_t* positions, const float* cosine, const float* sine) {
    const int64_t half = rotary_size / 2;
    for (int64_t row = 0; row < rows; ++row) {
        const float* c = cosine + positions[row] * half;
        const float* s = sine + positions[row] * half;
        for (int64_t head = 0; head < width; head += head_size) {
            const float* from = x + row * width + head;
            float* to = y + row * width + head;
            if (style == RopeStyle::half) {
                rotate_half(from, to, half, c, s);
            } else {
                rotate_interleaved(from, to, half, c, s);
            }
            if (rotary_size < head_size)
                std::memcpy(to + rotary_size, from + rotary_size, size_t(head_size - rotary_size) * 4);
        }
    }
}

}  // namespace linnet::LINNET_TIER
