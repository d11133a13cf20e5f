// SPDX-License-Identifier: Apache-2.0
// Few rows times int4 or int8 weights: as fast as memory delivers. Sixteen outputs at a time, each read in runs of about
// 1 KiB, in address order for the usual sizes; a run's dot products are summed across lanes so that one vector holds
// sixteen groups of one output, and sixteen such vectors are transposed to one vector per group over sixteen outputs,
// where the sums continue exactly as in int8.cpp: same order, same bits.
#include "int8.h"

namespace linnet::LINNET_TIER {

#if defined(LINNET_VNNI)

static constexpr int64_t AHEAD_BYTES = 4096;
static constexpr int64_t MOST_ROWS = 4;
static constexpr int64_t RUN_GROUPS = 64;  // most groups of a run

// What the kernel reads per row of activations, laid out for it: codes (int4: 64 bytes of even columns, 64 of odd ones
// per 128; int8: natural order), then per group the scale and minus zero times sum, padded with zeros.
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
    const __m512i even_first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd_first = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    const __m512i natural =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
    for (int64_t c = 0; c < bytes; c += 128) {
        const bool inside = c < x.row_bytes;  // row_bytes is a multiple of 128
        const __m512i first = inside ? _mm512_loadu_si512(in + c) : _mm512_setzero_si512();
        const __m512i second = inside ? _mm512_loadu_si512(in + c + 64) : _mm512_setzero_si512();
        if (bits == 4) {
            _mm512_storeu_si512(codes + c, _mm512_permutex2var_epi32(first, even_first, second));
            _mm512_storeu_si512(codes + c + 64, _mm512_permutex2var_epi32(first, odd_first, second));
        } else {
            _mm512_storeu_si512(codes + c, _mm512_shuffle_epi8(first, natural));
            _mm512_storeu_si512(codes + c + 64, _mm512_shuffle_epi8(second, natural));
        }
    }
    const int32_t factor = weight.zero_points != nullptr ? -1 : -constant_zero(weight);
    for (int64_t g = 0; g < padded_groups(x.groups); ++g) {
        const bool inside = g < x.groups;
        scales[g] = inside ? x.scales[row * x.scale_stride + x.scale_group(g)] : 0.0f;
        offsets[g] = inside ? factor * x.sums[row * x.sum_stride + g] : 0;
    }
}

LINNET_INLINE __m512i add(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }

// Lane 4 q + i: what the four lanes of quarter q of a[i] add up to.
LINNET_INLINE __m512i sum_quarters(const __m512i* a) {
    const __m512i low = add(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1]));
    const __m512i high = add(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));
    return add(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
}
LINNET_INLINE __m512i sum_pairs(__m512i a, __m512i b) {
    return add(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

// Dot products of 16 groups of one output with M rows of x. `loads`: 64-byte pieces per group (lanes == 16); `bytes`:
// what may be read from p. `one`: loads == 1 and all of it may be read; `limit`: pieces that exist, otherwise.
template <int bits, int lanes, int M, bool one>
LINNET_INLINE void dots(const uint8_t* p, int64_t bytes, const int8_t* const* x, int64_t loads, int64_t limit,
                        __m512i flip, __m512i* out) {
    constexpr int quads = lanes / 4;
    constexpr int64_t x_bytes = bits == 4 ? 128 : 64;  // of x per 64 bytes of codes
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i parts[M][quads];
#pragma GCC unroll 4
    for (int quad = 0; quad < quads; ++quad) {
        __m512i sums[M][4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) sums[m][i] = _mm512_setzero_si512();
            const int64_t begin = (quad * 4 + i) * (one ? 1 : loads);
            const int64_t end = one ? begin + 1 : smaller(begin + loads, limit);
            for (int64_t piece = begin; piece < end; ++piece) {
                const __m512i codes = one ? _mm512_loadu_si512(p + piece * 64)
                                          : load_words_first(p + piece * 64, bytes - piece * 64).v;
                if constexpr (bits == 4) {
                    const __m512i even = _mm512_and_si512(codes, nibble);
                    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(codes, 4), nibble);
#pragma GCC unroll 4
                    for (int m = 0; m < M; ++m) {
                        const int8_t* own = x[m] + piece * x_bytes;
                        sums[m][i] = _mm512_dpbusd_epi32(sums[m][i], even, _mm512_loadu_si512(own));
                        sums[m][i] = _mm512_dpbusd_epi32(sums[m][i], odd, _mm512_loadu_si512(own + 64));
                    }
                } else {
                    const __m512i code = _mm512_xor_si512(codes, flip);
#pragma GCC unroll 4
                    for (int m = 0; m < M; ++m)
                        sums[m][i] = _mm512_dpbusd_epi32(sums[m][i], code, _mm512_loadu_si512(x[m] + piece * x_bytes));
                }
            }
        }
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) parts[m][quad] = sum_quarters(sums[m]);
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
        if constexpr (lanes == 16)
            out[m] = sum_pairs(sum_pairs(parts[m][0], parts[m][1]), sum_pairs(parts[m][2], parts[m][3]));
        else if constexpr (lanes == 8)  // quarters: groups 0 2 4 6, 1 3 5 7, 8 10 12 14, 9 11 13 15
            out[m] = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15),
                                              sum_pairs(parts[m][0], parts[m][1]));
        else  // quarter q: groups q, 4 + q, 8 + q, 12 + q
            out[m] = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                                              parts[m][0]);
    }
}

