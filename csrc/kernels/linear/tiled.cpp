// SPDX-License-Identifier: Apache-2.0
// Integer tiles times int8 rows. A span is what shares one scale on both sides; over it sums are integers, so exact:
//
//   one level   y = fma(float(dot) * x_scale, scale, y); with minimums then y = fnma(sum(x) * x_scale, minimum, y)
//   two levels  dot = sum over the span's groups of scale_code * dot(codes, x), y as above with the super group's
//   scale;
//               sum(x) = sum over groups of minimum_code * sum(x)
//
// span after span from the left, and bias last: one order, whatever the number of rows and however they are blocked.
// dot is taken over unsigned codes, minus the zero point times sum(x).
//
// Few rows meet codes as they are unpacked from tiles. For more, a block of columns is unpacked once to bytes in L1
// (panels.cpp has a quicker way where products come in pairs). The portable tier always does that: one kernel to
// compile.
#include "panels.h"
#include "strip.h"

namespace linnet::LINNET_TIER {

// A panel layout besides the tiles' own: codes of few bits, one per byte, as tiles of eight bits lie.
static constexpr int BYTES = 9;
static constexpr int64_t BLOCK_COLUMNS = 512;
// From so many rows on, codes are unpacked once per block instead of once per tile of rows.
static constexpr int64_t UNPACKED_ROWS = 9;
#if defined(LINNET_PORTABLE)
static constexpr bool ALWAYS_UNPACKS = true;
#else
static constexpr bool ALWAYS_UNPACKS = false;
#endif
// How far ahead of their use tiles are asked for: past what the hardware's own prefetchers see of the next page.
static constexpr int64_t AHEAD_BYTES = 2048;

// Codes that are split into halves, because pairs of their products do not fit 16 bits.
static constexpr bool is_wide(int bits) { return PAIRED_PRODUCTS && bits == 8; }

// Products of the sums of x with something per group: codes of minimums, or of the scales that unsigned codes were
// multiplied with. sums is at the row's first group of the span.
LINNET_INLINE void multiply_sums(const Strip& strip, int64_t codes_at, int64_t group, int64_t groups,
                                 const int32_t* sums, Ints (&products)[TILE_COUNT]) {
    for (int t = 0; t < TILE_COUNT; ++t) products[t] = splat_int(0);
    for (int64_t g = 0; g < groups; ++g)
#pragma GCC unroll 2
        for (int t = 0; t < TILE_COUNT; ++t) {
            const int8_t* codes = (const int8_t*)strip.records[t] + codes_at + (group + g) * 16;
            products[t] = products[t] + multiply_factors(widen_factors(codes), sums[g]);
        }
}

// `chunk`: eights between two foldings, of which a group has a whole number. totals [M][16 TILE_COUNT].
template <int M, int bits, int chunk, bool two_level>
static void multiply(const Strip& strip, const Int8Input& x, int64_t row, float* totals) {
    constexpr int T = TILE_COUNT, unpacked_bits = bits == BYTES ? 8 : bits;
    constexpr bool wide = is_wide(bits);
    const LinearWeight& weight = *strip.weight;
    const Tiles& tiles = *strip.tiles;
    const bool minimums = weight.offsets == Offsets::minimums, zero_points = weight.offsets == Offsets::zero_points;
    const int32_t zero = constant_zero(weight);
    const ScaleType scale_type = weight.scale_type;
    const int64_t row_bytes = x.row_bytes, x_scale_stride = x.scale_stride, x_sum_stride = x.sum_stride;
    const int8_t* codes = x.codes + row * row_bytes + strip.column;
    const float* x_scales = x.scales + row * x_scale_stride;
    const int32_t* x_sums = x.sums + row * x_sum_stride;
    const uint8_t* run = strip.codes;
    if (strip.starts)
        for (int i = 0; i < M * T; ++i) store(totals + 16 * i, splat(0.0f));

    int64_t span = strip.first_span, group = two_level ? span * strip.span_groups : 0;
    int64_t left = divide_up(strip.eights, chunk), in_group = strip.group_steps;
    int64_t in_span = smaller(left, strip.span_steps);
    // What the span's scales are, counted on: a division per span would take as long as the span.
    int64_t own = span / strip.spans_per_super, x_own = span / strip.spans_per_x_scale;
    int64_t in_own = span - own * strip.spans_per_super, in_x_own = span - x_own * strip.spans_per_x_scale;
    Ints sums[M][T], factors[T];
    for (int m = 0; m < M; ++m)
        for (int t = 0; t < T; ++t) sums[m][t] = splat_int(0);
    if constexpr (two_level)
        for (int t = 0; t < T; ++t)
            factors[t] = widen_factors((const int8_t*)strip.records[t] + tiles.scale_codes_at + group * 16);

    const auto finish = [&]() __attribute__((always_inline)) {
        const int64_t first_group = span * strip.span_groups;
        const int64_t groups = two_level ? smaller(strip.span_groups, tiles.groups - first_group) : 1;
        Floats scale[T], minimum[T];
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) {
            const uint8_t* place = strip.records[t] + own * 16 * tiles.scale_bytes;
            scale[t] = load_scales(scale_type, place);
            minimum[t] = minimums ? load_scales(scale_type, place + tiles.minimums_at) : splat(0.0f);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const int32_t* own_sums = x_sums + m * x_sum_stride + first_group;
            const Floats x_scale = splat(x_scales[m * x_scale_stride + x_own]);
            Ints offset[T];
            if (two_level && !minimums) {
                multiply_sums(strip, tiles.scale_codes_at, first_group, groups, own_sums, offset);
                for (int t = 0; t < T; ++t) sums[m][t] = sums[m][t] - offset[t] * splat_int(zero);
            } else if (!two_level && zero_points) {
#pragma GCC unroll 2
                for (int t = 0; t < T; ++t) {
                    const int8_t* zeros = (const int8_t*)strip.records[t] + tiles.zeros_at + own * 16;
                    sums[m][t] = sums[m][t] - (widen_bytes(zeros) + splat_int(zero)) * splat_int(*own_sums);
                }
            } else if (!two_level && !minimums) {
#pragma GCC unroll 2
                for (int t = 0; t < T; ++t) sums[m][t] = sums[m][t] - splat_int(zero * *own_sums);
            }
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t) {
                float* total = totals + (m * T + t) * 16;
                store(total, fma(to_floats(sums[m][t]) * x_scale, scale[t], load(total)));
            }
            if (minimums) {
                if (two_level) multiply_sums(strip, tiles.minimum_codes_at, first_group, groups, own_sums, offset);
#pragma GCC unroll 2
                for (int t = 0; t < T; ++t) {
                    const Floats sum = to_floats(two_level ? offset[t] : splat_int(*own_sums));
                    float* total = totals + (m * T + t) * 16;
                    store(total, fnma(sum * x_scale, minimum[t], load(total)));
                }
            }
        }
    };

    // A chunk of the run, from eight `first` on; false where it was the last one.
    const auto step = [&]<int first>() __attribute__((always_inline)) {
        Ints products[M][T], high_products[wide ? M : 1][wide ? T : 1];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t) {
                products[m][t] = splat_int(0);
                if constexpr (wide) high_products[m][t] = splat_int(0);
            }
        const auto eight = [&]<int e>() __attribute__((always_inline)) {
            Ints even[T], odd[T];
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t) unpack_eight<unpacked_bits, e>(run, t, even[t], odd[t]);
#pragma GCC unroll 2
            for (int parity = 0; parity < 2; ++parity)
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m) {
                    const Ints own = splat_word(codes + m * row_bytes + 8 * e + 4 * parity);
#pragma GCC unroll 2
                    for (int t = 0; t < T; ++t) {
                        const Ints both = parity == 0 ? even[t] : odd[t];
                        if constexpr (wide) {
                            products[m][t] = add_products(products[m][t], both & every_byte(15), own);
                            high_products[m][t] = add_products(high_products[m][t], move_bits<4, 0, 4>(both), own);
                            finish_here(high_products[m][t]);
                        } else {
                            products[m][t] = add_products(products[m][t], both, own);
                        }
                        finish_here(products[m][t]);
                    }
                }
            load_what_follows_later();
        };
        eight.template operator()<first>();
        if constexpr (chunk >= 2) eight.template operator()<first + 1>();
        if constexpr (chunk == 4) {
            eight.template operator()<first + 2>();
            eight.template operator()<first + 3>();
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t) {
                if constexpr (two_level)
                    sums[m][t] = fold(sums[m][t], products[m][t], factors[t]);
                else if constexpr (PAIRED_PRODUCTS)
                    sums[m][t] = fold(sums[m][t], products[m][t], splat_factor(1));
                else
                    sums[m][t] = sums[m][t] + products[m][t];
                if constexpr (wide) sums[m][t] = fold(sums[m][t], high_products[m][t], splat_factor(16));
            }
        --left;
        if constexpr (two_level)
            if (--in_group == 0 && left != 0) {
                in_group = strip.group_steps;
                ++group;
#pragma GCC unroll 2
                for (int t = 0; t < T; ++t)
                    factors[t] = widen_factors((const int8_t*)strip.records[t] + tiles.scale_codes_at + group * 16);
            }
        if (--in_span == 0) {
            finish();
            ++span;
            if (++in_own == strip.spans_per_super) {
                in_own = 0;
                ++own;
            }
            if (++in_x_own == strip.spans_per_x_scale) {
                in_x_own = 0;
                ++x_own;
            }
            in_span = smaller(left, strip.span_steps);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
                for (int t = 0; t < T; ++t) sums[m][t] = splat_int(0);
        }
        return left != 0;
    };

    // Eights of bytes follow each other; in planes each of a run's four has its own place.
    constexpr int round_eights = unpacked_bits == 8 ? chunk : RUN_EIGHTS;
    constexpr int64_t round_bytes = run_bytes(unpacked_bits) / RUN_EIGHTS * round_eights;
    for (;; run += round_bytes, codes += 8 * round_eights) {
        if constexpr (bits != BYTES) {
#pragma GCC unroll 16
            for (int64_t line = 0; line < round_bytes; line += 64) __builtin_prefetch(run + AHEAD_BYTES + line, 0, 3);
        }
        if (!step.template operator()<0>()) return;
        if constexpr (chunk == 2 && round_eights == RUN_EIGHTS)
            if (!step.template operator()<2>()) return;
        if constexpr (chunk == 1 && round_eights == RUN_EIGHTS) {
            if (!step.template operator()<1>()) return;
            if (!step.template operator()<2>()) return;
            if (!step.template operator()<3>()) return;
        }
    }
}

