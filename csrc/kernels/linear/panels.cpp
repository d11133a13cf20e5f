// SPDX-License-Identifier: Apache-2.0
#include "panels.h"

#include "strip.h"

namespace linnet::LINNET_TIER {

#if defined(LINNET_AVX2) && defined(LINNET_PAIRS)

static constexpr int64_t MOST_ROWS = 4, MOST_TILES = 8;
static constexpr int64_t BLOCK_COLUMNS = 512;  // at most, of one tile
static constexpr int64_t PANEL_BYTES = 32768;  // read in order, so that L1 need not hold it
// Where unpacking costs less than it brings. Of eight bits it saves the splitting into halves.
static constexpr int64_t FEWEST_ROWS = 9, FEWEST_ROWS_EIGHT_BITS = 5;

static_assert(TILE_COUNT == 1);
static constexpr int64_t MOST_SPANS = BLOCK_COLUMNS / RUN_COLUMNS;
static constexpr int64_t LEAST_GROUP = 16;  // columns, of two levels
static constexpr int64_t MOST_PAIRS = BLOCK_COLUMNS / LEAST_GROUP / 2;
static constexpr int64_t ROW_WORDS = BLOCK_COLUMNS / 2;  // of an arranged row

// What codes still have too much after they were unpacked; with scales of two levels the last two, whose sums of x are
// taken times something per group.
enum class Excess { nothing, constant, zero_points, minimums, scaled_constant, coded_minimums };
static constexpr bool two_level(Excess excess) { return excess >= Excess::scaled_constant; }

// A block of columns of sixteen outputs, unpacked, and what belongs to its runs, to pairs of its groups, to its spans.
struct Panel {
    const uint8_t* codes;
    const float* scales;    // [spans][16]
    const int32_t* zeros;   // [spans][16]: zero points with the constant
    const float* minimums;  // [spans][16]
    // Of two levels.
    const int32_t* factors;  // [runs][groups of a run, at least one][16]: scale codes, as factors of fold
    const int32_t* pairs;    // [spans][pairs][16]: what sums of x meet, two groups' in the halves of a lane
};

// The same block of up to four rows; of spans [spans][4].
struct Rows {
    alignas(64) int32_t words[MOST_ROWS * ROW_WORDS];
    float scales[MOST_SPANS * MOST_ROWS];
    int32_t offsets[MOST_SPANS * MOST_ROWS];     // what sums begin with: a constant excess, or nothing
    int32_t minus_sums[MOST_SPANS * MOST_ROWS];  // of codes, for zero points
    float minimum_factors[MOST_SPANS * MOST_ROWS];
    int32_t pairs[MOST_PAIRS * MOST_ROWS];  // sums of codes of two groups, [spans][pairs][4]
};

// Codes of eight bits as 16-bit words, less their zero: bytes would have to be split, since pairs of their products do
// not fit 16 bits. The four bytes of a lane become two pairs of words, its first and third and its second and fourth;
// an eight is four times 64 bytes, even columns' pairs and then odd columns'. Rows are widened alike.
struct Words {
    static constexpr int64_t COLUMN_BYTES = 2, RUN_WORDS = 16, FACTORS = 0;

    static void unpack(const LinearWeight& weight, const uint8_t* codes, int64_t runs, uint8_t* panel) {
        const __m256i low = _mm256_set1_epi16(255), zero = _mm256_set1_epi16(int16_t(constant_zero(weight)));
        for (int64_t vector = 0; vector < runs * RUN_EIGHTS * 2; ++vector, codes += 64, panel += 128)
            for (int half = 0; half < 64; half += 32) {
                const __m256i bytes = _mm256_load_si256((const __m256i*)(codes + half));
                const __m256i first = _mm256_and_si256(bytes, low), second = _mm256_srli_epi16(bytes, 8);
                _mm256_store_si256((__m256i*)(panel + half), _mm256_sub_epi16(first, zero));
                _mm256_store_si256((__m256i*)(panel + 64 + half), _mm256_sub_epi16(second, zero));
            }
    }

