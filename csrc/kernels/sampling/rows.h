// SPDX-License-Identifier: Apache-2.0
// Reductions over a row of the vocabulary, all in one fixed order: runs of 256 in sixteen fp32 lanes, each run's total
// added to a double. A double sum of 600 runs loses nothing that matters; fp32 exponentials are good to 1e-7.
#pragma once

#include "kernels/vector_math.h"

namespace linnet::LINNET_TIER {

constexpr int64_t RUN = 256;
constexpr float MINUS_INFINITY = -__builtin_inff();

// Natural logarithm of x > 0 without libm (whose bits depend on the machine): atanh series on the mantissa.
LINNET_INLINE double natural_log(double x) {
    if (!(x > 0.0)) return x == 0.0 ? -__builtin_inf() : __builtin_nan("");
    if (x > 1.7e308) return x;  // infinity
    uint64_t bits;
    std::memcpy(&bits, &x, 8);
    int64_t exponent = int64_t(bits >> 52) - 1023;
    bits = (bits & 0x000fffffffffffffull) | 0x3ff0000000000000ull;
    double mantissa;
    std::memcpy(&mantissa, &bits, 8);
    if (mantissa > 1.4142135623730951) {
        mantissa *= 0.5;
        ++exponent;
    }
    const double z = (mantissa - 1.0) / (mantissa + 1.0);  // |z| <= 0.1716, z^2 <= 0.0295
    const double square = z * z;
    double series = 1.0 / 23.0;
    for (int term = 21; term >= 1; term -= 2) series = series * square + 1.0 / term;
    return double(exponent) * 0.6931471805599453 + 2.0 * z * series;
}

struct Greatest {
    float value;
    int32_t index;  // lowest id of the greatest value; -1 if a value is not a number
};

LINNET_INLINE Greatest greatest_of(const float* x, int64_t n) {
    constexpr int CHAINS = 4;  // each waits for itself only
    const Floats ones = splat(1.0f), zeros = splat(0.0f);
    Floats peaks[CHAINS], strange[CHAINS];  // strange: 1 once a NaN was seen
    for (int k = 0; k < CHAINS; ++k) {
        peaks[k] = splat(MINUS_INFINITY);
        strange[k] = zeros;
    }
    const int64_t whole = n / (16 * CHAINS) * (16 * CHAINS);
    for (int64_t i = 0; i < whole; i += 16 * CHAINS) {
#pragma GCC unroll 4
        for (int k = 0; k < CHAINS; ++k) {
            const Floats v = load(x + i + 16 * k);
            peaks[k] = greatest(peaks[k], v);
            strange[k] = select(equal(v, v), strange[k], ones);
        }
    }
    float value = top(greatest(greatest(peaks[0], peaks[1]), greatest(peaks[2], peaks[3])));
    bool missing = top(greatest(greatest(strange[0], strange[1]), greatest(strange[2], strange[3]))) != 0.0f;
    for (int64_t i = whole; i < n; ++i) {
        missing = missing || x[i] != x[i];
        if (x[i] > value) value = x[i];
    }
    if (missing) return {value, -1};
    const Floats wanted = splat(value);
    int64_t i = 0;
    for (; i + RUN <= n; i += RUN) {
        Floats found = zeros;
        for (int64_t k = 0; k < RUN; k += 16) found = select(equal(load(x + i + k), wanted), ones, found);
        if (top(found) != 0.0f) break;
    }
    while (i < n && x[i] != value) ++i;
    return {value, int32_t(i)};
}

// Sum of exp(x - shift).
LINNET_INLINE double exponential_sum(const float* x, int64_t n, float shift) {
    double sum = 0.0;
    for (int64_t run = 0; run < n; run += RUN) {
        const int64_t end = smaller(n, run + RUN);
        Floats lanes = splat(0.0f);
        int64_t i = run;
        for (; i + 16 <= end; i += 16) lanes = lanes + exponential(load(x + i) - splat(shift));
        if (i < end) {
            const Floats tail = exponential(load_first(x + i, end - i) - splat(shift));
            lanes = lanes + select(first_lanes(end - i), tail, splat(0.0f));
        }
        sum += double(total(lanes));
    }
    return sum;
}

}  // namespace linnet::LINNET_TIER
