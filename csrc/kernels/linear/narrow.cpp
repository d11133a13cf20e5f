// SPDX-License-Identifier: Apache-2.0
// Weights that are bf16 once they are decoded, times bf16 rows with vdpbf16ps: fp8 with one scale per output, whose
// values are bf16 exactly and are scaled after the sum, and codebooks, whose scaled values are rounded to bf16. Few
// rows decode in registers; for more, outputs are decoded to a slab of bf16 in cache, which bf16.cpp multiplies. Both
// sum in the order of bf16.cpp: same order, same bits. Top tier only; the others decode to fp32.
#pragma GCC diagnostic ignored "-Wunused-function"  // of bf16_few.h only the inner parts are used here
#include "bf16_few.h"

namespace linnet::LINNET_TIER {

// fp32 values as the bf16 numbers nearest to them.
void round_to_bf16(float* values, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) {
        alignas(64) uint16_t narrow[16];
        store_bf16_first(narrow, 16, load_first(values + i, count - i));
        store_first(values + i, count - i, load_bf16_first(narrow, 16));
    }
}

#if defined(LINNET_BF16)

static constexpr int64_t DIRECT_ROWS = 32;           // beyond, decoding once pays
static constexpr int64_t TILE = 8;                   // rows that decoded codes meet in registers
static constexpr int64_t SLAB_OUTPUTS = BF16_PANEL;  // what bf16.cpp multiplies at a time
static constexpr int64_t STEP = 32;                  // columns decoded at a time
static constexpr int PAIRS = 2;  // pairs of outputs side by side: one alone would wait for its own sums

bool becomes_bf16(const LinearWeight& weight) {
    return (weight.storage == Storage::codebook && !weight.spread) ||
           (weight.storage == Storage::fp8_e4m3 && weight.group_size >= weight.columns && weight.scales != nullptr);
}

static bool is_direct(const LinearWeight& weight, int64_t rows) {
    const bool steps = weight.group_size >= weight.columns || weight.group_size % STEP == 0;
    return rows <= DIRECT_ROWS && steps && weight.scale_group_stride == 1;
}

static int64_t slab_row_bytes(const LinearWeight& weight) { return round_up(weight.columns, 64) * 2 + 64; }

static LinearWeight slab_weight(const LinearWeight& weight, int64_t outputs, const void* slab) {
    LinearWeight made;
    made.storage = Storage::bf16;
    made.bits = 16;
    made.rows = outputs;
    made.columns = made.group_size = weight.columns;
    made.codes = slab;
    made.code_row_bytes = slab_row_bytes(weight);
    return made;
}

int64_t scratch_bytes_narrow(const LinearWeight& weight, int64_t rows) {
    if (is_direct(weight, rows)) return few_bytes(weight, rows);
    const int64_t slab = SLAB_OUTPUTS * slab_row_bytes(weight), row = round_up(weight.columns, 16) * 4;
    return slab + round_up(row, 64) + scratch_bytes_bf16(slab_weight(weight, SLAB_OUTPUTS, nullptr), rows);
}

static float one_scale(const LinearWeight& weight, int64_t n, int64_t group) {
    const int64_t index = n * weight.scale_row_stride + group * weight.scale_group_stride;
    if (weight.scale_type == ScaleType::fp32) return ((const float*)weight.scales)[index];
    const uint16_t* half = (const uint16_t*)weight.scales + index;
    if (weight.scale_type == ScaleType::bf16) return bf16_to_float(*half);
    return _mm512_cvtss_f32(load_fp16_first(half, 1).v);
}

// The two bytes of every non-negative fp8 number as bf16, denormals and NaN too.
struct Fp8Bytes {
    alignas(64) uint8_t low[128], high[128];
};
static constexpr Fp8Bytes FP8 = [] {
    Fp8Bytes found = {};
    for (int code = 0; code < 128; ++code) {
        int exponent = code >> 3, mantissa = code & 7;
        uint16_t bits = uint16_t((exponent + 120) << 7 | mantissa << 4);
        if (exponent == 0) {  // mantissa / 8 * 2^-6
            int shift = 0;
            while (mantissa != 0 && (mantissa << shift & 8) == 0) ++shift;
            bits = mantissa == 0 ? uint16_t(0) : uint16_t((121 - shift) << 7 | (mantissa << shift & 7) << 4);
        }
        if (code == 127) bits = 0x7fc0;
        found.low[code] = uint8_t(bits & 255);
        found.high[code] = uint8_t(bits >> 8);
    }
    return found;
}();

