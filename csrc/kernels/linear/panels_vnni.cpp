// SPDX-License-Identifier: Apache-2.0
// panels.h for the tiers with VNNI, whose dot products of bytes are sums of 32 bits at once. Eight rows (five
// where scales have two levels) meet 32 outputs at a time, so that a register of codes serves as many products, a word
// of a row two, and sums keep both multipliers busy; what a span begins and ends with (offsets, scales) is made once
// per block for all outputs of an item.
#include "panels.h"
#include "strip.h"

namespace linnet::LINNET_TIER {

#if defined(LINNET_VNNI)

static constexpr int T = TILE_COUNT, MOST_ROWS = 8, MOST_ROWS_TWO_LEVEL = 5;
static constexpr int64_t MOST_PANELS = 4;      // of 16 T outputs
static constexpr int64_t BLOCK_COLUMNS = 256;  // so that an item's codes stay in L1
static constexpr int64_t FEWEST_ROWS = 5;      // below, unpacking costs more than it brings
static constexpr int64_t LEAST_GROUP = 16;     // columns, of two levels
static constexpr int64_t MOST_SPANS = BLOCK_COLUMNS / RUN_COLUMNS;
static constexpr int64_t MOST_GROUPS = BLOCK_COLUMNS / LEAST_GROUP;
static constexpr int64_t MOST_PAIRS = MOST_GROUPS / 2;
static constexpr int64_t LANES_OF_PANEL = 16 * T;

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

// The same block of some rows, [spans, groups or pairs][MOST_ROWS].
struct Rows {
    int32_t offsets[MOST_GROUPS * MOST_ROWS];    // what sums begin with: of a span, of two levels of a group
    int32_t minus_sums[MOST_SPANS * MOST_ROWS];  // of codes, for zero points
    float scales[MOST_SPANS * MOST_ROWS];
    float minimum_factors[MOST_SPANS * MOST_ROWS];
    int32_t pairs[MOST_PAIRS * MOST_ROWS];
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

// `eights` eights, a constant, of M rows times the panel's outputs, `times` times, to `sums` [M][T]; codes and x move
// on. No function: g++ 12 spills sums that it passes by reference. No loop over eights: leaving one after four rounds
// was mispredicted every time, which took longer than what it went round.
#define LINNET_ADD_EIGHTS(sums, eights, times)                                                     \
    {                                                                                              \
        int64_t left_over = times;                                                                 \
        do {                                                                                       \
            _Pragma("GCC unroll 8") for (int half = 0; half < 2 * eights; ++half) {                \
                Ints own[T];                                                                       \
                _Pragma("GCC unroll 2") for (int t = 0; t < T; ++t) own[t] =                       \
                    load_ints((const int32_t*)(codes + (half / 2 * T + t) * 128 + half % 2 * 64)); \
                _Pragma("GCC unroll 8") for (int m = 0; m < M; ++m) {                              \
                    const Ints word = splat_word(x + m * row_bytes + 4 * half);                    \
                    _Pragma("GCC unroll 2") for (int t = 0; t < T; ++t) sums[m][t] =               \
                        dot_bytes<true>(sums[m][t], own[t], word);                                 \
                }                                                                                  \
                load_what_follows_later();                                                         \
            }                                                                                      \
            codes += T * 128 * eights;                                                             \
            x += 8 * eights;                                                                       \
        } while (--left_over > 0);                                                                 \
    }

// totals [M][16 T] of the panel's outputs.
template <Excess excess, int M>
static void multiply_spans(const Panel& panel, const int8_t* x, int64_t row_bytes, const Rows& rows, const Block& block,
                           float* totals) {
    const uint8_t* codes = panel.codes;
    int64_t left = block.eights;
    for (int64_t span = 0; span < block.spans; ++span, left -= block.span_eights) {
        const int64_t at = span * LANES_OF_PANEL, own_rows = span * MOST_ROWS;
        Ints sums[M][T];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t) sums[m][t] = splat_number(rows.offsets + own_rows + m);
        LINNET_ADD_EIGHTS(sums, 4, smaller(block.span_eights, left) / RUN_EIGHTS)
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) {
            const Floats scale = load(panel.scales + at + t * 16);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                float* place = totals + m * LANES_OF_PANEL + t * 16;
                Ints sum = sums[m][t];
                if constexpr (excess == Excess::zero_points)
                    sum = sum + load_ints(panel.zeros + at + t * 16) * splat_number(rows.minus_sums + own_rows + m);
                Floats total = fma(to_floats(sum) * splat(rows.scales[own_rows + m]), scale, load(place));
                if constexpr (excess == Excess::minimums)
                    total = fnma(splat(rows.minimum_factors[own_rows + m]), load(panel.minimums + at + t * 16), total);
                store(place, total);
            }
        }
    }
}

