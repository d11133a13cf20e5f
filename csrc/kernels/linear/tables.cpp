// SPDX-License-Identifier: Apache-2.0
// Weights whose every row has a table of its own, times int8 rows. A table is taken as integers of 16 bits, v = round(T
// * 32767 / max|T|), the greatest of its values exact and no other off by more than max|T| / 65534. A code is looked up
// as two bytes, put together to a word; rows are widened to words once.
//
// A vector is 64 columns, a lane four of them, all of one run of sixteen. Over a span (columns of one activation scale,
// or a vector) a lane's sum of v * x is an integer, so exact:
//
//   total[lane] = fma(float(sum), x_scale, total[lane])     span after span from the left
//   y = (sum over lanes, in a fixed tree) * (max|T| / 32767) + bias
//
// One order, whatever the number of rows.
#include "tables.h"

#include "planes.h"

namespace linnet::LINNET_TIER {

static constexpr int MOST_ROWS = 4;
static constexpr int64_t BLOCK_ROWS = 16;     // that are prepared together
static constexpr int64_t TABLE_BYTES = 64;    // low bytes [16], high bytes [16], bf16 values [16]
static constexpr int64_t LARGEST = 32767;     // of the integers
static constexpr int64_t MOST_SPAN = 8192;    // columns whose lanes' sums fit 32 bits
static constexpr int64_t SCALE_COLUMNS = 16;  // of a lane's run, which share a scale
static constexpr int64_t AHEAD = 1024;
static constexpr uint8_t EIGHT_ORDER[8] = {0, 2, 4, 6, 1, 3, 5, 7};

static constexpr int64_t run_vectors(int bits) { return bits == 4 ? 2 : bits == 3 ? 8 : 4; }
static constexpr int64_t run_size(int bits) { return bits == 3 ? 192 : 64; }
static constexpr int64_t ONES_AT = 128;  // of bits 3

namespace {

struct Layout {
    int64_t vectors, runs, row_bytes, rows, scales_at, bytes;
};

}  // namespace

static Layout layout_of(const LinearWeight& weight) {
    Layout layout;
    layout.vectors = divide_up(weight.columns, VECTOR_COLUMNS);
    layout.runs = divide_up(layout.vectors, run_vectors(weight.bits));
    layout.row_bytes = layout.runs * run_size(weight.bits) + TABLE_BYTES;
    layout.rows = round_up(weight.rows, 16 * TILE_COUNT);
    layout.scales_at = layout.rows * layout.row_bytes;
    layout.bytes = layout.scales_at + layout.rows * 4;
    return layout;
}

const char* refuse_row_tables(const LinearWeight& weight, InputType input, int64_t input_group_size) {
    if (weight.bits < 2 || weight.bits > 4) return "rows with tables of their own have codes of 2, 3 or 4 bits";
    if (input != InputType::int8) return nullptr;
    const int64_t size = smaller(input_group_size, weight.columns);
    if (size > MOST_SPAN) return "rows with tables of their own meet at most 8192 columns of one activation scale";
    if (size < weight.columns && size % SCALE_COLUMNS != 0)
        return "activation groups over rows with tables of their own are multiples of 16 columns";
    return nullptr;
}

int64_t row_table_tile_bytes(const LinearWeight& weight) { return layout_of(weight).bytes; }

void make_row_table_tiles(const LinearWeight& weight, void* tiles, int64_t n_begin, int64_t n_end) {
    const Layout layout = layout_of(weight);
    const int64_t entries = int64_t(1) << weight.bits, vectors = run_vectors(weight.bits);
    for (int64_t n = n_begin; n < round_up(n_end, 16 * TILE_COUNT); ++n) {
        uint8_t* target = (uint8_t*)tiles + n * layout.row_bytes;
        std::memset(target, 0, size_t(layout.row_bytes));
        float* scale = (float*)((uint8_t*)tiles + layout.scales_at) + n;
        *scale = 0.0f;
        if (n >= weight.rows) continue;
        const uint8_t* codes = (const uint8_t*)weight.codes + (n - weight.first_row) * weight.code_row_bytes;
        for (int64_t c = 0; c < layout.vectors * VECTOR_COLUMNS; ++c) {
            const int64_t column = (c & ~int64_t(7)) + EIGHT_ORDER[c & 7], vector = c / VECTOR_COLUMNS;
            if (column >= weight.columns) continue;
            const int64_t field = vector % vectors, place = c % VECTOR_COLUMNS;
            uint8_t* run = target + vector / vectors * run_size(weight.bits);
            if (weight.bits == 4) {
                run[place] |= uint8_t(codes[column] << (4 * field));
                continue;
            }
            run[field / 4 * 64 + place] |= uint8_t((codes[column] & 3) << (field % 4 * 2));
            if (weight.bits == 3) run[ONES_AT + place] |= uint8_t((codes[column] >> 2) << field);
        }
        uint8_t* table = target + layout.row_bytes - TABLE_BYTES;
        std::memcpy(table + 32, (const uint16_t*)weight.scales + (n - weight.first_row) * entries, size_t(entries) * 2);
        alignas(64) float values[16];
        store(values, load_bf16((const uint16_t*)(table + 32)));
        float largest = 0.0f;
        for (int64_t i = 0; i < entries; ++i)
            largest = values[i] > largest ? values[i] : -values[i] > largest ? -values[i] : largest;
        *scale = largest / float(LARGEST);
        const Floats unit = splat(largest > 0.0f ? float(LARGEST) / largest : 0.0f);
        alignas(64) int32_t whole[16];
        store_ints(whole, to_ints(round_even(load(values) * unit)));
        for (int64_t i = 0; i < 16; ++i) {
            table[i] = uint8_t(whole[i] & 255);
            table[16 + i] = uint8_t((whole[i] >> 8) & 255);
        }
    }
}

// Vector `field` of a run, a code in every byte.
template <int bits, int field>
LINNET_INLINE Ints unpack_vector(const uint8_t* run) {
    if constexpr (bits == 4) return move_bits<4 * field, 0, 4>(load_ints((const int32_t*)run));
    const Ints twos = load_ints((const int32_t*)(run + field / 4 * 64));
    if constexpr (bits == 2) return move_bits<2 * field, 0, 2>(twos);
    const Ints ones = load_ints((const int32_t*)(run + ONES_AT));
    return move_bits<field % 4 * 2, 0, 2>(twos) | move_bits<field, 2, 1>(ones);
}

// Sixteen bytes, four times: a table for look_up_bytes.
LINNET_INLINE Ints load_table(const uint8_t* p) {
#if defined(LINNET_AVX512)
    return {_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p))};