struct Fp8Tables {
    __m512i low[2], high[2];
};
LINNET_INLINE Fp8Tables load_fp8_tables() {
    return {{_mm512_load_si512(FP8.low), _mm512_load_si512(FP8.low + 64)},
            {_mm512_load_si512(FP8.high), _mm512_load_si512(FP8.high + 64)}};
}

// Of every quarter's sixteen codes the first eight as bf16 in out[0], the others in out[1].
LINNET_INLINE void decode_fp8(const Fp8Tables& tables, __m512i codes, Ints (&out)[2]) {
    const __m512i low_bytes = _mm512_permutex2var_epi8(tables.low[0], codes, tables.low[1]);
    const __m512i magnitude = _mm512_permutex2var_epi8(tables.high[0], codes, tables.high[1]);
    const __m512i high_bytes = _mm512_ternarylogic_epi32(magnitude, codes, _mm512_set1_epi8(-128), 0xf8);
    out[0].v = _mm512_unpacklo_epi8(low_bytes, high_bytes);
    out[1].v = _mm512_unpackhi_epi8(low_bytes, high_bytes);
}

// A codebook times one scale, rounded to bf16 by the instruction, here and wherever it is rounded below: it makes
// denormals zero, where rounding by integers lets the greatest of them become the smallest normal number. By index, in
// the lower and in the upper half of a lane.
struct ScaledCodebook {
    __m512i low, high;
};
LINNET_INLINE ScaledCodebook scale_codebook(Floats codebook, float scale) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((codebook * splat(scale)).v));
    return {low, _mm512_slli_epi32(low, 16)};
}

// 32 columns in order: the two nibbles of a byte are neighbours.
LINNET_INLINE __m512i decode_codebook(const ScaledCodebook& book, __m128i codes) {
    const __m512i pairs = _mm512_cvtepu8_epi32(codes);
    return _mm512_or_si512(_mm512_permutexvar_epi32(pairs, book.low),
                           _mm512_permutexvar_epi32(_mm512_srli_epi32(pairs, 4), book.high));
}

// The same for two outputs, as tables of bytes: the first output's in the lower two quarters.
struct PairCodebook {
    __m512i low, high;
};
LINNET_INLINE PairCodebook scale_codebooks(Floats codebook, Floats first, Floats second) {
    const __m512i words = (__m512i)_mm512_cvtne2ps_pbh((codebook * second).v, (codebook * first).v);
    const __m512i even =
        _mm512_setr_epi64(0x0e0c0a0806040200, 0x1e1c1a1816141210, 0x0e0c0a0806040200, 0x1e1c1a1816141210,
                          0x2e2c2a2826242220, 0x3e3c3a3836343230, 0x2e2c2a2826242220, 0x3e3c3a3836343230);
    return {_mm512_permutexvar_epi8(even, words),
            _mm512_permutexvar_epi8(_mm512_or_si512(even, _mm512_set1_epi8(1)), words)};
}

// 32 columns of two outputs: columns 0 .. 15 of both in out[0], the others in out[1].
LINNET_INLINE void decode_codebooks(const PairCodebook& book, __m128i first, __m128i second, Ints (&out)[2]) {
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
    const __m512i spread = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 2, 2, 1, 1, 3, 3, 4, 4, 6, 6, 5, 5, 7, 7),
                                                    _mm512_castsi256_si512(both));
    const __m512i nibbles = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x1c1814100c080400), spread);
    const __m512i codes = _mm512_and_si512(nibbles, _mm512_set1_epi8(15));
    const __m512i low = _mm512_shuffle_epi8(book.low, codes), high = _mm512_shuffle_epi8(book.high, codes);
    out[0].v = _mm512_unpacklo_epi8(low, high);
    out[1].v = _mm512_unpackhi_epi8(low, high);
}

