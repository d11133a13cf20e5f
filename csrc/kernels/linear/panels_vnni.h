// SPDX-License-Identifier: Apache-2.0
// The kernels of panels_vnni.cpp: a panel, 16 T outputs times a block of columns, meets a tile of rows. A register of
// codes serves as many products as there are rows, a word of a row T.
#pragma once

#include "panels.h"
#include "strip.h"

namespace linnet::LINNET_TIER {

// Rows that meet a panel at once; where a row has several spans, totals or sums of groups need registers too.
static constexpr int T = TILE_COUNT, MOST_ROWS = 8, MOST_ROWS_OF_SPANS = 7;
static constexpr int64_t LANES_OF_PANEL = 16 * T;
static constexpr int64_t SLOTS = 2 * MOST_ROWS;  // of a slab: two tiles of rows
static constexpr int64_t BLOCK_COLUMNS = 512;    // so that a panel and a slab stay in L1
static constexpr int64_t LEAST_GROUP = 16;       // columns, of two levels
static constexpr int64_t MOST_SPANS = BLOCK_COLUMNS / RUN_COLUMNS;
static constexpr int64_t MOST_GROUPS = BLOCK_COLUMNS / LEAST_GROUP;
static constexpr int64_t MOST_PAIRS = MOST_GROUPS / 2;

// What codes still have too much once they are multiplied, or a weight besides its scale.
enum class Excess { constant, zero_points, minimums, scaled_constant, coded_minimums };

namespace {

// A block of columns of 16 T outputs: a byte per code, and what belongs to its spans, groups and pairs of groups.
struct Panel {
    const uint8_t* codes;
    alignas(64) float scales[MOST_SPANS * LANES_OF_PANEL];
    float minimums[MOST_SPANS * LANES_OF_PANEL];
    int32_t zeros[MOST_SPANS * LANES_OF_PANEL];     // zero points with the constant
    int32_t factors[MOST_GROUPS * LANES_OF_PANEL];  // of fold_exactly
    int32_t pairs[MOST_PAIRS * LANES_OF_PANEL];     // codes that sums of x meet, two groups' in the halves of a lane
};

// The same block of a slab of rows: two tiles, each in MOST_ROWS slots, so that a kernel reads what it needs of them at
// constant distances. (With a row's own distance addresses spilled, and their loads took the place of codes'.)
struct Slab {
    alignas(
        64) int32_t words[BLOCK_COLUMNS / 4 * SLOTS];  // [halves of eights][SLOTS]; the others per span, group, pair
    int32_t sums[MOST_GROUPS * SLOTS];                 // of codes
    int32_t offsets[MOST_GROUPS * SLOTS];              // what sums begin with: of a span, of two levels of a group
    int32_t minus_sums[MOST_SPANS * SLOTS];            // of codes, for zero points
    float scales[MOST_SPANS * SLOTS];
    float minimum_factors[MOST_SPANS * SLOTS];
    int32_t pairs[MOST_PAIRS * SLOTS];
};

// One of its tiles.
struct Rows {
    const int32_t *words, *offsets, *minus_sums, *pairs;
    const float *scales, *minimum_factors;

    Rows(const Slab& slab, int64_t tile)
        : words(slab.words + tile * MOST_ROWS),
          offsets(slab.offsets + tile * MOST_ROWS),
          minus_sums(slab.minus_sums + tile * MOST_ROWS),
          pairs(slab.pairs + tile * MOST_ROWS),
          scales(slab.scales + tile * MOST_ROWS),
          minimum_factors(slab.minimum_factors + tile * MOST_ROWS) {}
};

struct Block {
    int64_t column, eights, first_span, spans, span_eights, group_eights;
    int64_t pairs;  // of a span
    bool ends;      // the row
};

}  // namespace

// A scale's code c as the words c and 256 c: what the bytes 0 and 1, 2 of a sum are multiplied with.
LINNET_INLINE Ints exact_factor(const int8_t* codes) {
    const Ints own = widen_bytes(codes);
    return (own & splat_int(0xffff)) | shift_left<24>(own);
}
// sum + dot * code, exact for a dot of 24 bits: two products of words, where a multiplication of lanes is twice as
// dear.
LINNET_INLINE Ints fold_exactly(Ints sum, Ints dot, Ints factor) {
    const __m512i halves =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, -1, 1, 2, 4, -1, 5, 6, 8, -1, 9, 10, 12, -1, 13, 14));
    return {_mm512_dpwssd_epi32(sum.v, _mm512_shuffle_epi8(dot.v, halves), factor.v)};
}
LINNET_INLINE Ints dot_words(Ints sum, Ints a, Ints b) { return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)}; }
LINNET_INLINE Ints splat_number(const int32_t* p) { return splat_int(*p); }

