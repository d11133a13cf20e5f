// SPDX-License-Identifier: Apache-2.0
// panels.h for the tiers with VNNI, whose dot products of bytes are sums of 32 bits at once. Rows are arranged once per
// block of columns for all outputs of an item: their words side by side, sums of their codes, scales. Then panel after
// panel is unpacked into L1 and meets all of them (panels_vnni.h).
#include "panels.h"

#if defined(LINNET_VNNI)

#include "panels_vnni.h"

namespace linnet::LINNET_TIER {

static constexpr int64_t MOST_PANELS = 8;  // whose totals are kept at once
static constexpr int64_t FEWEST_ROWS = 5;  // below, unpacking costs more than it brings

LINNET_INLINE Floats gather(const float* p, Ints at) { return {_mm512_i32gather_ps(at.v, p, 4)}; }
LINNET_INLINE Ints gather(const int32_t* p, Ints at) { return {_mm512_i32gather_epi32(at.v, p, 4)}; }

bool reads_panels(const LinearWeight& weight, int64_t input_group_size, int64_t rows) {
    if (rows < FEWEST_ROWS) return false;
    const int64_t span = span_columns(weight, input_group_size), group = weight.group_size;
    const bool whole_runs = span % RUN_COLUMNS == 0 && span <= BLOCK_COLUMNS;
    if (weight.super_group_size > 0) return whole_runs && (group == LEAST_GROUP || group % RUN_COLUMNS == 0);
    return span == weight.columns || whole_runs;
}

static constexpr int64_t CODES_BYTES = LANES_OF_PANEL * BLOCK_COLUMNS;  // of a panel
static constexpr int64_t SLABS_AT = CODES_BYTES + int64_t(sizeof(Panel));
static int64_t most_slabs(int64_t rows) { return divide_up(divide_up(rows, MOST_ROWS_OF_SPANS), 2); }
int64_t scratch_bytes_panels(int64_t rows) {
    return SLABS_AT + most_slabs(rows) * int64_t(sizeof(Slab)) + MOST_PANELS * LANES_OF_PANEL * 4 * rows;
}

namespace {

// One call's constants, and the block that is being multiplied.
class Multiplication {
  public:
    Multiplication(const LinearWeight& weight, const Int8Input& x, uint8_t* scratch)
        : weight_(weight),
          x_(x),
          tiles_(tiles_of(weight)),
          codes_(scratch),
          panel_(*(Panel*)(scratch + CODES_BYTES)),
          slabs_((Slab*)(scratch + SLABS_AT)) {
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
        rows_ = rows;
        row_tiles_ = divide_up(rows, one_span_ ? MOST_ROWS : MOST_ROWS_OF_SPANS);
        float* totals = (float*)(slabs_ + most_slabs(rows));
        for (int64_t n = n_begin; n < n_end; n += LANES_OF_PANEL * MOST_PANELS) {
            const int64_t outputs = smaller(n_end - n, LANES_OF_PANEL * MOST_PANELS);
            const int64_t panel_totals = rows * LANES_OF_PANEL;
            std::memset(totals, 0, size_t(divide_up(outputs, LANES_OF_PANEL) * panel_totals * 4));
            for (int64_t column = 0; column < weight_.columns; column += columns_) {
                begin(column);
                for (int64_t tile = 0; tile < row_tiles_; tile += 2) arrange(tile, slabs_[tile / 2]);
                for (int64_t first = 0; first < outputs; first += LANES_OF_PANEL) {
                    unpack(n + first);
                    multiply(totals + first / LANES_OF_PANEL * panel_totals);
                }
            }
            const bool streamed = can_stream(rows, outputs, y + n, ldy);
            for (int64_t first = 0; first < outputs; first += LANES_OF_PANEL)
                write_rows(totals + first / LANES_OF_PANEL * panel_totals, T, rows,
                           smaller(LANES_OF_PANEL, outputs - first),
                           weight_.bias != nullptr ? weight_.bias + n + first : nullptr, y + n + first, ldy, streamed);
            if (streamed) finish_stores();
        }
    }

  private:
    void begin(int64_t column) {
        const int64_t width = smaller(columns_, weight_.columns - column);
        block_.column = column;
        block_.eights = divide_up(width, RUN_COLUMNS) * RUN_EIGHTS;
        block_.first_span = one_span_ ? 0 : column / span_;
        block_.spans = divide_up(block_.eights, block_.span_eights);
        block_.ends = column + columns_ >= weight_.columns;
    }