// The same where the row is one span: totals hold its integers until its last block.
template <Excess excess, int M>
static void multiply_row(const Panel& panel, const int8_t* x, int64_t row_bytes, const Rows& rows, const Block& block,
                         float* totals) {
    const uint8_t* codes = panel.codes;
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

// The same of two levels, whose sums of groups need the registers too; `halves`: groups are half a run.
template <Excess excess, bool halves, int M>
static void multiply_groups(const Panel& panel, const int8_t* x, int64_t row_bytes, const Rows& rows,
                            const Block& block, float* totals) {
    const uint8_t* codes = panel.codes;
    const int32_t *factors = panel.factors, *starts = rows.offsets;
    int64_t left = block.eights;
    for (int64_t span = 0; span < block.spans; ++span, left -= block.span_eights) {
        const int64_t at = span * LANES_OF_PANEL, own_rows = span * MOST_ROWS;
        const int64_t eights = smaller(block.span_eights, left), count = block.group_eights;
        Ints sums[M][T];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t) sums[m][t] = splat_int(0);
        for (int64_t first = 0; first < eights; first += count, factors += LANES_OF_PANEL, starts += MOST_ROWS) {
            Ints dots[M][T];
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
                for (int t = 0; t < T; ++t)
                    dots[m][t] = excess == Excess::scaled_constant ? splat_number(starts + m) : splat_int(0);
            if constexpr (halves)
                LINNET_ADD_EIGHTS(dots, 2, 1)
            else
                LINNET_ADD_EIGHTS(dots, 4, count / RUN_EIGHTS)
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m)
                    sums[m][t] = fold_exactly(sums[m][t], dots[m][t], load_ints(factors + t * 16));
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
                        offsets[m] = dot_words(offsets[m], own, splat_number(rows.pairs + pair * MOST_ROWS + m));
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

using Multiply = void (*)(const Panel& panel, const int8_t* x, int64_t row_bytes, const Rows& rows, const Block& block,
                          float* totals);

template <Excess excess>
static Multiply of_spans(bool one_span, int64_t rows) {
    static constexpr Multiply spans[] = {
        multiply_spans<excess, 1>, multiply_spans<excess, 2>, multiply_spans<excess, 3>, multiply_spans<excess, 4>,
        multiply_spans<excess, 5>, multiply_spans<excess, 6>, multiply_spans<excess, 7>, multiply_spans<excess, 8>};
    static constexpr Multiply row[] = {multiply_row<excess, 1>, multiply_row<excess, 2>, multiply_row<excess, 3>,
                                       multiply_row<excess, 4>, multiply_row<excess, 5>, multiply_row<excess, 6>,
                                       multiply_row<excess, 7>, multiply_row<excess, 8>};
    return (one_span ? row : spans)[rows - 1];
}
template <Excess excess, bool halves>
static Multiply of_groups(int64_t rows) {
    static constexpr Multiply found[] = {multiply_groups<excess, halves, 1>, multiply_groups<excess, halves, 2>,
                                         multiply_groups<excess, halves, 3>, multiply_groups<excess, halves, 4>,
                                         multiply_groups<excess, halves, 5>};
    return found[rows - 1];
}
static Multiply choose(Excess excess, bool one_span, bool halves, int64_t rows) {
    if (excess == Excess::constant) return of_spans<Excess::constant>(one_span, rows);
    if (excess == Excess::zero_points) return of_spans<Excess::zero_points>(one_span, rows);
    if (excess == Excess::minimums) return of_spans<Excess::minimums>(one_span, rows);
    if (excess == Excess::scaled_constant)
        return halves ? of_groups<Excess::scaled_constant, true>(rows)
                      : of_groups<Excess::scaled_constant, false>(rows);
    return halves ? of_groups<Excess::coded_minimums, true>(rows) : of_groups<Excess::coded_minimums, false>(rows);
}

bool reads_panels(const LinearWeight& weight, int64_t input_group_size, int64_t rows) {
    if (rows < FEWEST_ROWS) return false;
    const int64_t span = span_columns(weight, input_group_size), group = weight.group_size;
    const bool whole_runs = span % RUN_COLUMNS == 0 && span <= BLOCK_COLUMNS;
    if (weight.super_group_size > 0) return whole_runs && (group == LEAST_GROUP || group % RUN_COLUMNS == 0);
    return span == weight.columns || whole_runs;
}

static constexpr int64_t CODES_BYTES = LANES_OF_PANEL * BLOCK_COLUMNS;  // of a panel
static constexpr int64_t TOTALS_AT = MOST_PANELS * (CODES_BYTES + int64_t(sizeof(Panel)));
int64_t scratch_bytes_panels(int64_t rows) { return TOTALS_AT + MOST_PANELS * LANES_OF_PANEL * 4 * rows; }

namespace {

// One call's constants, and the block that is being multiplied.
class Multiplication {
  public:
    Multiplication(const LinearWeight& weight, const Int8Input& x, uint8_t* scratch)
        : weight_(weight), x_(x), tiles_(tiles_of(weight)), scratch_(scratch), panels_((Panel*)(scratch + CODES_AT)) {
        two_level_ = weight.super_group_size > 0;
        one_span_ = x.groups == 1 && !two_level_;
        const bool minimums = weight.offsets == Offsets::minimums;
        excess_ = two_level_                               ? minimums ? Excess::coded_minimums : Excess::scaled_constant
                  : minimums                               ? Excess::minimums
                  : weight.offsets == Offsets::zero_points ? Excess::zero_points
                                                           : Excess::constant;
        span_ = span_columns(weight, x);
        span_groups_ = span_ / x.group_size;
        zero_ = constant_zero(weight);
        columns_ = one_span_ ? BLOCK_COLUMNS : BLOCK_COLUMNS / span_ * span_;
        block_.pairs = excess_ == Excess::coded_minimums ? divide_up(span_groups_, 2) : 0;
        block_.span_eights = one_span_ ? BLOCK_COLUMNS / 8 : span_ / 8;
        block_.group_eights = two_level_ ? weight.group_size / 8 : block_.span_eights;
    }

    void run(float* y, int64_t ldy, int64_t rows, int64_t n_begin, int64_t n_end) {
        const int64_t row_tiles = divide_up(rows, two_level_ ? MOST_ROWS_TWO_LEVEL : MOST_ROWS);
        const int64_t tile_rows = divide_up(rows, row_tiles);
        float* totals = (float*)(scratch_ + TOTALS_AT);
        for (int64_t n = n_begin; n < n_end; n += LANES_OF_PANEL * MOST_PANELS) {
            const int64_t outputs = smaller(n_end - n, LANES_OF_PANEL * MOST_PANELS);
            const int64_t panels = divide_up(outputs, LANES_OF_PANEL), stride = panels * LANES_OF_PANEL;
            std::memset(totals, 0, size_t(rows * stride * 4));
            for (int64_t column = 0; column < weight_.columns; column += columns_) {
                begin(column);
                for (int64_t p = 0; p < panels; ++p) unpack(n + p * LANES_OF_PANEL, p);
                for (int64_t row = 0; row < rows; row += tile_rows)
                    multiply_rows(row, smaller(tile_rows, rows - row), panels, totals + row * stride);
            }
            write_outputs(totals, panels * T, rows, outputs, weight_.bias != nullptr ? weight_.bias + n : nullptr,
                          y + n, ldy);
        }
    }

  private:
    static constexpr int64_t CODES_AT = MOST_PANELS * CODES_BYTES;

    void begin(int64_t column) {
        const int64_t width = smaller(columns_, weight_.columns - column);
        block_.column = column;
        block_.eights = divide_up(width, RUN_COLUMNS) * RUN_EIGHTS;
        block_.first_span = one_span_ ? 0 : column / span_;
        block_.spans = divide_up(block_.eights, block_.span_eights);
        block_.ends = column + columns_ >= weight_.columns;
    }

    void unpack(int64_t n, int64_t p) {
        Panel& panel = panels_[p];
        const uint8_t* stored = tile_codes(tiles_, weight_.tiles, n) + block_.column / RUN_COLUMNS * tiles_.run_bytes;
        panel.codes = stored;  // eight bits lie as they are multiplied
        if (weight_.bits != 8) {
            uint8_t* codes = scratch_ + p * CODES_BYTES;
            unpack_block(weight_.bits, stored, block_.eights / RUN_EIGHTS, codes);
            panel.codes = codes;
        }
        const int64_t spans_per_scale = two_level_ ? weight_.super_group_size / span_ : x_.groups_per_weight_group;
        for (int64_t t = 0; t < T; ++t) {
            const uint8_t* record = tile_record(tiles_, weight_.tiles, n + 16 * t);
            if (two_level_) widen_codes(record, panel.factors + t * 16, panel.pairs + t * 16);
            for (int64_t span = 0; span < block_.spans; ++span) {
                const int64_t own = (block_.first_span + span) / spans_per_scale, at = span * LANES_OF_PANEL + t * 16;
                const uint8_t* place = record + own * 16 * tiles_.scale_bytes;
                store(panel.scales + at, load_scales(weight_.scale_type, place));
                if (weight_.offsets == Offsets::minimums)
                    store(panel.minimums + at, load_scales(weight_.scale_type, place + tiles_.minimums_at));
                if (excess_ == Excess::zero_points)
                    store_ints(panel.zeros + at,
                               widen_bytes((const int8_t*)record + tiles_.zeros_at + own * 16) + splat_int(zero_));
            }
        }
    }

    void widen_codes(const uint8_t* record, int32_t* factors, int32_t* pairs) const {
        const int8_t* scale_codes = (const int8_t*)record + tiles_.scale_codes_at;
        const int8_t* others = (const int8_t*)record + tiles_.minimum_codes_at;  // read where there are pairs
        const int64_t first_group = block_.first_span * span_groups_;
        const int64_t groups = divide_up(block_.eights, block_.group_eights);
        for (int64_t group = first_group; group < smaller(first_group + groups, tiles_.groups); ++group)
            store_ints(factors + (group - first_group) * LANES_OF_PANEL, exact_factor(scale_codes + group * 16));
        const auto of_group = [&](int64_t group) __attribute__((always_inline)) {
            return group < tiles_.groups ? widen_bytes(others + group * 16) : splat_int(0);
        };
        for (int64_t span = 0; span < block_.spans; ++span)
            for (int64_t within = 0; within < 2 * block_.pairs; within += 2, pairs += LANES_OF_PANEL) {
                const int64_t group = first_group + span * span_groups_ + within;
                const Ints second = within + 1 < span_groups_ ? of_group(group + 1) : splat_int(0);
                store_ints(pairs, (of_group(group) & splat_int(0xffff)) | shift_left<16>(second));
            }
    }

    void arrange(int64_t row, int64_t count, Rows& rows) const {
        const int64_t first_group = block_.first_span * span_groups_;
        const int64_t groups = smaller(block_.spans * span_groups_, x_.groups - first_group);
        for (int64_t m = 0; m < count; ++m) {
            const float* scales = x_.scales + (row + m) * x_.scale_stride;
            const int32_t* sums = x_.sums + (row + m) * x_.sum_stride + first_group;
            for (int64_t span = 0; span < block_.spans; ++span)
                rows.scales[span * MOST_ROWS + m] = scales[x_.scale_group(first_group + span * span_groups_)];
            if (excess_ == Excess::constant || excess_ == Excess::scaled_constant)
                for (int64_t group = 0; group < groups; ++group)
                    rows.offsets[group * MOST_ROWS + m] = -zero_ * sums[group];
            if (excess_ == Excess::zero_points || excess_ == Excess::minimums)
                for (int64_t span = 0; span < block_.spans; ++span) {
                    const int64_t own = span * MOST_ROWS + m;
                    rows.offsets[own] = 0;
                    rows.minus_sums[own] = -sums[span];
                    rows.minimum_factors[own] = float(sums[span]) * rows.scales[own];
                }
            if (excess_ == Excess::coded_minimums) arrange_pairs(sums, groups, rows.pairs + m);
        }
    }

    // Sums of x, two groups of a span in the halves of a lane.
    void arrange_pairs(const int32_t* sums, int64_t groups, int32_t* pairs) const {
        for (int64_t span = 0; span < block_.spans; ++span, sums += span_groups_, groups -= span_groups_)
            for (int64_t group = 0; group < 2 * block_.pairs; group += 2, pairs += MOST_ROWS) {
                const uint32_t first = group < groups ? uint32_t(sums[group]) & 0xffff : 0;
                const bool whole = group + 1 < smaller(span_groups_, groups);
                *pairs = int32_t(first | (whole ? uint32_t(sums[group + 1]) << 16 : 0));
            }
    }

    void multiply_rows(int64_t row, int64_t count, int64_t panels, float* totals) const {
        Rows rows;
        arrange(row, count, rows);
        const Multiply multiply_panel = choose(excess_, one_span_, block_.group_eights < RUN_EIGHTS, count);
        const int8_t* x = x_.codes + row * x_.row_bytes + block_.column;
        // Sums that lie together: at the distance of rows half of the loads of codes would wait for stores of sums at
        // the same offset in some page.
        alignas(64) float sums[MOST_ROWS * LANES_OF_PANEL];
        constexpr size_t bytes = LANES_OF_PANEL * 4;
        for (int64_t p = 0; p < panels; ++p) {
            float* place = totals + p * LANES_OF_PANEL;
            for (int64_t m = 0; m < count; ++m)
                std::memcpy(sums + m * LANES_OF_PANEL, place + m * panels * LANES_OF_PANEL, bytes);
            multiply_panel(panels_[p], x, x_.row_bytes, rows, block_, sums);
            for (int64_t m = 0; m < count; ++m)
                std::memcpy(place + m * panels * LANES_OF_PANEL, sums + m * LANES_OF_PANEL, bytes);
        }
    }

    const LinearWeight& weight_;
    const Int8Input& x_;
    const Tiles tiles_;
    uint8_t* scratch_;
    Panel* panels_;
    Excess excess_;
    bool two_level_, one_span_;   // one: the whole row
    int64_t span_, span_groups_;  // columns and groups of a span
    int64_t columns_;             // of a block
    int32_t zero_;
    Block block_ = {};
};

}  // namespace

void linear_panels(const LinearWeight& weight, const Int8Input& x, float* y, int64_t ldy, int64_t rows, int64_t n_begin,
                   int64_t n_end, uint8_t* scratch) {
    Multiplication(weight, x, scratch).run(y, ldy, rows, n_begin, n_end);
}

#endif

}  // namespace linnet::LINNET_TIER