    static void arrange(const int8_t* codes, int64_t runs, int32_t* words) {
        for (int64_t run = 0; run < runs; ++run, codes += RUN_COLUMNS, words += RUN_WORDS) {
            const __m256i bytes = _mm256_loadu_si256((const __m256i*)codes);
            const __m256i first = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
            const __m256i second = _mm256_srai_epi16(bytes, 8);
            const __m256i low = _mm256_unpacklo_epi32(first, second), high = _mm256_unpackhi_epi32(first, second);
            _mm256_store_si256((__m256i*)words, _mm256_permute2x128_si256(low, high, 0x20));
            _mm256_store_si256((__m256i*)(words + 8), _mm256_permute2x128_si256(low, high, 0x31));
        }
    }

    template <int M>
    LINNET_INLINE void add_run(const uint8_t* panel, const int32_t*, const int32_t* x, Ints (&sums)[M]) {
#pragma GCC unroll 16
        for (int i = 0; i < RUN_WORDS; ++i) {
            Ints codes = load_ints((const int32_t*)(panel + i * 64));
            finish_here(codes);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                const __m256i own = _mm256_set1_epi32(x[m * ROW_WORDS + i]);
                sums[m] = sums[m] + Ints{_mm256_madd_epi16(codes.a, own), _mm256_madd_epi16(codes.b, own)};
                finish_here(sums[m]);
            }
        }
    }
};

// Codes of few bits, a byte each as tiles of eight bits lie; `chunk` eights' products fit 16 bits. A run has so many
// factors, scale codes of its groups; 0 where there is one level.
template <int chunk, int factors>
struct Bytes {
    static constexpr int64_t COLUMN_BYTES = 1, RUN_WORDS = 8, FACTORS = factors;

    static void unpack(const LinearWeight& weight, const uint8_t* codes, int64_t runs, uint8_t* panel) {
        unpack_block(weight.bits, codes, runs, panel);
    }

    static void arrange(const int8_t* codes, int64_t runs, int32_t* words) {
        for (int64_t run = 0; run < runs; ++run)
            _mm256_store_si256((__m256i*)(words + run * RUN_WORDS),
                               _mm256_loadu_si256((const __m256i*)(codes + run * RUN_COLUMNS)));
    }

    template <int M>
    LINNET_INLINE void add_run(const uint8_t* panel, const int32_t* scale_codes, const int32_t* x, Ints (&sums)[M]) {
        if constexpr (chunk == 1) return add_eights<M>(panel, scale_codes, x, sums);
#pragma GCC unroll 4
        for (int first = 0; first < RUN_WORDS; first += 2 * chunk) {
            Ints products[M];
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) products[m] = splat_int(0);
#pragma GCC unroll 8
            for (int i = first; i < first + 2 * chunk; ++i) {
                Ints codes = load_ints((const int32_t*)(panel + i * 64));
                finish_here(codes);
#pragma GCC unroll 4
                for (int m = 0; m < M; ++m) {
                    products[m] = add_products(products[m], codes, splat_int(x[m * ROW_WORDS + i]));
                    finish_here(products[m]);
                }
            }
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                const int group = factors == 2 && first >= RUN_WORDS / 2;
                sums[m] = fold(sums[m], products[m], factors ? load_ints(scale_codes + group * 16) : splat_factor(1));
            }
        }
    }

  private:
    // Products of an eight go to its sum at once: those of all rows and all sums together do not fit the registers.
    template <int M>
    LINNET_INLINE void add_eights(const uint8_t* panel, const int32_t* scale_codes, const int32_t* x, Ints (&sums)[M]) {
#pragma GCC unroll 4
        for (int e = 0; e < RUN_EIGHTS; ++e) {
            Ints even = load_ints((const int32_t*)(panel + e * 128));
            Ints odd = load_ints((const int32_t*)(panel + e * 128 + 64));
            finish_here(even);
            finish_here(odd);
            const int32_t* own = scale_codes + (factors == 2 && e >= RUN_EIGHTS / 2 ? 16 : 0);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                const int32_t* words = x + m * ROW_WORDS + 2 * e;
                const Ints products =
                    add_products(add_products(splat_int(0), even, splat_int(words[0])), odd, splat_int(words[1]));
                sums[m] = fold(sums[m], products, factors ? load_ints(own) : splat_factor(1));
                finish_here(sums[m]);
            }
        }
    }
};

