// SPDX-License-Identifier: Apache-2.0
// Rows times a matrix with one narrow side, sixteen outputs at a time: what adapters add to a linear's result.
//
// Order of every sum, whatever other rows there are: columns c, ascending, are added to the one of four chains that
// c % 4 names by fused multiply-adds from zero; then (0 + 1) + (2 + 3).
#include "ops.h"

namespace linnet::LINNET_TIER {

namespace {

constexpr int CHAINS = 4;
#if defined(LINNET_AVX512)
constexpr int ROWS = 4;
#else
constexpr int ROWS = 1;
#endif

LINNET_INLINE Floats sixteen(const float* p) { return load(p); }
LINNET_INLINE Floats sixteen(const uint16_t* p) { return load_bf16(p); }

template <int M, typename Element>
LINNET_INLINE void multiply(const Element* panel, int64_t columns, const float* const* x, Floats* sums) {
    Floats chains[M][CHAINS];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
        for (int k = 0; k < CHAINS; ++k) chains[m][k] = splat(0.0f);
    int64_t c = 0;
    for (; c + CHAINS <= columns; c += CHAINS) {
#pragma GCC unroll 16
        for (int k = 0; k < CHAINS; ++k) {
            const Floats w = sixteen(panel + (c + k) * LANES);
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) chains[m][k] = fma(w, splat(x[m][c + k]), chains[m][k]);
        }
    }
#pragma GCC unroll 16
    for (int k = 0; k < CHAINS - 1; ++k) {
        if (c + k >= columns) break;
        const Floats w = sixteen(panel + (c + k) * LANES);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) chains[m][k] = fma(w, splat(x[m][c + k]), chains[m][k]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) sums[m] = (chains[m][0] + chains[m][1]) + (chains[m][2] + chains[m][3]);
}

LINNET_INLINE int64_t place(const int32_t* rows, int64_t row) { return rows ? rows[row] : row; }

template <int M, typename Element>
void some_rows(const Element* panels, const LowRankCall& call, int64_t row, int64_t first, int64_t last) {
    const float* x[M];
    float* y[M];
    for (int m = 0; m < M; ++m) {
        x[m] = call.x + place(call.x_rows, row + m) * call.ldx;
        y[m] = call.y + place(call.y_rows, row + m) * call.ldy;
    }
    for (int64_t panel = first; panel < last; ++panel) {
        Floats sums[M];
        multiply<M>(panels + panel * call.weight.columns * LANES, call.weight.columns, x, sums);
        const int64_t begin = panel * LANES, count = smaller(call.weight.outputs - begin, LANES);
        for (int m = 0; m < M; ++m) {
            const Floats sum = call.adds ? load_first(y[m] + begin, count) + sums[m] : sums[m] * splat(call.factor);
            store_first(y[m] + begin, count, sum);
        }
    }
}

template <typename Element>
void all_rows(const LowRankCall& call, int64_t begin, int64_t end, int64_t first, int64_t last) {
    const Element* panels = static_cast<const Element*>(call.weight.panels);
    int64_t row = begin;
    for (; row + ROWS <= end; row += ROWS) some_rows<ROWS>(panels, call, row, first, last);
    for (; row < end; ++row) some_rows<1>(panels, call, row, first, last);
}

}  // namespace

void low_rank(const LowRankCall& call, int64_t begin, int64_t end, int64_t first, int64_t last) {
    if (call.weight.bf16) return all_rows<uint16_t>(call, begin, end, first, last);
    all_rows<float>(call, begin, end, first, last);
}

}  // namespace linnet::LINNET_TIER
