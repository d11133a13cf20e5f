// SPDX-License-Identifier: Apache-2.0
// Few rows times integer weights: as fast as memory delivers. Sixteen outputs at a time, each read in runs of
// about 1 KiB, in address order for the usual sizes; a run's dot products are summed across lanes so that one vector
// holds sixteen groups of one output, and sixteen such vectors are transposed to one vector per group over sixteen
// outputs, where the sums continue exactly as in int8.cpp: same order, same bits.
#include "gemv_dots.h"
#include "int8.h"

namespace linnet::LINNET_TIER {

#if defined(LINNET_VNNI)

static constexpr int64_t AHEAD_BYTES = 8192;
static constexpr int64_t MOST_ROWS = 4;
static constexpr int64_t RUN_GROUPS = 64;  // most groups of a run

// What the kernel reads per row of activations, laid out for it: codes (in the order of gemv_codes.h), then per group
// the scale and minus zero times sum, padded with zeros.
struct Prepared {
    const int8_t* codes;
    const float* scales;
    const int32_t* offsets;  // -constant_zero * sum; with zero points: -sum
};

static int64_t padded_bytes(int64_t columns) { return round_up(columns, 2048) + 2048; }
static int64_t padded_groups(int64_t groups) { return round_up(groups, 16) + RUN_GROUPS; }

int64_t scratch_bytes_gemv(const LinearWeight& weight) {
    const int64_t groups = divide_up(weight.columns, 16);  // no smaller group gets here
    return MOST_ROWS * (padded_bytes(weight.columns) + 2 * 4 * padded_groups(groups));
}

static void prepare_row(const LinearWeight& weight, const Int8Input& x, int64_t row, int bits, int8_t* codes,
                        float* scales, int32_t* offsets) {
    const int8_t* in = x.codes + row * x.row_bytes;
    const int64_t bytes = padded_bytes(weight.columns);
    for (int64_t c = 0; c < bytes; c += 256) {
        __m512i own[4];
        for (int i = 0; i < 4; ++i) {
            const bool inside = c + 64 * i < x.row_bytes;  // row_bytes is a multiple of 64
            own[i] = inside ? _mm512_loadu_si512(in + c + 64 * i) : _mm512_setzero_si512();
        }
        if (bits == 8) arrange_columns<8>(own, codes + c);
        if (bits == 4) arrange_columns<4>(own, codes + c);
        if (bits == 3) arrange_columns<3>(own, codes + c);
        if (bits == 2) arrange_columns<2>(own, codes + c);
    }
    const int32_t factor = weight.zero_points != nullptr ? -1 : -constant_zero(weight);
    for (int64_t g = 0; g < padded_groups(x.groups); ++g) {
        const bool inside = g < x.groups;
        scales[g] = inside ? x.scales[row * x.scale_stride + x.scale_group(g)] : 0.0f;
        offsets[g] = inside ? factor * x.sums[row * x.sum_stride + g] : 0;
    }
}

struct Shape {
    int64_t loads;         // pieces per group (1 when a piece holds several groups)
    int64_t piece_groups;  // groups per piece (1 when a group has several pieces)
    int64_t run_groups;    // groups per run, a multiple of 16
    bool single;           // one group: its pieces are dealt out as if to sixteen, whose sums are then one
};

// What stays the same for a tile of sixteen outputs.
template <int M>
struct Tile {
    const LinearWeight& weight;
    const Int8Input& x;
    const Prepared* rows;
    const Shape& shape;
    int64_t n;
    const uint8_t* base;
    int64_t row_bytes;
    bool channel;
    __m512i flip;
};

// Of the current run: the scaled dot products and the weight's scales of sixteen groups, by output.
template <int M>
struct Run {
    Ints values[M][RUN_GROUPS / 16][16];
    Ints scales[RUN_GROUPS / 16][16];
};

// R outputs from r on, sixteen groups from `group` on, `offset` bytes into the row; block b of the run.
template <int bits, int lanes, int M, int R, bool one>
LINNET_INLINE void multiply_groups(const Tile<M>& tile, Run<M>& out, int64_t r, int64_t group, int64_t offset,
                                   int64_t b, bool whole, const uint8_t* later) {
    const LinearWeight& weight = tile.weight;
    const int64_t loads = one ? 1 : tile.shape.loads;
    const uint8_t* p[R];
    const int8_t* codes[M];
#pragma GCC unroll 4
    for (int k = 0; k < R; ++k) p[k] = tile.base + (r + k) * weight.code_row_bytes + offset;
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) codes[m] = tile.rows[m].codes + offset * 8 / bits;
    const int64_t bytes = tile.row_bytes - offset;
    __m512i sums[R * M];
    if (one && whole)
        dots<bits, lanes, M, R, true>(p, bytes, codes, 1, 0, tile.flip, later, sums);
    else
        dots<bits, lanes, M, R, false>(p, bytes, codes, loads, divide_up(bytes, PIECE_BYTES<bits>), tile.flip, later,
                                       sums);
    if (tile.shape.single) {
#pragma GCC unroll 8
        for (int k = 0; k < R * M; ++k) sums[k] = _mm512_maskz_set1_epi32(1, _mm512_reduce_add_epi32(sums[k]));
    }
    const int64_t left = tile.x.groups - group;
#pragma GCC unroll 4
    for (int k = 0; k < R; ++k) {
        const int64_t output = tile.n + r + k;
        __m512i zero = _mm512_setzero_si512();
        if (weight.zero_points != nullptr) {
            const int8_t* zeros = weight.zero_points + output * weight.zero_point_row_stride;
            const __m128i own =
                tile.channel ? _mm_set1_epi8(zeros[0]) : _mm_maskz_loadu_epi8(first_lanes(left).m, zeros + group);
            zero = add(_mm512_cvtepi8_epi32(own), _mm512_set1_epi32(constant_zero(weight)));
        }
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            __m512i correction = _mm512_loadu_si512(tile.rows[m].offsets + group);
            if (weight.zero_points != nullptr) correction = _mm512_mullo_epi32(correction, zero);
            const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(add(sums[k * M + m], correction)),
                                                _mm512_loadu_ps(tile.rows[m].scales + group));
            out.values[m][b][r + k].v = _mm512_castps_si512(scaled);
        }
        if (!tile.channel)
            out.scales[b][r + k] = as_ints(load_scales_first(weight, output * weight.scale_row_stride + group, left));
    }
}