// Sums of a block's products, as integers: of span s, row m at sums + s * span_step + m * row_step. They begin with
// `offsets` [spans][4] or, where that is null, with what is there.
template <class Codes, int M>
static void multiply(const Panel& panel, const int32_t* words, int64_t runs, int64_t span_runs, const int32_t* offsets,
                     int32_t* sums, int64_t span_step, int64_t row_step) {
    const uint8_t* codes = panel.codes;
    const int32_t* factors = panel.factors;
    for (int64_t left = runs; left > 0; left -= span_runs, sums += span_step) {
        Ints sum[M];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m)
            sum[m] = offsets == nullptr ? load_ints(sums + m * row_step) : splat_int(offsets[m]);
        for (int64_t run = 0; run < smaller(left, span_runs); ++run) {
            Codes::template add_run<M>(codes, factors, words, sum);
            factors += Codes::FACTORS * 16;
            codes += Codes::COLUMN_BYTES * 16 * RUN_COLUMNS;
            words += Codes::RUN_WORDS;
        }
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) store_ints(sums + m * row_step, sum[m]);
        if (offsets != nullptr) offsets += MOST_ROWS;
    }
}

// Those sums, span after span, to totals [M][row_step]. A loop of its own: within the other one its latency would show.
template <Excess excess, int M>
static void add_spans(const Panel& panel, const Rows& rows, int64_t spans, [[maybe_unused]] int64_t pairs,
                      [[maybe_unused]] int32_t zero, const int32_t* sums, int64_t span_step, int64_t row_step,
                      bool starts, float* totals, int64_t stride) {
    Floats total[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) total[m] = starts ? splat(0.0f) : load(totals + m * stride);
    for (int64_t span = 0; span < spans; ++span, sums += span_step) {
        const Floats scale = load(panel.scales + span * 16);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            Ints sum = load_ints(sums + m * row_step);
            if constexpr (excess == Excess::zero_points)
                sum = sum + load_ints(panel.zeros + span * 16) * splat_int(rows.minus_sums[span * MOST_ROWS + m]);
            Ints offset = splat_int(0);
            if constexpr (two_level(excess))
                for (int64_t pair = span * pairs; pair < (span + 1) * pairs; ++pair) {
                    const Ints own = load_ints(panel.pairs + pair * 16),
                               x = splat_int(rows.pairs[pair * MOST_ROWS + m]);
                    offset = offset + Ints{_mm256_madd_epi16(own.a, x.a), _mm256_madd_epi16(own.b, x.b)};
                }
            if constexpr (excess == Excess::scaled_constant) sum = sum - offset * splat_int(zero);
            const Floats row_scale = splat(rows.scales[span * MOST_ROWS + m]);
            total[m] = fma(to_floats(sum) * row_scale, scale, total[m]);
            if constexpr (excess == Excess::coded_minimums)
                total[m] = fnma(to_floats(offset) * row_scale, load(panel.minimums + span * 16), total[m]);
            if constexpr (excess == Excess::minimums) {
                const Floats factor = splat(rows.minimum_factors[span * MOST_ROWS + m]);
                total[m] = fnma(factor, load(panel.minimums + span * 16), total[m]);
            }
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) store(totals + m * stride, total[m]);
}

// How codes of some width are unpacked, rows arranged for them, and both multiplied, by number of rows.
struct Choice {
    int64_t column_bytes;
    Excess excess;
    void (*unpack)(const LinearWeight& weight, const uint8_t* codes, int64_t runs, uint8_t* panel);
    void (*arrange)(const int8_t* codes, int64_t runs, int32_t* words);
    void (*multiply[MOST_ROWS])(const Panel& panel, const int32_t* words, int64_t runs, int64_t span_runs,
                                const int32_t* offsets, int32_t* sums, int64_t span_step, int64_t row_step);
    void (*add_spans[MOST_ROWS])(const Panel& panel, const Rows& rows, int64_t spans, int64_t pairs, int32_t zero,
                                 const int32_t* sums, int64_t span_step, int64_t row_step, bool starts, float* totals,
                                 int64_t stride);
};