// A scale in all lanes.
LINNET_INLINE Floats splat_scale(const LinearWeight& weight, int64_t n, int64_t group) {
    if (weight.scale_type != ScaleType::bf16) return splat(one_scale(weight, n, group));
    const uint16_t* scale = (const uint16_t*)weight.scales + n * weight.scale_row_stride + group;
    return as_floats(shift_left<16>(Ints{_mm512_set1_epi16(int16_t(*scale))}));
}

// Columns [begin, end) of a block, of one group, for M rows and PAIRS pairs of outputs; w and x are at column 0.
template <int M, bool fp8>
LINNET_INLINE void dot_steps(const LinearWeight& weight, int64_t n, const uint8_t* const* w, const uint16_t* x,
                             int64_t ldx, int64_t begin, int64_t end, const Fp8Tables& tables, const uint8_t*& ahead,
                             int64_t ahead_step, Floats (&sums)[M][PAIRS]) {
    PairCodebook books[fp8 ? 1 : PAIRS];
    if constexpr (!fp8) {
        const Floats codebook = load(weight.codebook);
        const int64_t group = weight.group_size >= weight.columns ? 0 : begin / weight.group_size;
        const int64_t last = weight.rows - 1;
#pragma GCC unroll 4
        for (int p = 0; p < PAIRS; ++p)
            books[p] = scale_codebooks(codebook, splat_scale(weight, smaller(n + 2 * p, last), group),
                                       splat_scale(weight, smaller(n + 2 * p + 1, last), group));
    }
    const auto step = [&](int64_t c, int64_t count) __attribute__((always_inline)) {
        Ints pairs[PAIRS][2];
#pragma GCC unroll 4
        for (int p = 0; p < PAIRS; ++p) {
            if constexpr (fp8) {
                __m256i own[2];
#pragma GCC unroll 2
                for (int h = 0; h < 2; ++h)
                    own[h] = count == STEP ? _mm256_loadu_si256((const __m256i*)(w[2 * p + h] + c))
                                           : _mm256_maskz_loadu_epi8((1u << count) - 1, w[2 * p + h] + c);
                const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(own[0]), own[1], 1);
                decode_fp8(tables, _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 1, 3, 4, 6, 5, 7), both), pairs[p]);
            } else {
                __m128i own[2];
#pragma GCC unroll 2
                for (int h = 0; h < 2; ++h) {
                    const uint8_t* at = w[2 * p + h] + c / 2;
                    own[h] = count == STEP ? _mm_loadu_si128((const __m128i*)at)
                                           : _mm_maskz_loadu_epi8(__mmask16((1u << divide_up(count, 2)) - 1), at);
                }
                decode_codebooks(books[p], own[0], own[1], pairs[p]);
            }
        }
#pragma GCC unroll 4
        for (int line = 0; line < (fp8 ? PAIRS : PAIRS / 2); ++line) __builtin_prefetch(ahead + 64 * line, 0, 3);
        ahead += ahead_step;
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                const uint16_t* at = x + m * ldx + c + 16 * half;
                const int64_t left = larger(0, count - 16 * half);
                const __m256i own = left >= 16 ? _mm256_loadu_si256((const __m256i*)at)
                                               : _mm256_maskz_loadu_epi16(__mmask16((1u << left) - 1), at);
                const Ints both = {_mm512_broadcast_i64x4(own)};
#pragma GCC unroll 4
                for (int p = 0; p < PAIRS; ++p) sums[m][p] = dot_pairs(sums[m][p], pairs[p][half], both);
            }
        }
    };
    int64_t c = begin;
    for (; c + STEP <= end; c += STEP) step(c, STEP);
    if (c < end) step(c, end - c);
}