    void unpack(int64_t n) {
        const uint8_t* stored = tile_codes(tiles_, weight_.tiles, n) + block_.column / RUN_COLUMNS * tiles_.run_bytes;
        panel_.codes = stored;  // eight bits lie as they are multiplied
        if (weight_.bits != 8) {
            unpack_block(weight_.bits, stored, block_.eights / RUN_EIGHTS, codes_);
            panel_.codes = codes_;
        }
        const int64_t spans_per_scale = two_level_ ? weight_.super_group_size / span_ : x_.groups_per_weight_group;
        for (int64_t t = 0; t < T; ++t) {
            const uint8_t* record = tile_record(tiles_, weight_.tiles, n + 16 * t);
            if (two_level_) widen_codes(record, panel_.factors + t * 16, panel_.pairs + t * 16);
            for (int64_t span = 0; span < block_.spans; ++span) {
                const int64_t own = (block_.first_span + span) / spans_per_scale, at = span * LANES_OF_PANEL + t * 16;
                const uint8_t* place = record + own * 16 * tiles_.scale_bytes;
                store(panel_.scales + at, load_scales(weight_.scale_type, place));
                if (weight_.offsets == Offsets::minimums)
                    store(panel_.minimums + at, load_scales(weight_.scale_type, place + tiles_.minimums_at));
                if (excess_ == Excess::zero_points)
                    store_ints(panel_.zeros + at,
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

    // Rows are dealt out evenly: 8 are 4 and 4, not 7 and 1.
    int64_t first_row(int64_t tile) const { return smaller(tile, row_tiles_) * rows_ / row_tiles_; }

    // Tiles `tile` and the next, if there is one. Slots without a row repeat the last one.
    void arrange(int64_t tile, Slab& slab) const {
        alignas(64) int32_t own_rows[SLOTS];
        const int64_t row = first_row(tile), last = first_row(tile + 2) - 1;
        for (int64_t slot = 0; slot < SLOTS; ++slot)
            own_rows[slot] = int32_t(smaller(first_row(tile + slot / MOST_ROWS) + slot % MOST_ROWS, last) - row);
        arrange_words(x_.codes + row * x_.row_bytes + block_.column, own_rows, slab.words);
        const Ints slots = load_ints(own_rows);
        const float* scales = x_.scales + row * x_.scale_stride;
        for (int64_t span = 0; span < block_.spans; ++span) {
            const int64_t own = x_.scale_group((block_.first_span + span) * span_groups_);
            store(slab.scales + span * SLOTS, gather(scales + own, slots * splat_int(int32_t(x_.scale_stride))));
        }
        const int64_t groups = divide_up(block_.eights, block_.group_eights);
        if (one_span_)
            store_ints(slab.sums, gather(x_.sums + row * x_.sum_stride, slots * splat_int(int32_t(x_.sum_stride))));
        else
            add_words(slab.words, groups, slab.sums);
        arrange_sums(groups, slab);
    }

    void arrange_sums(int64_t groups, Slab& slab) const {
        const bool constant = excess_ == Excess::constant || excess_ == Excess::scaled_constant;
        for (int64_t at = 0; at < groups * SLOTS; at += SLOTS) {
            const Ints sums = load_ints(slab.sums + at);
            store_ints(slab.offsets + at, constant ? splat_int(-zero_) * sums : splat_int(0));
            if (excess_ == Excess::zero_points) store_ints(slab.minus_sums + at, splat_int(0) - sums);
            if (excess_ == Excess::minimums) store(slab.minimum_factors + at, to_floats(sums) * load(slab.scales + at));
        }
        int32_t* pairs = slab.pairs;
        for (int64_t span = 0; span < block_.spans; ++span)
            for (int64_t within = 0; within < 2 * block_.pairs; within += 2, pairs += SLOTS) {
                const int32_t* own = slab.sums + (span * span_groups_ + within) * SLOTS;
                const Ints second = within + 1 < span_groups_ ? load_ints(own + SLOTS) : splat_int(0);
                store_ints(pairs, (load_ints(own) & splat_int(0xffff)) | shift_left<16>(second));
            }
    }

    // Zeros follow a row's last code.
    void arrange_words(const int8_t* codes, const int32_t* own_rows, int32_t* words) const {
        for (int64_t left = block_.eights * 2; left > 0; left -= 16, codes += 64) {
            Ints slots[SLOTS];
#pragma GCC unroll 16
            for (int slot = 0; slot < SLOTS; ++slot)
                slots[slot] = load_ints((const int32_t*)(codes + own_rows[slot] * x_.row_bytes));
            transpose(slots);
            if (left >= 16) {
#pragma GCC unroll 16
                for (int word = 0; word < SLOTS; ++word) store_ints(words + word * SLOTS, slots[word]);
            } else {
                for (int64_t word = 0; word < left; ++word) store_ints(words + word * SLOTS, slots[word]);
            }
            words += 16 * SLOTS;
        }
    }

    void add_words(const int32_t* words, int64_t groups, int32_t* sums) const {
        for (int64_t group = 0; group < groups; ++group) {
            Ints sum = splat_int(0);
            const int64_t left = block_.eights - group * block_.group_eights;
            for (int64_t word = 0; word < 2 * smaller(block_.group_eights, left); ++word, words += SLOTS)
                sum = dot_bytes<true>(sum, every_byte(1), load_ints(words));
            store_ints(sums + group * SLOTS, sum);
        }
    }

    // All rows times the panel. Their totals lie together: at the distance of y's rows half of the loads of codes would
    // wait for stores of totals at the same offset in some page.
    void multiply(float* totals) const {
        for (int64_t tile = 0; tile < row_tiles_; ++tile) {
            const int64_t row = first_row(tile), count = first_row(tile + 1) - row;
            choose(excess_, one_span_, block_.group_eights, count)(panel_, Rows(slabs_[tile / 2], tile % 2), block_,
                                                                   totals + row * LANES_OF_PANEL);
        }
    }

    const LinearWeight& weight_;
    const Int8Input& x_;
    const Tiles tiles_;
    uint8_t* codes_;
    Panel& panel_;
    Slab* slabs_;
    Excess excess_;
    bool two_level_, one_span_;   // one: the whole row
    int64_t span_, span_groups_;  // columns and groups of a span
    int64_t columns_;             // of a block
    int64_t rows_ = 0, row_tiles_ = 0;
    int32_t zero_;
    Block block_ = {};
};

}  // namespace

void linear_panels(const LinearWeight& weight, const Int8Input& x, float* y, int64_t ldy, int64_t rows, int64_t n_begin,
                   int64_t n_end, uint8_t* scratch) {
    Multiplication(weight, x, scratch).run(y, ldy, rows, n_begin, n_end);
}

}  // namespace linnet::LINNET_TIER

#endif
