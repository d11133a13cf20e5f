// SPDX-License-Identifier: Apache-2.0
// A few int8 rows times 2:4 codes. Instead of putting zeros back, each kept code picks its activation: for every eight
// of columns a row becomes two tables of sixteen bytes, one that says what the first of four is multiplied with for
// each of its places, one for the second, and a byte shuffle looks up all sixteen outputs at once. Sums over a span are
// integers and spans are added as tiled.cpp says, so that bits are those of the dense weight.
//
// Unsigned codes would need the sum of those activations that an output kept taken off. So codes of four bits are
// signed and activations unsigned, from -128: 128 times the sum of the codes is taken off, which lies in the record.
// Of eight bits the low half is unsigned, and of the high half eight times the activations are taken off one by one.
#include "sparse.h"

namespace linnet::LINNET_TIER {

#if defined(LINNET_AVX2) || defined(LINNET_AVX512)

static constexpr int64_t MOST_ROWS = 4;  // that meet codes together
// From more on, zeros are put back once for all of them.
static constexpr int64_t FEW_ROWS = 16, FEW_ROWS_EIGHT_BITS = 6;
static constexpr int64_t TABLES_BYTES = 32;  // of an eight
// As tiled.cpp: past what the hardware's own prefetchers see of the next page.
static constexpr int64_t AHEAD_BYTES = 2048;

static int64_t few_rows(const LinearWeight& weight) { return weight.bits == 8 ? FEW_ROWS_EIGHT_BITS : FEW_ROWS; }

static int64_t row_tables_bytes(const LinearWeight& weight) {
    return divide_up(weight.columns, STRETCH_COLUMNS) * STRETCH_EIGHTS * TABLES_BYTES;
}

bool reads_sparse(const LinearWeight& weight, const Int8Input& x, int64_t rows) {
    if (!weight.two_of_four || rows > few_rows(weight)) return false;
    const int64_t block = weight.bits == 4 ? sum_columns(weight) : RUN_COLUMNS;
    return block < 8192 && (x.groups == 1 || (x.group_size % RUN_COLUMNS == 0 && x.group_size % block == 0));
}

int64_t scratch_bytes_sparse_few(const LinearWeight& weight, int64_t rows) {
    return smaller(rows, few_rows(weight)) * row_tables_bytes(weight);
}

// Codes of a row come as 0 2 4 6 1 3 5 7; the first eight entries of a table are of the first four columns. `zero`: 128
// for unsigned activations, else 0.
static void write_tables(const int8_t* codes, int64_t eights, int zero, uint8_t* tables) {
    const __m256i from = _mm256_set1_epi8(char(zero));
    const __m256i order = _mm256_setr_epi8(0, 0, 0, 4, 4, 1, -1, -1, 2, 2, 2, 6, 6, 3, -1, -1,  //
                                           4, 1, 5, 1, 5, 5, -1, -1, 6, 3, 7, 3, 7, 7, -1, -1);
    for (int64_t e = 0; e < eights; ++e, codes += 8, tables += TABLES_BYTES) {
        const __m256i own = _mm256_broadcastq_epi64(_mm_loadl_epi64((const __m128i*)codes));
        _mm256_store_si256((__m256i*)tables, _mm256_shuffle_epi8(_mm256_xor_si256(own, from), order));
    }
}

LINNET_INLINE __m256i twice(const uint8_t* p) { return _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)p)); }
LINNET_INLINE __m256i load_vector(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
LINNET_INLINE __m256i multiply_add(__m256i sum, __m256i without_sign, __m256i with_sign) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(without_sign, with_sign));
}
LINNET_INLINE __m256i multiply_subtract(__m256i sum, __m256i without_sign, __m256i with_sign) {
    return _mm256_sub_epi16(sum, _mm256_maddubs_epi16(without_sign, with_sign));
}