// Four outputs from n on times M rows; sums as in bf16_few.h. `fetch`: prefetch what comes next.
template <int M, bool fp8>
static void few_decoded(const LinearWeight& weight, const uint16_t* x, int64_t ldx, int64_t n, const Fp8Tables& tables,
                        bool fetch, float* sums, int64_t block_floats) {
    const uint8_t* w[2 * PAIRS];
    for (int i = 0; i < 2 * PAIRS; ++i)  // outputs that do not exist repeat the last one; nobody reads their sums
        w[i] = (const uint8_t*)weight.codes + smaller(n + i, weight.rows - 1) * weight.code_row_bytes;
    const uint8_t* ahead = w[0] + (fetch ? smaller(2 * PAIRS * weight.code_row_bytes, 24576) + 8192 : 0);
    const int64_t ahead_step = fetch ? (fp8 ? PAIRS : PAIRS / 2) * 64 : 0;
    const int64_t group_size = fp8 ? weight.columns : smaller(weight.group_size, weight.columns);
    for (int64_t block = 0; block < weight.columns; block += BLOCK_COLUMNS, sums += block_floats) {
        Floats parts[M][PAIRS];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int p = 0; p < PAIRS; ++p) parts[m][p] = splat(0.0f);
        const int64_t end = smaller(weight.columns, block + BLOCK_COLUMNS);
        for (int64_t c = block; c < end;) {
            const int64_t stop = smaller(end, (c / group_size + 1) * group_size);
            dot_steps<M, fp8>(weight, n, w, x, ldx, c, stop, tables, ahead, ahead_step, parts);
            c = stop;
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int p = 0; p < PAIRS; ++p) store(sums + m * FEW_OUTPUTS * CHAINS + p * 16, parts[m][p]);
    }
}

// What fp8 leaves to the end: one scale per output, and the bias, of rows [0, rows) and outputs [n, n + outputs).
static void scale_outputs(const LinearWeight& weight, int64_t n, int64_t outputs, float* y, int64_t ldy, int64_t rows) {
    alignas(64) float scales[16];
    for (int64_t i = 0; i < outputs; i += 16) {
        const int64_t count = smaller(16, outputs - i);
        for (int64_t j = 0; j < 16; ++j) scales[j] = j < count ? one_scale(weight, n + i + j, 0) : 0.0f;
        const Floats scale = load(scales);
        const Floats bias = weight.bias != nullptr ? load_first(weight.bias + n + i, count) : splat(0.0f);
        for (int64_t row = 0; row < rows; ++row) {
            float* target = y + row * ldy + n + i;
            Floats sum = load_first(target, count) * scale;
            if (weight.bias != nullptr) sum = sum + bias;
            store_first(target, count, sum);
        }
    }
}

template <bool fp8>
static void multiply_directly(const LinearWeight& weight, const uint16_t* x, int64_t ldx, float* y, int64_t ldy,
                              int64_t rows, int64_t n_begin, int64_t n_end, float* sums) {
    const Fp8Tables tables = load_fp8_tables();
    const int64_t row_floats = FEW_OUTPUTS * CHAINS, block_floats = rows * row_floats;
    const int64_t blocks = divide_up(weight.columns, BLOCK_COLUMNS), tiles = divide_up(rows, TILE);
    for (int64_t n = n_begin; n < n_end; n += FEW_OUTPUTS) {
        const int64_t outputs = smaller(FEW_OUTPUTS, n_end - n);
        for (int64_t i = 0; i < outputs; i += 2 * PAIRS)
            for (int64_t tile = 0; tile < tiles; ++tile) {
                const int64_t row = rows * tile / tiles, count = rows * (tile + 1) / tiles - row;
                const auto kernel = count == 1   ? few_decoded<1, fp8>
                                    : count == 2 ? few_decoded<2, fp8>
                                    : count == 3 ? few_decoded<3, fp8>
                                    : count == 4 ? few_decoded<4, fp8>
                                    : count == 5 ? few_decoded<5, fp8>
                                    : count == 6 ? few_decoded<6, fp8>
                                    : count == 7 ? few_decoded<7, fp8>
                                                 : few_decoded<8, fp8>;
                kernel(weight, x + row * ldx, ldx, n + i, tables, tile == 0, sums + row * row_floats + i * CHAINS,
                       block_floats);
            }
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t block = 0; block < blocks; ++block) {
                const bool last = !fp8 && block == blocks - 1 && weight.bias != nullptr;
                add_chains(sums + block * block_floats + row * row_floats, y + row * ldy + n, outputs, block == 0,
                           last ? weight.bias + n : nullptr);
            }
        if (fp8) scale_outputs(weight, n, outputs, y, ldy, rows);
    }
}