template <class Codes, Excess excess>
static Choice chosen() {
    return {Codes::COLUMN_BYTES,
            excess,
            Codes::unpack,
            Codes::arrange,
            {multiply<Codes, 1>, multiply<Codes, 2>, multiply<Codes, 3>, multiply<Codes, 4>},
            {add_spans<excess, 1>, add_spans<excess, 2>, add_spans<excess, 3>, add_spans<excess, 4>}};
}
template <class Codes, Excess otherwise>
static Choice choose(Offsets offsets) {
    if (offsets == Offsets::zero_points) return chosen<Codes, Excess::zero_points>();
    return offsets == Offsets::minimums ? chosen<Codes, Excess::minimums>() : chosen<Codes, otherwise>();
}
template <int chunk, int factors>
static Choice choose_two_level(Offsets offsets) {
    if (offsets == Offsets::minimums) return chosen<Bytes<chunk, factors>, Excess::coded_minimums>();
    return chosen<Bytes<chunk, factors>, Excess::scaled_constant>();
}
static Choice choose(const LinearWeight& weight) {
    const Offsets offsets = weight.offsets;
    if (weight.bits == 8) return choose<Words, Excess::nothing>(offsets);
    if (weight.super_group_size == 0) {
        if (weight.bits == 6) return choose<Bytes<1, 0>, Excess::constant>(offsets);
        if (weight.bits == 5) return choose<Bytes<2, 0>, Excess::constant>(offsets);
        return choose<Bytes<4, 0>, Excess::constant>(offsets);
    }
    const bool halves = weight.group_size < RUN_COLUMNS;
    if (weight.bits == 6) return halves ? choose_two_level<1, 2>(offsets) : choose_two_level<1, 1>(offsets);
    if (halves) return choose_two_level<2, 2>(offsets);
    return weight.bits == 5 ? choose_two_level<2, 1>(offsets) : choose_two_level<4, 1>(offsets);
}

bool reads_panels(const LinearWeight& weight, int64_t input_group_size, int64_t rows) {
    if (rows < (weight.bits == 8 ? FEWEST_ROWS_EIGHT_BITS : FEWEST_ROWS)) return false;
    const int64_t span = span_columns(weight, input_group_size), group = weight.group_size;
    const bool whole_runs = span % RUN_COLUMNS == 0 && span <= BLOCK_COLUMNS;
    if (weight.super_group_size > 0) return whole_runs && (group == LEAST_GROUP || group % RUN_COLUMNS == 0);
    return span == weight.columns || whole_runs;
}

// Scratch: unpacked codes, what belongs to spans, to pairs of groups and to runs, totals.
static constexpr int64_t SPANS_BYTES = MOST_TILES * MOST_SPANS * 64;  // of one kind of number
static constexpr int64_t PAIRS_AT = PANEL_BYTES + 2 * SPANS_BYTES;
static constexpr int64_t FACTORS_AT = PAIRS_AT + MOST_TILES * MOST_PAIRS * 64;
static constexpr int64_t TOTALS_AT = FACTORS_AT + 2 * SPANS_BYTES;
int64_t scratch_bytes_panels(int64_t rows) { return TOTALS_AT + MOST_TILES * 64 * rows; }

namespace {

// One call's constants, and the block that is being multiplied.
class Multiplication {
  public:
    Multiplication(const LinearWeight& weight, const Int8Input& x, uint8_t* scratch)
        : weight_(weight), x_(x), tiles_(tiles_of(weight)), choice_(choose(weight)), scratch_(scratch) {
        two_level_ = weight.super_group_size > 0;
        one_span_ = x.groups == 1 && !two_level_;
        span_ = span_columns(weight, x);
        span_groups_ = span_ / x.group_size;
        if (two_level_) pairs_ = divide_up(span_groups_, 2);
        span_runs_ = one_span_ ? tiles_.runs : span_ / RUN_COLUMNS;
        zero_ = weight.bits == 8 ? 0 : constant_zero(weight);  // words are unpacked without
        run_bytes_ = choice_.column_bytes * 16 * RUN_COLUMNS;
        // As many tiles as there can be, so that rows are arranged for many of them.
        const int64_t unit = one_span_ ? RUN_COLUMNS : span_;
        block_ = larger(PANEL_BYTES / MOST_TILES / run_bytes_ * RUN_COLUMNS / unit, 1) * unit;
        most_tiles_ = smaller(PANEL_BYTES / (run_bytes_ * block_ / RUN_COLUMNS), MOST_TILES);
    }

