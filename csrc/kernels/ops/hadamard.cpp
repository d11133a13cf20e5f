// SPDX-License-Identifier: Apache-2.0
// Walsh-Hadamard transform of runs of 2^k neighbours: sums and differences of pairs 1, 2, 4 ... apart. What is added to
// what, and in which order, follows from k alone, so that bits are the same on every tier and in the reference backend.
#include "ops.h"
#include "swap_lanes.h"

namespace linnet::LINNET_TIER {

namespace {

alignas(64) constexpr float SIGNS[4][LANES] = {
    {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1},
    {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1},
    {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1},
    {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1},
};

// The first stages, up to pairs size / 2 apart, of runs inside one vector. A product with 1 or -1 is exact.
template <int size>
LINNET_INLINE Floats inside(Floats x) {
    x = fma(x, load(SIGNS[0]), swap_lanes<1>(x));
    if constexpr (size > 2) x = fma(x, load(SIGNS[1]), swap_lanes<2>(x));
    if constexpr (size > 4) x = fma(x, load(SIGNS[2]), swap_lanes<4>(x));
    if constexpr (size > 8) x = fma(x, load(SIGNS[3]), swap_lanes<8>(x));
    return x;
}

LINNET_INLINE void pair(Floats& a, Floats& b) {
    const Floats sum = a + b;
    b = a - b;
    a = sum;
}

// Runs of at most a vector; where n ends in the middle of one, whole runs are left.
template <int size>
void within_lanes(const float* x, float* y, int64_t n, Floats factor) {
    for (int64_t i = 0; i < n; i += LANES) {
        store_first(y + i, n - i, inside<size>(load_first(x + i, n - i) * factor));
    }
}

// `vectors` vectors at a time, held in registers: all stages of so many lanes.
template <int vectors>
void within_registers(const float* x, float* y, int64_t n, Floats factor) {
    for (int64_t i = 0; i < n; i += vectors * LANES) {
        Floats v[vectors];
        for (int k = 0; k < vectors; ++k) v[k] = inside<LANES>(load(x + i + k * LANES) * factor);
        for (int apart = 1; apart < vectors; apart *= 2) {
            for (int k = 0; k < vectors; ++k) {
                if ((k & apart) == 0) pair(v[k], v[k + apart]);
            }
        }
        for (int k = 0; k < vectors; ++k) store(y + i + k * LANES, v[k]);
    }
}

// Pairs `apart` and, in the same pass, twice as far apart where the run is long enough.
void wider(float* y, int64_t n, int64_t apart, bool twice) {
    const int64_t step = twice ? 4 * apart : 2 * apart;
    for (int64_t start = 0; start < n; start += step) {
        for (int64_t i = start; i < start + apart; i += LANES) {
            Floats a = load(y + i), b = load(y + i + apart);
            pair(a, b);
            if (twice) {
                Floats c = load(y + i + 2 * apart), d = load(y + i + 3 * apart);
                pair(c, d);
                pair(a, c);
                pair(b, d);
                store(y + i + 2 * apart, c);
                store(y + i + 3 * apart, d);
            }
            store(y + i, a);
            store(y + i + apart, b);
        }
    }
}

void run_of(const float* x, float* y, int64_t size, Floats factor) {
    constexpr int64_t HELD = 4 * LANES;
    within_registers<4>(x, y, size, factor);
    for (int64_t apart = HELD; apart < size; apart *= 4) wider(y, size, apart, 2 * apart < size);
}

}  // namespace

void hadamard(const float* x, float* y, int64_t n, int64_t size) {
    const Floats factor = splat(1.0f) / root(splat(float(size)));
    switch (size) {
        case 2:
            return within_lanes<2>(x, y, n, factor);
        case 4:
            return within_lanes<4>(x, y, n, factor);
        case 8:
            return within_lanes<8>(x, y, n, factor);
        case 16:
            return within_lanes<16>(x, y, n, factor);
        case 32:
            return within_registers<2>(x, y, n, factor);
        default:
            for (int64_t i = 0; i < n; i += size) run_of(x + i, y + i, size, factor);
    }
}

}  // namespace linnet::LINNET_TIER