#elif defined(LINNET_AVX2)
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
    return {both, both};
#else
    uint8_t bytes[64];
    for (int i = 0; i < 4; ++i) std::memcpy(bytes + 16 * i, p, 16);
    return load_ints((const int32_t*)bytes);
#endif
}
LINNET_INLINE Ints look_up_bytes(Ints table, Ints index) {
#if defined(LINNET_AVX512)
    return {_mm512_shuffle_epi8(table.v, index.v)};
#elif defined(LINNET_AVX2)
    return {_mm256_shuffle_epi8(table.a, index.a), _mm256_shuffle_epi8(table.b, index.b)};
#else
    uint8_t entries[64], bytes[64];
    std::memcpy(entries, &table, 64);
    std::memcpy(bytes, &index, 64);
    for (int i = 0; i < 64; ++i) bytes[i] = entries[bytes[i] & 15];
    return load_ints((const int32_t*)bytes);
#endif
}

// Of every sixteen bytes, the first eight as words of `first`, the others of `second`: low bytes and high bytes.
LINNET_INLINE void join_bytes(Ints low, Ints high, Ints& first, Ints& second) {
#if defined(LINNET_AVX512)
    first = {_mm512_unpacklo_epi8(low.v, high.v)};
    second = {_mm512_unpackhi_epi8(low.v, high.v)};
#elif defined(LINNET_AVX2)
    first = {_mm256_unpacklo_epi8(low.a, high.a), _mm256_unpacklo_epi8(low.b, high.b)};
    second = {_mm256_unpackhi_epi8(low.a, high.a), _mm256_unpackhi_epi8(low.b, high.b)};
#else
    uint8_t bytes[2][64], words[2][64];
    std::memcpy(bytes[0], &low, 64);
    std::memcpy(bytes[1], &high, 64);
    for (int i = 0; i < 64; ++i)
        for (int part = 0; part < 2; ++part) words[i / 8 % 2][i / 16 * 16 + i % 8 * 2 + part] = bytes[part][i];
    first = load_ints((const int32_t*)words[0]);
    second = load_ints((const int32_t*)words[1]);
#endif
}

// sum + the products of a lane's two words, exact.
LINNET_INLINE Ints dot_words(Ints sum, Ints a, Ints b) {
#if defined(LINNET_VNNI)
    return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)};
#elif defined(LINNET_AVX512)
    return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(a.v, b.v))};
#elif defined(LINNET_AVX2)
    return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(a.a, b.a)), _mm256_add_epi32(sum.b, _mm256_madd_epi16(a.b, b.b))};