// `eights` eights, a constant, of M rows times the panel's outputs, `times` times, to `sums` [M][T]; codes and words
// move on. No function: g++ 12 spills sums that it passes by reference. No loop over eights: leaving one after four
// rounds was mispredicted every time, which took longer than what it went round.
#define LINNET_ADD_EIGHTS(sums, eights, times)                                                     \
    {                                                                                              \
        int64_t left_over = times;                                                                 \
        do {                                                                                       \
            _Pragma("GCC unroll 8") for (int half = 0; half < 2 * eights; ++half) {                \
                Ints own[T];                                                                       \
                _Pragma("GCC unroll 2") for (int t = 0; t < T; ++t) own[t] =                       \
                    load_ints((const int32_t*)(codes + (half / 2 * T + t) * 128 + half % 2 * 64)); \
                _Pragma("GCC unroll 8") for (int m = 0; m < M; ++m) {                              \
                    const Ints word = splat_number(words + half * SLOTS + m);                      \
                    _Pragma("GCC unroll 2") for (int t = 0; t < T; ++t) sums[m][t] =               \
                        dot_bytes<true>(sums[m][t], own[t], word);                                 \
                }                                                                                  \
                load_what_follows_later();                                                         \
            }                                                                                      \
            codes += T * 128 * eights;                                                             \
            words += 2 * SLOTS * eights;                                                           \
        } while (--left_over > 0);                                                                 \
    }

// totals [M][16 T] of the panel's outputs, in registers meanwhile: in memory the end of a span would wait for the
// stores of the one before, and take as long as its products. `own_eights`: a span's; 0 where they are counted, a
// loop within the loop, for which g++ 12 spills.
template <Excess excess, int own_eights, int M>
static void multiply_spans(const Panel& panel, const Rows& rows, const Block& block, float* place) {
    const uint8_t* codes = panel.codes;
    const int32_t* words = rows.words;
    Floats totals[M][T];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) totals[m][t] = load(place + m * LANES_OF_PANEL + t * 16);
    int64_t left = block.eights;
    for (int64_t span = 0; span < block.spans; ++span, left -= block.span_eights) {
        const int64_t at = span * LANES_OF_PANEL, own_rows = span * SLOTS;
        Ints sums[M][T];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t) sums[m][t] = splat_number(rows.offsets + own_rows + m);
        if constexpr (own_eights != 0)
            LINNET_ADD_EIGHTS(sums, own_eights, 1)
        else
            LINNET_ADD_EIGHTS(sums, 4, smaller(block.span_eights, left) / RUN_EIGHTS)
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) {
            const Floats scale = load(panel.scales + at + t * 16);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                Ints sum = sums[m][t];
                if constexpr (excess == Excess::zero_points)
                    sum = sum + load_ints(panel.zeros + at + t * 16) * splat_number(rows.minus_sums + own_rows + m);
                totals[m][t] = fma(to_floats(sum) * splat(rows.scales[own_rows + m]), scale, totals[m][t]);
                if constexpr (excess == Excess::minimums)
                    totals[m][t] = fnma(splat(rows.minimum_factors[own_rows + m]), load(panel.minimums + at + t * 16),
                                        totals[m][t]);
            }
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) store(place + m * LANES_OF_PANEL + t * 16, totals[m][t]);
}

// The same where the row is one span: totals hold its integers until its last block.
template <Excess excess, int M>
static void multiply_row(const Panel& panel, const Rows& rows, const Block& block, float* totals) {
    const uint8_t* codes = panel.codes;
    const int32_t* words = rows.words;
    Ints sums[M][T];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) sums[m][t] = load_ints((const int32_t*)totals + m * LANES_OF_PANEL + t * 16);
    LINNET_ADD_EIGHTS(sums, 4, block.eights / RUN_EIGHTS)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) {
            float* place = totals + m * LANES_OF_PANEL + t * 16;
            if (!block.ends) {
                store_ints((int32_t*)place, sums[m][t]);
                continue;
            }
            Ints sum = sums[m][t] + splat_number(rows.offsets + m);
            if constexpr (excess == Excess::zero_points)
                sum = sum + load_ints(panel.zeros + t * 16) * splat_number(rows.minus_sums + m);
            Floats total = fma(to_floats(sum) * splat(rows.scales[m]), load(panel.scales + t * 16), splat(0.0f));
            if constexpr (excess == Excess::minimums)
                total = fnma(splat(rows.minimum_factors[m]), load(panel.minimums + t * 16), total);
            store(place, total);
        }
}

