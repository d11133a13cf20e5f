// SPDX-License-Identifier: Apache-2.0
// Few rows times integer weights: as fast as memory delivers. Sixteen outputs at a time, each read in runs of
// about 1 KiB, in address order for the usual sizes; a run's dot products are summed across lanes so that one vector
// holds sixteen groups of one output, and sixteen such vectors are transposed to one vector per group over sixteen
// outputs, where the sums continue exactly as in int8.cpp: same order, same bits.
#include "gemv.h"

namespace linnet::LINNET_TIER {

#if defined(LINNET_VNNI)

static constexpr int64_t MOST_ROWS = 4;

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

    GemvShape shape = {1, 1, 16, single};
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
    const auto choose = bits == 8   ? gemv_kernel_8
                        : bits == 4 ? gemv_kernel_4
                        : bits == 3 ? gemv_kernel_3
                                    : gemv_kernel_2;
    choose(lanes, shape)(weight, x, prepared, shape, y, ldy, rows, n_begin, n_end);
    return true;
}

#else

int64_t scratch_bytes_gemv(const LinearWeight&) { return 0; }
bool try_gemv(const LinearWeight&, const Int8Input&, float*, int64_t, int64_t, int64_t, int64_t, void*) {
    return false;
}

#endif

}  // namespace linnet::LINNET_TIER