struct Shape {
    int64_t loads;         // 64-byte pieces per group (1 when a piece holds several groups)
    int64_t piece_groups;  // groups per piece (1 when a group has several pieces)
    int64_t run_groups;    // groups per run, a multiple of 16
    bool single;           // one group: its pieces are dealt out as if to sixteen, whose sums are then one
};

template <int bits, int lanes, int M>
static void multiply(const LinearWeight& weight, const Int8Input& x, const Prepared* rows, const Shape& shape, int64_t n,
                     int64_t outputs, float* y, int64_t ldy) {
    constexpr int64_t sixteen_pieces = lanes;  // pieces of 16 groups, times loads
    const uint8_t* base = (const uint8_t*)weight.codes + n * weight.code_row_bytes;
    const int64_t row_bytes = weight.storage == Storage::plain_int8 ? weight.columns : weight.code_row_bytes;
    const int64_t sixteen_bytes = sixteen_pieces * shape.loads * 64;
    const int64_t run_bytes = shape.run_groups / 16 * sixteen_bytes;
    const __m512i flip = _mm512_set1_epi8(weight.storage == Storage::plain_int8 ? int8_t(-128) : 0);
    const bool channel = x.groups_per_weight_group != 1 || weight.group_size >= weight.columns;
    // About 4 KiB ahead in the order of reading.
    const int64_t ahead = smaller(16, larger(1, AHEAD_BYTES / run_bytes));
    __m512 totals[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) totals[m] = _mm512_setzero_ps();
    alignas(64) float channel_scales[16] = {};
    if (channel)
        for (int64_t r = 0; r < outputs; ++r)
            store_first(channel_scales + r, 1, load_scales_first(weight, (n + r) * weight.scale_row_stride, 1));
    for (int64_t group = 0; group < x.groups; group += shape.run_groups) {
        const int64_t run = smaller(shape.run_groups, x.groups - group);
        const int64_t blocks = divide_up(run, 16);
        const int64_t offset = group / 16 * sixteen_bytes;
        const bool last = group + shape.run_groups >= x.groups;
        Ints values[M][RUN_GROUPS / 16][16];
        Ints scales[RUN_GROUPS / 16][16];
        for (int64_t r = 0; r < 16; ++r) {
            if (r >= outputs) {
                for (int64_t b = 0; b < blocks; ++b) {
                    scales[b][r] = splat_int(0);
                    for (int m = 0; m < M; ++m) values[m][b][r] = splat_int(0);
                }
                continue;
            }
            const uint8_t* row = base + r * weight.code_row_bytes + offset;
            const int64_t next = r + ahead;
            const uint8_t* later = next < 16 ? base + next * weight.code_row_bytes + offset
                                             : base + (next - 16) * weight.code_row_bytes +
                                                   (last ? 16 * weight.code_row_bytes : offset + run_bytes);
            for (int64_t b = 0; b < blocks; ++b) {
                const uint8_t* p = row + b * sixteen_bytes;
                const int64_t first = group + 16 * b;
                const int64_t bytes = row_bytes - offset - b * sixteen_bytes;
                const int8_t* codes[M];
#pragma GCC unroll 4
                for (int m = 0; m < M; ++m) codes[m] = rows[m].codes + (offset + b * sixteen_bytes) * (bits == 4 ? 2 : 1);
                for (int64_t line = 0; line < sixteen_bytes; line += 64)
                    _mm_prefetch((const char*)(later + b * sixteen_bytes + line), _MM_HINT_T0);
                __m512i sums[M];
                if (bytes >= sixteen_bytes && shape.loads == 1)
                    dots<bits, lanes, M, true>(p, bytes, codes, 1, 0, flip, sums);
                else
                    dots<bits, lanes, M, false>(p, bytes, codes, shape.loads, divide_up(bytes, 64), flip, sums);
                if (shape.single) {
#pragma GCC unroll 4
                    for (int m = 0; m < M; ++m)
                        sums[m] = _mm512_maskz_set1_epi32(1, _mm512_reduce_add_epi32(sums[m]));
                }
                __m512i zero = _mm512_set1_epi32(1);
                if (weight.zero_points != nullptr) {
                    const int8_t* zeros = weight.zero_points + (n + r) * weight.zero_point_row_stride;
                    const __m128i own =
                        channel ? _mm_set1_epi8(zeros[0])
                                : _mm_maskz_loadu_epi8(first_lanes(x.groups - first).m, zeros + first);
                    zero = add(_mm512_cvtepi8_epi32(own), _mm512_set1_epi32(constant_zero(weight)));
                }
#pragma GCC unroll 4
                for (int m = 0; m < M; ++m) {
                    __m512i correction = _mm512_loadu_si512(rows[m].offsets + first);
                    if (weight.zero_points != nullptr) correction = _mm512_mullo_epi32(correction, zero);
                    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(add(sums[m], correction)),
                                                        _mm512_loadu_ps(rows[m].scales + first));
                    values[m][b][r].v = _mm512_castps_si512(scaled);
                }
                if (!channel)
                    scales[b][r] = as_ints(load_scales_first(weight, (n + r) * weight.scale_row_stride + first,
                                                             x.groups - first));
            }
        }
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t groups = smaller(16, run - 16 * b);
            if (!channel) transpose(scales[b]);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                transpose(values[m][b]);
                for (int64_t g = 0; g < groups; ++g) {
                    const __m512 scale = channel ? _mm512_load_ps(channel_scales) : as_floats(scales[b][g]).v;
                    totals[m] = _mm512_fmadd_ps(as_floats(values[m][b][g]).v, scale, totals[m]);
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

template <int bits, int lanes>
static void run(const LinearWeight& weight, const Int8Input& x, const Prepared* prepared, const Shape& shape, float* y,
                int64_t ldy, int64_t rows, int64_t n_begin, int64_t n_end) {
    for (int64_t n = n_begin; n < n_end; n += 16) {
        const int64_t outputs = smaller(16, n_end - n);
        switch (rows) {
            case 1: multiply<bits, lanes, 1>(weight, x, prepared, shape, n, outputs, y, ldy); break;
            case 2: multiply<bits, lanes, 2>(weight, x, prepared, shape, n, outputs, y, ldy); break;
        }
        if constexpr (bits == 8) {
            if (rows == 3) multiply<bits, lanes, 3>(weight, x, prepared, shape, n, outputs, y, ldy);
            if (rows == 4) multiply<bits, lanes, 4>(weight, x, prepared, shape, n, outputs, y, ldy);
        }
    }
}

bool try_gemv(const LinearWeight& weight, const Int8Input& x, float* y, int64_t ldy, int64_t rows, int64_t n_begin,
              int64_t n_end, void* scratch) {
    const int bits = weight.storage == Storage::plain_int8 ? 8 : weight.bits;
    const int64_t piece = 512 / bits;  // columns of 64 bytes
    const bool group_scales = x.groups_per_weight_group == 1 && weight.scale_group_stride == 1;
    if (rows > MOST_ROWS || (bits != 4 && bits != 8)) return false;
    if (!group_scales && weight.group_size < weight.columns) return false;
    const bool single = x.groups == 1;
    if (!single && x.group_size % piece != 0 && x.group_size * 2 != piece && x.group_size * 4 != piece) return false;

    Shape shape = {1, 1, 16, single};
    int lanes = 16;
    if (single) {
        shape.loads = divide_up(weight.columns, 16 * piece);
    } else if (x.group_size >= piece) {
        shape.loads = x.group_size / piece;
    } else {
        shape.piece_groups = piece / x.group_size;
        lanes = int(16 / shape.piece_groups);
        shape.run_groups = 16 * shape.piece_groups;
    }
    // Measured: beyond this the GEMM, whose unpacking costs nothing per row, is as fast or faster.
    if (rows > (bits == 8 ? 4 : lanes == 16 ? 2 : 1)) return false;
    int8_t* codes = (int8_t*)scratch;
    const int64_t bytes = padded_bytes(weight.columns), groups = padded_groups(x.groups);
    float* scales = (float*)(codes + MOST_ROWS * bytes);
    int32_t* offsets = (int32_t*)(scales + MOST_ROWS * groups);
    Prepared prepared[MOST_ROWS];
    for (int64_t row = 0; row < rows; ++row) {
        prepared[row] = {codes + row * bytes, scales + row * groups, offsets + row * groups};
        prepare_row(weight, x, row, bits, codes + row * bytes, scales + row * groups, offsets + row * groups);
    }
    if (bits == 4) {
        if (lanes == 16) run<4, 16>(weight, x, prepared, shape, y, ldy, rows, n_begin, n_end);
        if (lanes == 8) run<4, 8>(weight, x, prepared, shape, y, ldy, rows, n_begin, n_end);
        if (lanes == 4) run<4, 4>(weight, x, prepared, shape, y, ldy, rows, n_begin, n_end);
    } else {
        if (lanes == 16) run<8, 16>(weight, x, prepared, shape, y, ldy, rows, n_begin, n_end);
        if (lanes == 8) run<8, 8>(weight, x, prepared, shape, y, ldy, rows, n_begin, n_end);
        if (lanes == 4) run<8, 4>(weight, x, prepared, shape, y, ldy, rows, n_begin, n_end);
    }
    return true;
}

#else

int64_t scratch_bytes_gemv(const LinearWeight&) { return 0; }
bool try_gemv(const LinearWeight&, const Int8Input&, float*, int64_t, int64_t, int64_t, int64_t, void*) { return false; }

#endif

}  // namespace linnet::LINNET_TIER
