// SPDX-License-Identifier: Apache-2.0
// The kernels of gemv.cpp for one width of codes. Tiers with VNNI only.
#pragma once

#include "gemv.h"

#if defined(LINNET_VNNI)

namespace linnet::LINNET_TIER {

static constexpr int64_t AHEAD_BYTES = 8192;

// What stays the same for a tile of sixteen outputs.
template <int M>
struct Tile {
    const LinearWeight& weight;
    const Int8Input& x;
    const Prepared* rows;
    const GemvShape& shape;
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
static void multiply(const LinearWeight& weight, const Int8Input& x, const Prepared* rows, const GemvShape& shape,
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
static void run_gemv(const LinearWeight& weight, const Int8Input& x, const Prepared* prepared, const GemvShape& shape,
                     float* y, int64_t ldy, int64_t rows, int64_t n_begin, int64_t n_end) {
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
static GemvKernel choose_gemv(int lanes, const GemvShape& shape) {
    if constexpr (bits == 2)
        if (lanes == 2) return run_gemv<bits, 2, true>;
    if (lanes == 4) return run_gemv<bits, 4, true>;
    if (lanes == 8) return run_gemv<bits, 8, true>;
    return shape.loads == 1 ? run_gemv<bits, 16, true> : run_gemv<bits, 16, false>;
}

}  // namespace linnet::LINNET_TIER

#endif