using Multiply = void (*)(const Strip& strip, const Int8Input& x, int64_t row, float* totals);

// A kernel by its number of rows, and the eights it takes between two foldings: their sums fit 16 bits, and a group has
// a whole number of them.
struct Choice {
    int64_t chunk, most_rows;
    Multiply multiply[4];
};

template <int bits, int chunk, bool two_level>
static Choice chosen() {
    Choice choice = {chunk, 2, {multiply<1, bits, chunk, two_level>, multiply<2, bits, chunk, two_level>}};
#if !defined(LINNET_PORTABLE)
    if constexpr (bits == 4 || bits == 6 || bits == BYTES)
        choice = {chunk,
                  4,
                  {choice.multiply[0], choice.multiply[1], multiply<3, bits, chunk, two_level>,
                   multiply<4, bits, chunk, two_level>}};
#endif
    return choice;
}

template <bool two_level>
static Choice choose(int bits, int64_t group_eights, bool bytes) {
#if defined(LINNET_PORTABLE)
    return chosen<BYTES, 1, two_level>();
#else
    const bool fours = group_eights % 4 == 0, twos = group_eights % 2 == 0;
    if (bits == 8) return fours ? chosen<8, 4, false>() : chosen<8, 1, false>();
    if (bytes || (!twos && bits != 6)) {
        if ((bits <= 4 || !PAIRED_PRODUCTS) && fours) return chosen<BYTES, 4, two_level>();
        if ((bits <= 5 || !PAIRED_PRODUCTS) && twos) return chosen<BYTES, 2, two_level>();
        return chosen<BYTES, 1, two_level>();
    }
    if (bits == 6) return chosen<6, 1, two_level>();
    if (bits == 5) return chosen<5, 2, two_level>();
    if (bits == 4) return fours ? chosen<4, 4, two_level>() : chosen<4, 2, two_level>();
    if (bits == 1) return fours ? chosen<1, 4, false>() : chosen<1, 2, false>();
    if (bits == 2) return fours ? chosen<2, 4, two_level>() : chosen<2, 2, two_level>();
    return chosen<3, 2, two_level>();
#endif
}