#else
    const auto low = [](Ints x) { return shift_right<16>(shift_left<16>(x)); };
    return sum + low(a) * low(b) + shift_right<16>(a) * shift_right<16>(b);
#endif
}

namespace {

// What rows are multiplied as: words as join_bytes orders them, two for a vector; of span s of row r, at [r * spans +
// s][16], the lanes' scale.
struct Prepared {
    const int16_t* words;
    const float* scales;
    int64_t spans, span_vectors, vectors;

    int64_t row_words() const { return vectors * VECTOR_COLUMNS; }
};

}  // namespace

static int64_t vectors_of_span(const QuantisedRows& x) {
    const int64_t vectors = divide_up(x.columns, VECTOR_COLUMNS);
    if (x.group_size >= x.columns) return vectors;
    return x.group_size % VECTOR_COLUMNS == 0 ? x.group_size / VECTOR_COLUMNS : 1;
}

static void prepare(const QuantisedRows& x, int64_t row, const Prepared& made, int16_t* words, float* scales) {
    const int8_t* codes = x.codes + row * x.row_bytes;
    for (int64_t v = 0; v < made.vectors; ++v, codes += VECTOR_COLUMNS, words += VECTOR_COLUMNS)
        for (int64_t i = 0; i < VECTOR_COLUMNS; ++i) words[i / 8 % 2 * 32 + i / 16 * 8 + i % 8] = codes[i];
    for (int64_t i = 0; i < made.spans * 16; ++i) {
        const int64_t column = i / 16 * made.span_vectors * VECTOR_COLUMNS + i % 16 / 4 * SCALE_COLUMNS;
        scales[i] = x.scales[row * x.groups + smaller(column, x.columns - 1) / x.group_size];
    }
}

// lanes [M][stride]: totals of one output.
template <int M, int bits>
static void multiply(const uint8_t* codes, const uint8_t* table, const Prepared& x, int64_t row, float* lanes,
                     int64_t stride) {
    const Ints low = load_table(table), high = load_table(table + 16);
    const int64_t row_words = x.row_words(), numbers = x.spans * 16;
    const int16_t* words = x.words + row * row_words;
    const float* scales = x.scales + row * numbers;
    Ints sums[M];
    Floats totals[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
        totals[m] = splat(0.0f);
        sums[m] = splat_int(0);
    }
    int64_t left = x.vectors, in_span = x.span_vectors;
    const auto step = [&]<int field>() __attribute__((always_inline)) {
        const Ints index = unpack_vector<bits, field>(codes);
        Ints first, second;
        join_bytes(look_up_bytes(low, index), look_up_bytes(high, index), first, second);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            const int16_t* own = words + m * row_words;
            sums[m] = dot_words(sums[m], first, load_ints((const int32_t*)own));
            sums[m] = dot_words(sums[m], second, load_ints((const int32_t*)(own + 32)));
        }
        words += VECTOR_COLUMNS;
        --left;
        if (--in_span == 0 || left == 0) {
            in_span = x.span_vectors;
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                totals[m] = fma(to_floats(sums[m]), load(scales + m * numbers), totals[m]);
                sums[m] = splat_int(0);
            }
            scales += 16;
        }
        return left != 0;
    };
    const auto run = [&]<int... fields>()
                         __attribute__((always_inline)) { return (step.template operator()<fields>() && ...); };
    for (;; codes += run_size(bits)) {
        __builtin_prefetch(codes + AHEAD, 0, 3);
        if constexpr (bits == 4)
            if (!run.template operator()<0, 1>()) break;
        if constexpr (bits == 2)
            if (!run.template operator()<0, 1, 2, 3>()) break;
        if constexpr (bits == 3)
            if (!run.template operator()<0, 1, 2, 3, 4, 5, 6, 7>()) break;
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) store(lanes + m * stride, totals[m]);
}

using Multiply = void (*)(const uint8_t* codes, const uint8_t* table, const Prepared& x, int64_t row, float* lanes,
                          int64_t stride);

template <int bits>
static Multiply of_rows(int64_t rows) {
    if (rows == 4) return multiply<4, bits>;
    if (rows == 3) return multiply<3, bits>;
    return rows == 2 ? multiply<2, bits> : multiply<1, bits>;
}

// Sixteen outputs' lanes [16][16] to their sums.
static Floats sum_lanes(const float* lanes) {
    Ints rows[16];
    for (int i = 0; i < 16; ++i) rows[i] = as_ints(load(lanes + 16 * i));
    transpose(rows);
    Floats sums[16];
    for (int i = 0; i < 16; ++i) sums[i] = as_floats(rows[i]);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) sums[i] = sums[i] + sums[i + width];
    return sums[0];
}