// Sums of half a stretch, that is of at most 32 columns; a pair of outputs j and 8 + j is a lane of 32 bits.
// Sums fit 16 bits: of four bits 16 * 8 * 255, of low halves 16 * 15 * 128, of high ones 16 * 8 * 128 in the end.
template <int bits, int M, int half>
LINNET_INLINE void add_half(const uint8_t* stretch, const uint8_t* tables, int64_t row_tables, __m256i (&front)[M],
                            __m256i (&back)[M]) {
    constexpr bool wide = bits == 8;
    const __m256i nibble = _mm256_set1_epi8(15), eight_each = _mm256_set1_epi8(8);
    const __m256i places = _mm256_set1_epi8(0x77), spare = _mm256_set1_epi8(char(0x88));
    const __m256i last_four = _mm256_set1_epi16(0x0800);  // whose entries are the table's upper half
    __m256i sums[M], high_sums[wide ? M : 1];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sums[m] = _mm256_setzero_si256();
    if constexpr (wide)
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) high_sums[m] = _mm256_setzero_si256();

    const auto eight = [&](__m256i index, int e) __attribute__((always_inline)) {
        const uint8_t* codes = stretch + PLACES_BYTES + e * 8 * bits;
        const __m256i first = load_vector(codes), second = wide ? load_vector(codes + VECTOR_BYTES) : first;
        __m256i low[2] = {_mm256_and_si256(first, nibble),
                          _mm256_and_si256(wide ? second : _mm256_srli_epi16(first, 4), nibble)};
        if constexpr (!wide)
            for (int k = 0; k < 2; ++k) low[k] = _mm256_sub_epi8(low[k], eight_each);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            const uint8_t* own = tables + m * row_tables + e * TABLES_BYTES;
            const __m256i x[2] = {_mm256_shuffle_epi8(twice(own), index), _mm256_shuffle_epi8(twice(own + 16), index)};
#pragma GCC unroll 2
            for (int k = 0; k < 2; ++k) {
                if constexpr (wide) {
                    sums[m] = multiply_add(sums[m], low[k], x[k]);
                    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(k == 0 ? first : second, 4), nibble);
                    high_sums[m] = multiply_add(high_sums[m], high, x[k]);
                    high_sums[m] = multiply_subtract(high_sums[m], eight_each, x[k]);
                } else {
                    sums[m] = multiply_add(sums[m], x[k], low[k]);
                }
            }
        }
    };
    // Bits 4 to 6 of an index do not count, and bit 7 is zero.
    const auto two_eights = [&](__m256i both, int e) __attribute__((always_inline)) {
        eight(_mm256_xor_si256(both, last_four), e);
        eight(_mm256_xor_si256(_mm256_srli_epi16(both, 4), last_four), e + 1);
    };
    if constexpr (half == 0) {
        two_eights(_mm256_and_si256(load_vector(stretch), places), 0);
        two_eights(_mm256_and_si256(load_vector(stretch + VECTOR_BYTES), places), 2);
    } else {
        const __m256i last = load_vector(stretch + 2 * VECTOR_BYTES);
        two_eights(_mm256_and_si256(last, places), 4);
        const __m256i bits_of[3] = {_mm256_srli_epi16(_mm256_and_si256(load_vector(stretch), spare), 3),
                                    _mm256_srli_epi16(_mm256_and_si256(load_vector(stretch + VECTOR_BYTES), spare), 2),
                                    _mm256_srli_epi16(_mm256_and_si256(last, spare), 1)};
        two_eights(_mm256_or_si256(_mm256_or_si256(bits_of[0], bits_of[1]), bits_of[2]), 6);
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
        const auto fold_into = [&](__m256i pairs, int32_t factor) __attribute__((always_inline)) {
            front[m] = _mm256_add_epi32(front[m], _mm256_madd_epi16(pairs, _mm256_set1_epi32(factor)));
            back[m] = _mm256_add_epi32(back[m], _mm256_madd_epi16(pairs, _mm256_set1_epi32(factor << 16)));
        };
        fold_into(sums[m], 1);
        if constexpr (wide) fold_into(high_sums[m], 16);
    }
}

LINNET_INLINE Ints sixteen_outputs(__m256i front, __m256i back) {
#if defined(LINNET_AVX512)
    return {_mm512_inserti64x4(_mm512_castsi256_si512(front), back, 1)};
#else
    return {front, back};
#endif
}

// Sums of codes of one block of every output.
LINNET_INLINE Ints load_code_sums(const uint8_t* p, int64_t size) {
    if (size == 1) return widen_bytes((const int8_t*)p);
    const __m256i own = load_vector(p);
    return sixteen_outputs(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(own)),
                           _mm256_cvtepi16_epi32(_mm256_extracti128_si256(own, 1)));
}