template <int bits>
static void unpack_block(const uint8_t* codes, int64_t runs, uint8_t* panel) {
    for (int64_t run = 0; run < runs; ++run, codes += run_bytes(bits))
        for (int t = 0; t < TILE_COUNT; ++t) {
            Ints even[4], odd[4];
            unpack_run<bits>(codes, t, even, odd);
#pragma GCC unroll 4
            for (int e = 0; e < 4; ++e) {
                uint8_t* own = panel + ((run * RUN_EIGHTS + e) * TILE_COUNT + t) * 128;
                store_ints((int32_t*)own, even[e]);
                store_ints((int32_t*)(own + 64), odd[e]);
            }
        }
}

void unpack_block(int bits, const uint8_t* codes, int64_t runs, uint8_t* panel) {
    const auto unpack = bits == 1   ? unpack_block<1>
                        : bits == 2 ? unpack_block<2>
                        : bits == 3 ? unpack_block<3>
                        : bits == 4 ? unpack_block<4>
                        : bits == 5 ? unpack_block<5>
                                    : unpack_block<6>;
    unpack(codes, runs, panel);
}

static int64_t least_common_multiple(int64_t a, int64_t b) {
    int64_t x = a, y = b;
    while (y != 0) {
        const int64_t rest = x % y;
        x = y;
        y = rest;
    }
    return a / x * b;
}