int64_t scratch_bytes_row_tables(const LinearWeight& weight, int64_t rows) {
    const int64_t vectors = divide_up(weight.columns, VECTOR_COLUMNS);  // no more spans than these
    return smaller(rows, BLOCK_ROWS) * vectors * (2 * VECTOR_COLUMNS + 64) + MOST_ROWS * 16 * 64;
}

void linear_row_tables(const LinearWeight& weight, const QuantisedRows& x, float* y, int64_t ldy, int64_t rows,
                       int64_t n_begin, int64_t n_end, void* scratch) {
    const Layout layout = layout_of(weight);
    const auto choose = weight.bits == 4 ? of_rows<4> : weight.bits == 3 ? of_rows<3> : of_rows<2>;
    const uint8_t* tiles = (const uint8_t*)weight.tiles;
    const float* scales = (const float*)(tiles + layout.scales_at);
    float* lanes = (float*)scratch;
    Prepared made = {};
    made.vectors = layout.vectors;
    made.span_vectors = vectors_of_span(x);
    made.spans = divide_up(made.vectors, made.span_vectors);
    int16_t* words = (int16_t*)(lanes + MOST_ROWS * 16 * 16);
    float* x_scales = (float*)(words + smaller(rows, BLOCK_ROWS) * made.row_words());
    made.words = words;
    made.scales = x_scales;
    for (int64_t first = 0; first < rows; first += BLOCK_ROWS) {
        const int64_t count = smaller(BLOCK_ROWS, rows - first);
        for (int64_t row = 0; row < count; ++row)
            prepare(x, first + row, made, words + row * made.row_words(), x_scales + row * made.spans * 16);
        const int64_t row_tiles = divide_up(count, MOST_ROWS), tile_rows = divide_up(count, row_tiles);
        for (int64_t n = n_begin; n < n_end; n += 16) {
            const int64_t outputs = smaller(16, n_end - n);
            for (int64_t row = 0; row < count; row += tile_rows) {
                const int64_t own_rows = smaller(tile_rows, count - row);
                const Multiply multiply_rows = choose(own_rows);
                for (int64_t i = 0; i < 16; ++i) {
                    const uint8_t* own = tiles + (n + i) * layout.row_bytes;
                    multiply_rows(own, own + layout.row_bytes - TABLE_BYTES, made, row, lanes + 16 * i, 16 * 16);
                }
                for (int64_t m = 0; m < own_rows; ++m) {
                    Floats sum = sum_lanes(lanes + m * 16 * 16) * load(scales + n);
                    if (weight.bias != nullptr) sum = sum + load_first(weight.bias + n, outputs);
                    store_first(y + (first + row + m) * ldy + n, outputs, sum);
                }
            }
        }
    }
}

static float value_at(const LinearWeight& weight, const Layout& layout, int64_t row, int64_t column) {
    const int64_t eight = column & ~int64_t(7), within = column & 7, vectors = run_vectors(weight.bits);
    const int64_t place = (eight + within / 2 + (within & 1) * 4) % VECTOR_COLUMNS, vector = column / VECTOR_COLUMNS;
    const int64_t field = vector % vectors;
    const uint8_t* own = (const uint8_t*)weight.tiles + row * layout.row_bytes;
    const uint8_t* run = own + vector / vectors * run_size(weight.bits);
    int code;
    if (weight.bits == 4) {
        code = (run[place] >> (4 * field)) & 15;
    } else {
        code = (run[field / 4 * 64 + place] >> (field % 4 * 2)) & 3;
        if (weight.bits == 3) code |= ((run[ONES_AT + place] >> field) & 1) << 2;
    }
    return bf16_to_float(((const uint16_t*)(own + layout.row_bytes - TABLE_BYTES + 32))[code]);
}

void decode_row_table_panel(const LinearWeight& weight, int64_t n, int64_t column, int64_t columns, float* panel) {
    const Layout layout = layout_of(weight);
    for (int64_t c = 0; c < columns; ++c)
        for (int64_t i = 0; i < 16; ++i)
            panel[c * 16 + i] = column + c < weight.columns ? value_at(weight, layout, n + i, column + c) : 0.0f;
}

void decode_row_table_row(const LinearWeight& weight, int64_t row, float* y) {
    const Layout layout = layout_of(weight);
    for (int64_t c = 0; c < weight.columns; ++c) y[c] = value_at(weight, layout, row, c);
}

}  // namespace linnet::LINNET_TIER