// One tile times M rows: totals [M][16].
template <int bits, int M>
static void multiply(const LinearWeight& weight, const Tiles& tiles, const uint8_t* tile, const uint8_t* record,
                     const Int8Input& x, int64_t row, const uint8_t* tables, float* totals) {
    const int64_t row_tables = row_tables_bytes(weight), runs = tiles.runs;
    const int64_t span_runs = x.groups == 1 ? runs : x.group_size / RUN_COLUMNS;
    const uint8_t* stretch = tile;
    for (int m = 0; m < M; ++m) store(totals + m * 16, splat(0.0f));
    const int64_t sum_size = code_sum_size(weight), blocks = divide_up(weight.columns, sum_columns(weight));
    const int64_t span_blocks = x.groups == 1 ? blocks : x.group_size / sum_columns(weight);
    const uint8_t* code_sums = record + tiles.code_sums_at;
    int64_t run = 0, block = 0;
    for (int64_t span = 0; span < x.groups; ++span) {
        __m256i front[M], back[M];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) front[m] = back[m] = _mm256_setzero_si256();
        for (const int64_t end = smaller(run + span_runs, runs); run < end; ++run) {
            if (run % 2 == 0) {
                for (int64_t line = 0; line < stretch_bytes(bits); line += 64)
                    __builtin_prefetch(stretch + AHEAD_BYTES + line, 0, 3);
                add_half<bits, M, 0>(stretch, tables, row_tables, front, back);
                continue;
            }
            add_half<bits, M, 1>(stretch, tables, row_tables, front, back);
            stretch += stretch_bytes(bits);
            tables += STRETCH_EIGHTS * TABLES_BYTES;
        }
        // What the next tile has of this span.
        const uint8_t* own_scale = record + x.weight_group(span) * 16 * tiles.scale_bytes;
        __builtin_prefetch(own_scale + tiles.record_bytes, 0, 3);
        Ints excess = splat_int(0);
        if constexpr (bits == 4) {
            __builtin_prefetch(code_sums + block * 16 * sum_size + tiles.record_bytes, 0, 3);
            for (const int64_t end = smaller(block + span_blocks, blocks); block < end; ++block)
                excess = excess + load_code_sums(code_sums + block * 16 * sum_size, sum_size);
            excess = shift_left<7>(excess);
        }
        const Floats scale = load_scales(weight.scale_type, own_scale);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            const Floats x_scale = splat(x.scales[(row + m) * x.scale_stride + x.scale_group(span)]);
            float* total = totals + m * 16;
            store(total, fma(to_floats(sixteen_outputs(front[m], back[m]) - excess) * x_scale, scale, load(total)));
        }
    }
}

using Multiply = void (*)(const LinearWeight& weight, const Tiles& tiles, const uint8_t* tile, const uint8_t* record,
                          const Int8Input& x, int64_t row, const uint8_t* tables, float* totals);

void linear_sparse_few(const LinearWeight& weight, const Int8Input& x, float* y, int64_t ldy, int64_t rows,
                       int64_t n_begin, int64_t n_end, uint8_t* scratch) {
    static constexpr Multiply four_bits[] = {multiply<4, 1>, multiply<4, 2>, multiply<4, 3>, multiply<4, 4>};
    static constexpr Multiply eight_bits[] = {multiply<8, 1>, multiply<8, 2>, multiply<8, 3>, multiply<8, 4>};
    const Tiles tiles = tiles_of(weight);
    const int64_t row_tables = row_tables_bytes(weight);
    // A row of codes goes on with zeros to a multiple of 128.
    for (int64_t row = 0; row < rows; ++row)
        write_tables(x.codes + row * x.row_bytes, row_tables / TABLES_BYTES, weight.bits == 4 ? 128 : 0,
                     scratch + row * row_tables);
    const int64_t row_tiles = divide_up(rows, MOST_ROWS), tile_rows = divide_up(rows, row_tiles);
    alignas(64) float totals[FEW_ROWS * 16];
    for (int64_t n = n_begin; n < n_end; n += 16) {
        const uint8_t* tile = sparse_tile(weight, tiles, n);
        const uint8_t* record = tile_record(tiles, weight.tiles, n);
        for (int64_t row = 0; row < rows; row += tile_rows) {
            const int64_t count = smaller(tile_rows, rows - row);
            const Multiply* own = weight.bits == 4 ? four_bits : eight_bits;
            own[count - 1](weight, tiles, tile, record, x, row, scratch + row * row_tables, totals + row * 16);
        }
        write_outputs(totals, 1, rows, smaller(16, n_end - n), weight.bias != nullptr ? weight.bias + n : nullptr,
                      y + n, ldy);
    }
}

#else

bool reads_sparse(const LinearWeight&, const Int8Input&, int64_t) { return false; }
int64_t scratch_bytes_sparse_few(const LinearWeight&, int64_t) { return 0; }
void linear_sparse_few(const LinearWeight&, const Int8Input&, float*, int64_t, int64_t, int64_t, int64_t, uint8_t*) {}

#endif

}  // namespace linnet::LINNET_TIER