    void run(float* y, int64_t ldy, int64_t rows, int64_t n_begin, int64_t n_end) {
        const int64_t row_tiles = divide_up(rows, MOST_ROWS), tile_rows = divide_up(rows, row_tiles);
        float* totals = (float*)(scratch_ + TOTALS_AT);
        for (int64_t n = n_begin; n < n_end; n += 16 * most_tiles_) {
            const int64_t outputs = smaller(n_end - n, 16 * most_tiles_), tiles = divide_up(outputs, 16);
            for (column_ = 0; column_ < weight_.columns; column_ += block_) {
                runs_ = divide_up(smaller(block_, weight_.columns - column_), RUN_COLUMNS);
                first_span_ = one_span_ ? 0 : column_ / span_;
                spans_ = divide_up(runs_, span_runs_);
                for (int64_t t = 0; t < tiles; ++t) unpack(n, t);
                for (int64_t row = 0; row < rows; row += tile_rows)
                    multiply_rows(row, smaller(tile_rows, rows - row), tiles, totals + row * tiles * 16);
            }
            write_outputs(totals, tiles, rows, outputs, weight_.bias != nullptr ? weight_.bias + n : nullptr, y + n,
                          ldy);
        }
    }

  private:
    void unpack(int64_t n, int64_t t) {
        Panel& panel = panels_[t];
        uint8_t* codes = scratch_ + t * runs_ * run_bytes_;
        choice_.unpack(weight_,
                       tile_codes(tiles_, weight_.tiles, n + 16 * t) + column_ / RUN_COLUMNS * tiles_.run_bytes, runs_,
                       codes);
        float* scales = (float*)(scratch_ + PANEL_BYTES) + t * MOST_SPANS * 16;
        float* others = scales + SPANS_BYTES / 4;
        int32_t* pairs = (int32_t*)(scratch_ + PAIRS_AT) + t * MOST_PAIRS * 16;
        int32_t* factors = (int32_t*)(scratch_ + FACTORS_AT) + t * 2 * MOST_SPANS * 16;
        panel = {codes, scales, (const int32_t*)others, others, factors, pairs};
        const uint8_t* record = tile_record(tiles_, weight_.tiles, n + 16 * t);
        if (two_level_) widen_codes(record, factors, pairs);
        const int64_t spans_per_scale = two_level_ ? weight_.super_group_size / span_ : x_.groups_per_weight_group;
        for (int64_t span = 0; span < spans_; ++span) {
            const int64_t own = (first_span_ + span) / spans_per_scale;
            const uint8_t* place = record + own * 16 * tiles_.scale_bytes;
            store(scales + span * 16, load_scales(weight_.scale_type, place));
            if (choice_.excess == Excess::minimums || choice_.excess == Excess::coded_minimums)
                store(others + span * 16, load_scales(weight_.scale_type, place + tiles_.minimums_at));
            if (choice_.excess == Excess::zero_points)
                store_ints((int32_t*)others + span * 16,
                           widen_bytes((const int8_t*)record + tiles_.zeros_at + own * 16) + splat_int(zero_));
        }
    }

    // Scale codes by run, and by pairs of groups what the sums of x are multiplied with.
    void widen_codes(const uint8_t* record, int32_t* factors, int32_t* pairs) const {
        const int8_t* scale_codes = (const int8_t*)record + tiles_.scale_codes_at;
        const bool minimums = choice_.excess == Excess::coded_minimums;
        const int8_t* others = minimums ? (const int8_t*)record + tiles_.minimum_codes_at : scale_codes;
        const auto of_group = [&](const int8_t* codes, int64_t group) {
            return group < tiles_.groups ? widen_factors(codes + group * 16) : splat_int(0);
        };
        const int64_t step = smaller(weight_.group_size, RUN_COLUMNS);
        for (int64_t column = column_; column < column_ + runs_ * RUN_COLUMNS; column += step, factors += 16)
            store_ints(factors, of_group(scale_codes, column / weight_.group_size));
        for (int64_t span = first_span_; span < first_span_ + spans_; ++span)
            for (int64_t pair = 0; pair < pairs_; ++pair, pairs += 16) {
                const int64_t group = span * span_groups_ + 2 * pair;
                const bool whole = 2 * pair + 1 < span_groups_;
                const Ints second = whole ? of_group(others, group + 1) : splat_int(0);
                store_ints(pairs, (of_group(others, group) & splat_int(0xffff)) | shift_left<16>(second));
            }
    }