// A span is at most a row, and what makes it whole runs too at most twice that.
static int64_t most_block(const LinearWeight& weight) {
    return ALWAYS_UNPACKS ? larger(BLOCK_COLUMNS, 2 * round_up(weight.columns, RUN_COLUMNS)) : BLOCK_COLUMNS;
}

// The fewest columns that are whole spans and whole runs; a span that is the row ends where the row does.
static int64_t unit_columns(const LinearWeight& weight, int64_t span) {
    if (span >= weight.columns) return round_up(weight.columns, RUN_COLUMNS);
    return least_common_multiple(span, RUN_COLUMNS);
}

bool reads_tiles(const LinearWeight& weight, int64_t input_group_size) {
    const int64_t own = smaller(weight.group_size, weight.columns), input = smaller(input_group_size, weight.columns);
    const int64_t group = weight.super_group_size > 0 ? own : smaller(own, input);
    if (weight.bits == 8 || group == weight.columns) return true;
    if (!ALWAYS_UNPACKS && (weight.bits == 6 || group % 16 == 0)) return true;
    // Only as bytes, whole spans and runs at a time.
    return unit_columns(weight, span_columns(weight, input_group_size)) <= most_block(weight);
}

int64_t scratch_bytes_tiled(const LinearWeight& weight, int64_t rows) {
    return larger(TILE_COUNT * 16 * (most_block(weight) + 4 * rows), scratch_bytes_panels(rows));
}