// One output as bf16; `row`: room for it as fp32.
static void decode_output(const LinearWeight& weight, int64_t n, const Fp8Tables& tables, float* row, uint16_t* out) {
    const uint8_t* codes = (const uint8_t*)weight.codes + n * weight.code_row_bytes;
    const int64_t columns = weight.columns;
    if (weight.storage == Storage::fp8_e4m3) {
        const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
        for (int64_t c = 0; c < columns; c += 64) {
            Ints found[2];
            decode_fp8(tables, _mm512_permutexvar_epi64(order, load_words_first(codes + c, columns - c).v), found);
            _mm512_storeu_si512(out + c, found[0].v);
            _mm512_storeu_si512(out + c + 32, found[1].v);
        }
    } else if (weight.group_size % STEP == 0 && columns % STEP == 0) {
        const Floats codebook = load(weight.codebook);
        for (int64_t c = 0; c < columns;) {
            const ScaledCodebook book = scale_codebook(codebook, one_scale(weight, n, c / weight.group_size));
            for (const int64_t end = smaller(columns, c + weight.group_size); c < end; c += STEP)
                _mm512_storeu_si512(out + c, decode_codebook(book, _mm_loadu_si128((const __m128i*)(codes + c / 2))));
        }
    } else {
        decode_row(weight, n, row);
        for (int64_t c = 0; c < columns; c += 16)
            _mm256_storeu_si256((__m256i*)(out + c), (__m256i)_mm512_cvtneps_pbh(load_first(row + c, columns - c).v));
    }
}

static void multiply_slabs(const LinearWeight& weight, const uint16_t* x, int64_t ldx, float* y, int64_t ldy,
                           int64_t rows, int64_t n_begin, int64_t n_end, uint8_t* scratch) {
    const Fp8Tables tables = load_fp8_tables();
    const bool fp8 = weight.storage == Storage::fp8_e4m3;
    const int64_t row_bytes = slab_row_bytes(weight);
    float* row = (float*)(scratch + SLAB_OUTPUTS * row_bytes);
    uint8_t* rest = (uint8_t*)row + round_up(round_up(weight.columns, 16) * 4, 64);
    for (int64_t n = n_begin; n < n_end; n += SLAB_OUTPUTS) {
        const int64_t outputs = smaller(SLAB_OUTPUTS, n_end - n);
        for (int64_t i = 0; i < outputs; ++i)
            decode_output(weight, n + i, tables, row, (uint16_t*)(scratch + i * row_bytes));
        LinearWeight slab = slab_weight(weight, outputs, scratch);
        if (!fp8 && weight.bias != nullptr) slab.bias = weight.bias + n;
        linear_bf16(slab, x, ldx, y + n, ldy, rows, 0, outputs, rest);
        if (fp8) scale_outputs(weight, n, outputs, y, ldy, rows);
    }
}

void linear_narrow(const LinearWeight& weight, const uint16_t* x, int64_t ldx, float* y, int64_t ldy, int64_t rows,
                   int64_t n_begin, int64_t n_end, void* scratch) {
    if (!is_direct(weight, rows))
        return multiply_slabs(weight, x, ldx, y, ldy, rows, n_begin, n_end, (uint8_t*)scratch);
    if (weight.storage == Storage::fp8_e4m3)
        multiply_directly<true>(weight, x, ldx, y, ldy, rows, n_begin, n_end, (float*)scratch);
    else
        multiply_directly<false>(weight, x, ldx, y, ldy, rows, n_begin, n_end, (float*)scratch);
}

#else

bool becomes_bf16(const LinearWeight&) { return false; }
int64_t scratch_bytes_narrow(const LinearWeight&, int64_t) { return 0; }
void linear_narrow(const LinearWeight&, const uint16_t*, int64_t, float*, int64_t, int64_t, int64_t, int64_t, void*) {}

#endif

}  // namespace linnet::LINNET_TIER