    // Sums of a row's codes, of two groups in the halves of a word.
    void pair_sums(const int32_t* sums, int64_t m, Rows& rows) const {
        for (int64_t span = 0; span < spans_; ++span)
            for (int64_t pair = 0; pair < pairs_; ++pair) {
                const int64_t group = (first_span_ + span) * span_groups_ + 2 * pair;
                const bool whole = 2 * pair + 1 < span_groups_ && group + 1 < x_.groups;
                const uint32_t first = group < x_.groups ? uint32_t(sums[group]) & 0xffff : 0;
                const uint32_t second = whole ? uint32_t(sums[group + 1]) << 16 : 0;
                rows.pairs[(span * pairs_ + pair) * MOST_ROWS + m] = int32_t(first | second);
            }
    }

    void arrange(int64_t row, int64_t count, Rows& rows) const {
        const int32_t excess = choice_.excess == Excess::constant ? zero_ : 0;
        for (int64_t m = 0; m < count; ++m) {
            choice_.arrange(x_.codes + (row + m) * x_.row_bytes + column_, runs_, rows.words + m * ROW_WORDS);
            const float* scales = x_.scales + (row + m) * x_.scale_stride;
            const int32_t* sums = x_.sums + (row + m) * x_.sum_stride + first_span_ * span_groups_;
            if (two_level_) pair_sums(x_.sums + (row + m) * x_.sum_stride, m, rows);
            for (int64_t span = 0; span < spans_; ++span) {
                const int64_t own = span * MOST_ROWS + m;
                rows.scales[own] = scales[x_.scale_group((first_span_ + span) * span_groups_)];
                rows.offsets[own] = -excess * sums[span];
                if (choice_.excess == Excess::zero_points) rows.minus_sums[own] = -sums[span];
                if (choice_.excess == Excess::minimums)
                    rows.minimum_factors[own] = float(sums[span]) * rows.scales[own];
            }
        }
    }

    void multiply_rows(int64_t row, int64_t count, int64_t tiles, float* totals) const {
        Rows rows;
        arrange(row, count, rows);
        const bool starts = column_ == 0, ends = column_ + block_ >= weight_.columns;
        const int64_t stride = tiles * 16;
        for (int64_t t = 0; t < tiles; ++t, totals += 16) {
            // Sums of a span that goes on in the next block wait where its total will be.
            alignas(64) int32_t own_sums[MOST_SPANS * MOST_ROWS * 16];
            int32_t* sums = one_span_ ? (int32_t*)totals : own_sums;
            const int64_t span_step = MOST_ROWS * 16, row_step = one_span_ ? stride : 16;
            choice_.multiply[count - 1](panels_[t], rows.words, runs_, span_runs_,
                                        one_span_ && !starts ? nullptr : rows.offsets, sums, span_step, row_step);
            if (!one_span_ || ends)
                choice_.add_spans[count - 1](panels_[t], rows, spans_, pairs_, zero_, sums, span_step, row_step,
                                             one_span_ || starts, totals, stride);
        }
    }

    const LinearWeight& weight_;
    const Int8Input& x_;
    const Tiles tiles_;
    const Choice choice_;
    uint8_t* scratch_;
    bool two_level_, one_span_;               // one: the whole row
    int64_t span_, span_groups_, pairs_ = 0;  // columns, groups and pairs of groups of a span
    int64_t span_runs_, run_bytes_, block_, most_tiles_;
    int32_t zero_;
    int64_t column_, runs_, first_span_, spans_;
    Panel panels_[MOST_TILES];
};

}  // namespace

void linear_panels(const LinearWeight& weight, const Int8Input& x, float* y, int64_t ldy, int64_t rows, int64_t n_begin,
                   int64_t n_end, uint8_t* scratch) {
    Multiplication(weight, x, scratch).run(y, ldy, rows, n_begin, n_end);
}

#elif !defined(LINNET_VNNI)  // panels_vnni.cpp

bool reads_panels(const LinearWeight&, int64_t, int64_t) { return false; }
int64_t scratch_bytes_panels(int64_t) { return 0; }
void linear_panels(const LinearWeight&, const Int8Input&, float*, int64_t, int64_t, int64_t, int64_t, uint8_t*) {}

#endif

}  // namespace linnet::LINNET_TIER