template <int bits, int lanes, int M, bool one>
static void multiply(const LinearWeight& weight, const Int8Input& x, const Prepared* rows, const Shape& shape,
                     int64_t n, int64_t outputs, float* y, int64_t ldy) {
    constexpr int R = 1;  // outputs at a time: two share the loads of one row of x
    const int64_t sixteen_bytes = lanes * (one ? 1 : shape.loads) * PIECE_BYTES<bits>;
    const int64_t run_bytes = shape.run_groups / 16 * sixteen_bytes;
    const int64_t stride = weight.code_row_bytes;
    const int64_t scale_bytes = weight.scale_type == ScaleType::fp32 ? 4 : 2;
    const Tile<M> tile = {weight,
                          x,
                          rows,
                          shape,
                          n,
                          (const uint8_t*)weight.codes + n * stride,
                          weight.storage == Storage::plain_int8 ? weight.columns : stride,
                          x.groups_per_weight_group != 1 || weight.group_size >= weight.columns,
                          _mm512_set1_epi8(weight.storage == Storage::plain_int8 ? int8_t(-128) : 0)};
    Run<M> current;  // rows past the last output stay unset; their lanes are never stored
    // About 8 KiB ahead in the order of reading.
    const int64_t ahead = round_up(smaller(16, larger(2, AHEAD_BYTES / run_bytes)), 2);
    __m512 totals[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) totals[m] = _mm512_setzero_ps();
    alignas(64) float channel_scales[16] = {};
    if (tile.channel)
        for (int64_t r = 0; r < outputs; ++r)
            store_first(channel_scales + r, 1, load_scales_first(weight, (n + r) * weight.scale_row_stride, 1));
    const Floats channel_scale = load(channel_scales);
    for (int64_t group = 0; group < x.groups; group += shape.run_groups) {
        const int64_t run = smaller(shape.run_groups, x.groups - group);
        const int64_t blocks = divide_up(run, 16);
        const int64_t offset = group / 16 * sixteen_bytes;
        const int64_t next_run = group + shape.run_groups >= x.groups ? 16 * stride : offset + run_bytes;
        for (int64_t r = 0; r < outputs; r += R) {
            const int64_t next = r + ahead;
            const uint8_t* later = tile.base + (next < 16 ? next * stride + offset : (next - 16) * stride + next_run);
            if (!tile.channel) {  // the scales of the next run: short pieces far apart where rows are long
                const int64_t output = next_run == 16 * stride ? n + 16 + r : n + r;
                const int64_t first = next_run == 16 * stride ? 0 : group + shape.run_groups;
                const char* scales =
                    (const char*)weight.scales + (output * weight.scale_row_stride + first) * scale_bytes;
                for (int64_t line = 0; line < shape.run_groups * scale_bytes; line += 64)
                    _mm_prefetch(scales + line, _MM_HINT_T0);
            }
            for (int64_t b = 0; b < blocks; ++b) {
                const int64_t here = offset + b * sixteen_bytes;
                const bool whole = tile.row_bytes - here >= sixteen_bytes;
                if (r + R <= outputs)
                    multiply_groups<bits, lanes, M, R, one>(tile, current, r, group + 16 * b, here, b, whole,
                                                            later + b * sixteen_bytes);
                else
                    multiply_groups<bits, lanes, M, 1, one>(tile, current, r, group + 16 * b, here, b, whole,
                                                            later + b * sixteen_bytes);
            }
        }
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t groups = smaller(16, run - 16 * b);
            if (!tile.channel) transpose(current.scales[b]);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                transpose(current.values[m][b]);
                for (int64_t g = 0; g < groups; ++g) {
                    const Floats scale = tile.channel ? channel_scale : as_floats(current.scales[b][g]);
                    totals[m] = _mm512_fmadd_ps(as_floats(current.values[m][b][g]).v, scale.v, totals[m]);
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
        Floats total = {totals[m]};
        if (weight.bias != nullptr) total = total + load_first(weight.bias + n, outputs);
        store_first(y + m * ldy + n, outputs, total);
    }
}

template <int bits, int lanes, bool one>
static void run(const LinearWeight& weight, const Int8Input& x, const Prepared* prepared, const Shape& shape, float* y,
                int64_t ldy, int64_t rows, int64_t n_begin, int64_t n_end) {
    for (int64_t n = n_begin; n < n_end; n += 16) {
        const int64_t outputs = smaller(16, n_end - n);
        switch (rows) {
            case 1:
                multiply<bits, lanes, 1, one>(weight, x, prepared, shape, n, outputs, y, ldy);
                break;
            case 2:
                multiply<bits, lanes, 2, one>(weight, x, prepared, shape, n, outputs, y, ldy);
                break;
        }
        if constexpr (bits != 4) {
            if (rows == 3) multiply<bits, lanes, 3, one>(weight, x, prepared, shape, n, outputs, y, ldy);
            if (rows == 4) multiply<bits, lanes, 4, one>(weight, x, prepared, shape, n, outputs, y, ldy);
        }
    }
}

template <int bits>
struct Width {
    static constexpr int value = bits;
};

bool try_gemv(const LinearWeight& weight, const Int8Input& x, float* y, int64_t ldy, int64_t rows, int64_t n_begin,
              int64_t n_end, void* scratch) {
    const int bits = weight.storage == Storage::plain_int8 ? 8 : weight.bits;
    const int64_t piece = bits == 3 ? 128 : 512 / bits;  // columns
    const bool group_scales = x.groups_per_weight_group == 1 && weight.scale_group_stride == 1;
    if (rows > MOST_ROWS) return false;
    if (!group_scales && weight.group_size < weight.columns) return false;
    const bool single = x.groups == 1;
    const bool part =
        x.group_size * 2 == piece || x.group_size * 4 == piece || (bits == 2 && x.group_size * 8 == piece);
    if (!single && x.group_size % piece != 0 && !part) return false;

    Shape shape = {1, 1, 16, single};
    int lanes = 16;
    if (single) {
        shape.loads = divide_up(weight.columns, 16 * piece);
    } else if (x.group_size >= piece) {
        shape.loads = x.group_size / piece;
    } else {
        shape.piece_groups = piece / x.group_size;
        lanes = int(16 / shape.piece_groups);
        shape.run_groups = smaller(RUN_GROUPS, 16 * shape.piece_groups);
    }
    // Measured: beyond this the GEMM, whose unpacking costs nothing per row, is as fast or faster.
    if (rows > (bits == 4 ? 2 : 4)) return false;
    int8_t* codes = (int8_t*)scratch;
    const int64_t bytes = padded_bytes(weight.columns), groups = padded_groups(x.groups);
    float* scales = (float*)(codes + MOST_ROWS * bytes);
    int32_t* offsets = (int32_t*)(scales + MOST_ROWS * groups);
    Prepared prepared[MOST_ROWS];
    for (int64_t row = 0; row < rows; ++row) {
        prepared[row] = {codes + row * bytes, scales + row * groups, offsets + row * groups};
        prepare_row(weight, x, row, bits, codes + row * bytes, scales + row * groups, offsets + row * groups);
    }
    const auto choose = [&](auto width) {
        constexpr int b = decltype(width)::value;
        if constexpr (b == 2)
            if (lanes == 2) return run<b, 2, true>;
        if (lanes == 4) return run<b, 4, true>;
        if (lanes == 8) return run<b, 8, true>;
        return shape.loads == 1 ? run<b, 16, true> : run<b, 16, false>;
    };
    const auto kernel = bits == 8   ? choose(Width<8>{})
                        : bits == 4 ? choose(Width<4>{})
                        : bits == 3 ? choose(Width<3>{})
                                    : choose(Width<2>{});
    kernel(weight, x, prepared, shape, y, ldy, rows, n_begin, n_end);
    return true;
}

#else

int64_t scratch_bytes_gemv(const LinearWeight&) { return 0; }
bool try_gemv(const LinearWeight&, const Int8Input&, float*, int64_t, int64_t, int64_t, int64_t, void*) {
    return false;
}

#endif

}  // namespace linnet::LINNET_TIER