// Whether `rows` rows meet codes that were unpacked once per block of columns.
static bool unpacks(const LinearWeight& weight, int64_t rows, int64_t unit, bool even) {
    if (weight.bits == 8 || unit > most_block(weight)) return false;
    return ALWAYS_UNPACKS || rows >= UNPACKED_ROWS || !even;
}

void linear_tiled(const LinearWeight& weight, const Int8Input& x, float* y, int64_t ldy, int64_t rows, int64_t n_begin,
                  int64_t n_end, uint8_t* scratch) {
    if (reads_panels(weight, x.groups_per_scale * x.group_size, rows))
        return linear_panels(weight, x, y, ldy, rows, n_begin, n_end, scratch);
    const Tiles tiles = tiles_of(weight);
    const bool two_level = weight.super_group_size > 0;
    const int64_t span = span_columns(weight, x), unit = unit_columns(weight, span);
    const bool whole_row = span >= weight.columns;
    uint8_t* panel = scratch;
    float* totals = (float*)(panel + TILE_COUNT * 16 * most_block(weight));

    Strip strip = {};
    strip.weight = &weight;
    strip.tiles = &tiles;
    strip.span_groups = two_level ? span / weight.group_size : 1;
    const int64_t spans = divide_up(weight.columns, span);
    strip.spans_per_super = two_level ? weight.super_group_size / span : x.groups_per_weight_group;
    strip.spans_per_x_scale = x.groups_per_scale == x.groups ? spans
                              : two_level                    ? x.groups_per_scale * x.group_size / span
                                                             : x.groups_per_scale;
    const int64_t group_eights = two_level   ? weight.group_size / 8
                                 : whole_row ? round_up(tiles.eights, RUN_EIGHTS)
                                             : x.group_bytes / 8;
    const bool even = weight.bits == 6 || group_eights % 2 == 0;
    const bool unpacked = unpacks(weight, rows, unit, even);
    const Choice choice = (two_level ? choose<true> : choose<false>)(weight.bits, group_eights, unpacked);
    strip.group_steps = group_eights / choice.chunk;
    strip.span_steps = two_level ? strip.group_steps * strip.span_groups : strip.group_steps;
    // Rows are dealt out evenly: 5 are 3 and 2, not 4 and 1.
    const int64_t row_tiles = divide_up(rows, choice.most_rows);
    const int64_t tile_rows = divide_up(rows, row_tiles);
    const int64_t block = unpacked ? larger(BLOCK_COLUMNS / unit, 1) * unit : weight.columns;
    for (int64_t n = n_begin; n < n_end; n += 16 * TILE_COUNT) {
        for (int t = 0; t < TILE_COUNT; ++t) strip.records[t] = tile_record(tiles, weight.tiles, n + 16 * t);
        for (int64_t column = 0; column < weight.columns; column += block) {
            strip.codes = tile_codes(tiles, weight.tiles, n) + column / RUN_COLUMNS * tiles.run_bytes;
            strip.column = column;
            strip.eights = divide_up(smaller(block, weight.columns - column), 8);
            strip.first_span = column / span;
            strip.starts = column == 0;
            if (unpacked) {
                unpack_block(weight.bits, strip.codes, divide_up(strip.eights, RUN_EIGHTS), panel);
                strip.codes = panel;
            }
            for (int64_t row = 0; row < rows; row += tile_rows) {
                const int64_t count = smaller(tile_rows, rows - row);
                choice.multiply[count - 1](strip, x, row, totals + row * 16 * TILE_COUNT);
            }
        }
        write_outputs(totals, TILE_COUNT, rows, smaller(n_end - n, 16 * TILE_COUNT),
                      weight.bias != nullptr ? weight.bias + n : nullptr, y + n, ldy);
    }
}

}  // namespace linnet::LINNET_TIER