// The same of two levels, whose sums of groups need the registers too; `own_eights`: a group's, or 0.
template <Excess excess, int own_eights, int M>
static void multiply_groups(const Panel& panel, const Rows& rows, const Block& block, float* totals) {
    const uint8_t* codes = panel.codes;
    const int32_t* words = rows.words;
    const int32_t *factors = panel.factors, *starts = rows.offsets;
    int64_t left = block.eights;
    for (int64_t span = 0; span < block.spans; ++span, left -= block.span_eights) {
        const int64_t at = span * LANES_OF_PANEL, own_rows = span * SLOTS;
        const int64_t eights = smaller(block.span_eights, left);
        const int64_t count = own_eights != 0 ? own_eights : block.group_eights;
        Ints sums[M][T];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t) sums[m][t] = splat_int(0);
        for (int64_t first = 0; first < eights; first += count, factors += LANES_OF_PANEL, starts += SLOTS) {
            Ints dots[M][T];
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
                for (int t = 0; t < T; ++t)
                    dots[m][t] = excess == Excess::scaled_constant ? splat_number(starts + m) : splat_int(0);
            if constexpr (own_eights != 0)
                LINNET_ADD_EIGHTS(dots, own_eights, 1)
            else
                LINNET_ADD_EIGHTS(dots, 4, smaller(count, eights - first) / RUN_EIGHTS)
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m) {
                    sums[m][t] = fold_exactly(sums[m][t], dots[m][t], load_ints(factors + t * 16));
                    finish_here(sums[m][t]);
                }
        }
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) {
            Ints offsets[M];
            if constexpr (excess == Excess::coded_minimums) {
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m) offsets[m] = splat_int(0);
#pragma GCC unroll 1
                for (int64_t pair = span * block.pairs; pair < (span + 1) * block.pairs; ++pair) {
                    const Ints own = load_ints(panel.pairs + pair * LANES_OF_PANEL + t * 16);
#pragma GCC unroll 8
                    for (int m = 0; m < M; ++m)
                        offsets[m] = dot_words(offsets[m], own, splat_number(rows.pairs + pair * SLOTS + m));
                }
            }
            const Floats scale = load(panel.scales + at + t * 16);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                float* place = totals + m * LANES_OF_PANEL + t * 16;
                const Floats row_scale = splat(rows.scales[own_rows + m]);
                Floats total = fma(to_floats(sums[m][t]) * row_scale, scale, load(place));
                if constexpr (excess == Excess::coded_minimums)
                    total = fnma(to_floats(offsets[m]) * row_scale, load(panel.minimums + at + t * 16), total);
                store(place, total);
            }
        }
    }
}

#undef LINNET_ADD_EIGHTS

using Multiply = void (*)(const Panel& panel, const Rows& rows, const Block& block, float* totals);

template <Excess excess, int own_eights>
static Multiply of_spans(int64_t rows) {
    static constexpr Multiply found[] = {multiply_spans<excess, own_eights, 1>, multiply_spans<excess, own_eights, 2>,
                                         multiply_spans<excess, own_eights, 3>, multiply_spans<excess, own_eights, 4>,
                                         multiply_spans<excess, own_eights, 5>, multiply_spans<excess, own_eights, 6>,
                                         multiply_spans<excess, own_eights, 7>};
    return found[rows - 1];
}
template <Excess excess>
static Multiply of_row(int64_t rows) {
    static constexpr Multiply found[] = {multiply_row<excess, 1>, multiply_row<excess, 2>, multiply_row<excess, 3>,
                                         multiply_row<excess, 4>, multiply_row<excess, 5>, multiply_row<excess, 6>,
                                         multiply_row<excess, 7>, multiply_row<excess, 8>};
    return found[rows - 1];
}
template <Excess excess, int own_eights>
static Multiply of_groups(int64_t rows) {
    static constexpr Multiply found[] = {multiply_groups<excess, own_eights, 1>, multiply_groups<excess, own_eights, 2>,
                                         multiply_groups<excess, own_eights, 3>, multiply_groups<excess, own_eights, 4>,
                                         multiply_groups<excess, own_eights, 5>, multiply_groups<excess, own_eights, 6>,
                                         multiply_groups<excess, own_eights, 7>};
    return found[rows - 1];
}

template <Excess excess>
static Multiply of_one_level(bool one_span, int64_t eights, int64_t rows) {
    if (one_span) return of_row<excess>(rows);
    return eights == RUN_EIGHTS ? of_spans<excess, RUN_EIGHTS>(rows) : of_spans<excess, 0>(rows);
}
template <Excess excess>
static Multiply of_two_levels(int64_t eights, int64_t rows) {
    if (eights == LEAST_GROUP / 8) return of_groups<excess, LEAST_GROUP / 8>(rows);
    return eights == RUN_EIGHTS ? of_groups<excess, RUN_EIGHTS>(rows) : of_groups<excess, 0>(rows);
}
// `eights` of a group of two levels, of a span.
static Multiply choose(Excess excess, bool one_span, int64_t eights, int64_t rows) {
    if (excess == Excess::constant) return of_one_level<Excess::constant>(one_span, eights, rows);
    if (excess == Excess::zero_points) return of_one_level<Excess::zero_points>(one_span, eights, rows);
    if (excess == Excess::minimums) return of_one_level<Excess::minimums>(one_span, eights, rows);
    if (excess == Excess::scaled_constant) return of_two_levels<Excess::scaled_constant>(eights, rows);
    return of_two_levels<Excess::coded_minimums>(eights, rows);
}

}  // namespace linnet::LINNET_TIER
