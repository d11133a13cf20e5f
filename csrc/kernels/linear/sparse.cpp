// SPDX-License-Identifier: Apache-2.0
#include "sparse.h"

namespace linnet::LINNET_TIER {

// Dense tiles that are expanded together, so that many rows are arranged once for all of them.
static constexpr int64_t EXPANDED_BYTES = 256 << 10, MOST_EXPANDED_TILES = 8;

const char* refuse_sparse(const LinearWeight& weight, InputType input) {
    if (weight.columns % 4 != 0) return "2:4 weights have a multiple of 4 columns";
    if (weight.offsets != Offsets::none || weight.super_group_size != 0 || weight.codebook != nullptr)
        return "2:4 weights have symmetric codes with scales of one level";
    if (weight.storage != Storage::bf16 && weight.bits != 4 && weight.bits != 8)
        return "2:4 weights are bf16, or codes of 4 or 8 bits";
#if defined(LINNET_BF16)
    if (weight.storage == Storage::bf16) return "this tier multiplies pairs of bf16, which 2:4 weights do not keep";
#endif
    if (weight.storage == Storage::bf16 && input == InputType::int8)
        return "int8 activations need a weight of integer codes (packed_int or plain_int8)";
    return nullptr;
}

int64_t sparse_tile_bytes(const LinearWeight& weight) {
    if (weight.storage == Storage::bf16) return divide_up(weight.columns, RUN_COLUMNS) * BF16_RUN_BYTES;
    return divide_up(weight.columns, STRETCH_COLUMNS) * stretch_bytes(weight.bits);
}

int64_t code_sum_bytes(const LinearWeight& weight) {
    if (weight.storage == Storage::bf16 || weight.bits != 4) return 0;
    return divide_up(weight.columns, sum_columns(weight)) * 16 * code_sum_size(weight);
}

// Which of four numbers are kept: those other than zero, and others where these are fewer than two.
template <typename Number>
static int chosen_places(const Number* four) {
    for (int places = 0; places < 6; ++places) {
        bool whole = true;
        for (int i = 0; i < 4; ++i) whole = whole && (four[i] == 0 || i == PLACES[places][0] || i == PLACES[places][1]);
        if (whole) return places;
    }
    return 0;
}

// Sums of blocks' codes; int16 hold those of blocks of up to 8191 columns (see reads_sparse).
static void write_code_sums(const LinearWeight& weight, int64_t n, int64_t outputs, uint8_t* code_sums) {
    const int64_t block = sum_columns(weight), size = code_sum_size(weight);
    for (int64_t i = 0; i < outputs; ++i) {
        const uint8_t* row = (const uint8_t*)weight.codes + (n + i - weight.first_row) * weight.code_row_bytes;
        for (int64_t first = 0; first < weight.columns; first += block) {
            int32_t sum = 0;
            for (int64_t c = first; c < smaller(first + block, weight.columns); ++c) sum += ((row[c] & 15) ^ 8) - 8;
            const int16_t narrow = int16_t(sum);  // its low byte comes first
            std::memcpy(code_sums + (first / block * 16 + i) * size, &narrow, size_t(size));
        }
    }
}

static void write_codes(const LinearWeight& weight, int64_t n, int64_t outputs, uint8_t* tile) {
    const int bits = weight.bits;
    const uint8_t zero = uint8_t(1 << (bits - 1)), mask = uint8_t((1 << bits) - 1);
    for (int64_t i = 0; i < 16; ++i) {
        const uint8_t* row = (const uint8_t*)weight.codes + (n + i - weight.first_row) * weight.code_row_bytes;
        for (int64_t four = 0; four < divide_up(weight.columns, STRETCH_COLUMNS) * 16; ++four) {
            uint8_t own[4] = {};
            if (i < outputs && four * 4 < weight.columns) std::memcpy(own, row + four * 4, 4);
            const int places = chosen_places(own);
            uint8_t kept[2];
            for (int k = 0; k < 2; ++k) kept[k] = uint8_t((own[PLACES[places][k]] & mask) ^ zero);
            uint8_t* stretch = tile + four / 16 * stretch_bytes(bits);
            const int64_t eight = four / 2 % STRETCH_EIGHTS, byte = (i % 8 * 2 + i / 8) * 2 + four % 2;
            if (eight < 6)
                stretch[eight / 2 * VECTOR_BYTES + byte] |= uint8_t(places << (eight % 2 * 4));
            else
                for (int bit = 0; bit < 3; ++bit)
                    stretch[bit * VECTOR_BYTES + byte] |= uint8_t((places >> bit & 1) << (eight == 6 ? 3 : 7));
            uint8_t* codes = stretch + PLACES_BYTES + eight * 8 * bits + byte;
            codes[0] = bits == 4 ? uint8_t(kept[0] | kept[1] << 4) : kept[0];
            if (bits == 8) codes[VECTOR_BYTES] = kept[1];
        }
    }
}

static void write_numbers(const LinearWeight& weight, int64_t n, int64_t outputs, uint8_t* tile) {
    for (int64_t i = 0; i < outputs; ++i) {
        const uint8_t* row = (const uint8_t*)weight.codes + (n + i - weight.first_row) * weight.code_row_bytes;
        for (int64_t four = 0; four < weight.columns / 4; ++four) {
            uint16_t own[4];
            std::memcpy(own, row + four * 8, 8);
            const uint8_t* places = PLACES[chosen_places(own)];
            uint8_t* run = tile + four / 8 * BF16_RUN_BYTES;
            const int64_t bit = four % 8 * 4;
            run[i * 4 + bit / 8] |= uint8_t((places[0] | places[1] << 2) << bit % 8);
            for (int k = 0; k < 2; ++k) std::memcpy(run + 64 + four % 8 * 64 + i * 4 + k * 2, own + places[k], 2);
        }
    }
}

void write_sparse_tile(const LinearWeight& weight, int64_t n, int64_t outputs, uint8_t* tile, uint8_t* code_sums) {
    std::memset(tile, 0, size_t(sparse_tile_bytes(weight)));
    std::memset(code_sums, 0, size_t(code_sum_bytes(weight)));
    if (code_sum_bytes(weight) > 0) write_code_sums(weight, n, outputs, code_sums);
    if (weight.storage == Storage::bf16)
        write_numbers(weight, n, outputs, tile);
    else
        write_codes(weight, n, outputs, tile);
}

// An eight of dense tiles of `bits`: bytes of even and of odd columns, four of every output.
LINNET_INLINE void store_eight(int bits, Ints even, Ints odd, uint8_t* dense, int64_t eight, int t) {
    uint8_t* target = dense + (eight * TILE_COUNT + t) * 16 * bits;
    if (bits == 4) {
        store_ints((int32_t*)target, even | shift_left<4>(odd));
        return;
    }
    store_ints((int32_t*)target, even);
    store_ints((int32_t*)(target + 64), odd);
}

#if defined(LINNET_PORTABLE)

void expand_sparse_run(int bits, const uint8_t* tile, int64_t run, uint8_t* dense, int t) {
    const uint8_t* stretch = tile + run / 2 * stretch_bytes(bits);
    for (int64_t e = 0; e < RUN_EIGHTS; ++e) {
        const int64_t eight = run % 2 * RUN_EIGHTS + e;
        const uint8_t* codes = stretch + PLACES_BYTES + eight * 8 * bits;
        alignas(64) uint8_t bytes[2][64];
        std::memset(bytes, 1 << (bits - 1), sizeof bytes);
        for (int64_t byte = 0; byte < VECTOR_BYTES; ++byte) {
            int places = stretch[eight / 2 * VECTOR_BYTES + byte] >> (eight % 2 * 4) & 7;
            if (eight >= 6) {
                places = 0;
                for (int bit = 0; bit < 3; ++bit)
                    places |= (stretch[bit * VECTOR_BYTES + byte] >> (eight == 6 ? 3 : 7) & 1) << bit;
            }
            const int64_t output = byte / 4 + byte / 2 % 2 * 8;
            for (int k = 0; k < 2; ++k) {
                const uint8_t code = bits == 8 ? codes[byte + k * VECTOR_BYTES] : codes[byte] >> (4 * k) & 15;
                const int place = PLACES[places][k];
                bytes[place % 2][output * 4 + byte % 2 * 2 + place / 2] = code;
            }
        }
        store_eight(bits, load_ints((const int32_t*)bytes[0]), load_ints((const int32_t*)bytes[1]), dense, e, t);
    }
}

#else

// Places of the eights of half a stretch, in the lowest three bits of bytes whose other bits are zero.
LINNET_INLINE void load_places(const uint8_t* stretch, int64_t half, __m256i (&places)[RUN_EIGHTS]) {
    const __m256i low = _mm256_set1_epi8(7), spare = _mm256_set1_epi8(char(0x88));
    const __m256i* vectors = (const __m256i*)stretch;
    const __m256i own[3] = {_mm256_loadu_si256(vectors), _mm256_loadu_si256(vectors + 1),
                            _mm256_loadu_si256(vectors + 2)};
    const auto both = [&](__m256i vector, int first) __attribute__((always_inline)) {
        places[first] = _mm256_and_si256(vector, low);
        places[first + 1] = _mm256_and_si256(_mm256_srli_epi16(vector, 4), low);
    };
    if (half == 0) {
        both(own[0], 0);
        both(own[1], 2);
        return;
    }
    both(own[2], 0);
    both(_mm256_or_si256(_mm256_or_si256(_mm256_srli_epi16(_mm256_and_si256(own[0], spare), 3),
                                         _mm256_srli_epi16(_mm256_and_si256(own[1], spare), 2)),
                         _mm256_srli_epi16(_mm256_and_si256(own[2], spare), 1)),
         2);
}

// [k][place]: all ones for the numbers of places whose kept number k stands there.
alignas(16) static constexpr uint8_t STANDS[2][4][16] = {
    {{255, 255, 255, 0, 0, 0}, {0, 0, 0, 255, 255, 0}, {0, 0, 0, 0, 0, 255}, {}},
    {{}, {255, 0, 0, 0, 0, 0}, {0, 255, 0, 255, 0, 0}, {0, 0, 255, 0, 255, 255}},
};

void expand_sparse_run(int bits, const uint8_t* tile, int64_t run, uint8_t* dense, int t) {
    const uint8_t* stretch = tile + run / 2 * stretch_bytes(bits);
    const __m256i zero = _mm256_set1_epi8(char(1 << (bits - 1))), nibble = _mm256_set1_epi8(15);
    __m256i places[RUN_EIGHTS];
    load_places(stretch, run % 2, places);
    for (int64_t e = 0; e < RUN_EIGHTS; ++e) {
        const uint8_t* codes = stretch + PLACES_BYTES + (run % 2 * RUN_EIGHTS + e) * 8 * bits;
        __m256i kept[2] = {_mm256_loadu_si256((const __m256i*)codes), {}};
        if (bits == 8) {
            kept[1] = _mm256_loadu_si256((const __m256i*)(codes + VECTOR_BYTES));
        } else {
            kept[1] = _mm256_and_si256(_mm256_srli_epi16(kept[0], 4), nibble);
            kept[0] = _mm256_and_si256(kept[0], nibble);
        }
        for (int k = 0; k < 2; ++k) kept[k] = _mm256_xor_si256(kept[k], zero);
        __m256i columns[4];
#pragma GCC unroll 4
        for (int place = 0; place < 4; ++place) {
            const auto own = [&](int k) __attribute__((always_inline)) {
                const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)STANDS[k][place]));
                return _mm256_and_si256(kept[k], _mm256_shuffle_epi8(table, places[e]));
            };
            columns[place] = _mm256_xor_si256(_mm256_or_si256(own(0), own(1)), zero);
        }
        // Columns 0, 2 (or 1, 3) of the first four and of the last, of outputs 0 8 1 9 | 4 12 5 13, 2 10 3 11 | 6 14 ..
        const auto words = [&](int first) __attribute__((always_inline)) {
            const __m256 low = _mm256_castsi256_ps(_mm256_unpacklo_epi8(columns[first], columns[first + 2]));
            const __m256 high = _mm256_castsi256_ps(_mm256_unpackhi_epi8(columns[first], columns[first + 2]));
            const __m256i front = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88));
            const __m256i back = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd));
            alignas(64) int32_t sixteen[16];
            _mm256_store_si256((__m256i*)sixteen, front);
            _mm256_store_si256((__m256i*)(sixteen + 8), back);
            return load_ints(sixteen);
        };
        store_eight(bits, words(0), words(1), dense, e, t);
    }
}

#endif

// Kept number k of four, of every output: bits of a bf16 in the upper half of a word.
LINNET_INLINE Ints kept_number(Ints pair, int k) {
    return k == 0 ? shift_left<16>(pair) : pair & splat_int(int32_t(0xffff0000));
}

void decode_sparse_numbers(const LinearWeight& weight, int64_t n, int64_t column, int64_t columns, float* panel) {
    const Tiles tiles = tiles_of(weight);
    const uint8_t* tile = sparse_tile(weight, tiles, n);
    for (int64_t c = column; c < column + columns; c += 4, panel += 64) {
        if (c >= weight.columns) {
            for (int i = 0; i < 4; ++i) store(panel + i * 16, splat(0.0f));
            continue;
        }
        const uint8_t* run = tile + c / RUN_COLUMNS * BF16_RUN_BYTES;
        const int64_t four = c / 4 % 8;
        alignas(64) int32_t places[16];
        std::memcpy(places, run, 64);
        for (int i = 0; i < 16; ++i) places[i] = int32_t(uint32_t(places[i]) >> (4 * four));
        const Ints pair = load_ints((const int32_t*)(run + 64 + four * 64)), own = load_ints(places);
        const Ints first = own & splat_int(3), second = shift_right_unsigned<2>(own) & splat_int(3);
        for (int place = 0; place < 4; ++place) {
            const Ints here = splat_int(place), none = splat_int(0);
            store(panel + place * 16, as_floats(select(equal(first, here), kept_number(pair, 0), none) |
                                                select(equal(second, here), kept_number(pair, 1), none)));
        }
    }
}

static int64_t expanded_tiles(const LinearWeight& weight) {
    const int64_t tile_bytes = divide_up(weight.columns, RUN_COLUMNS) * 64 * weight.bits;
    const int64_t tiles = smaller(EXPANDED_BYTES / tile_bytes, MOST_EXPANDED_TILES) / TILE_COUNT * TILE_COUNT;
    return larger(tiles, TILE_COUNT);
}

static LinearWeight expanded_view(const LinearWeight& weight, int64_t outputs) {
    LinearWeight dense = weight;
    dense.two_of_four = false;
    dense.rows = outputs;
    return dense;
}

int64_t scratch_bytes_expanded(const LinearWeight& weight, int64_t rows) {
    const LinearWeight dense = expanded_view(weight, expanded_tiles(weight) * 16);
    return round_up(tiles_of(dense).bytes, 64) + scratch_bytes_int8(dense, rows);
}

void linear_expanded(const LinearWeight& weight, const QuantisedRows& x, float* y, int64_t ldy, int64_t rows,
                     int64_t n_begin, int64_t n_end, uint8_t* scratch) {
    const Tiles sparse = tiles_of(weight);
    const int64_t step = expanded_tiles(weight) * 16;
    for (int64_t n = n_begin; n < n_end; n += step) {
        const int64_t outputs = smaller(step, n_end - n);
        LinearWeight dense = expanded_view(weight, outputs);
        const Tiles tiles = tiles_of(dense);
        dense.tiles = scratch;
        if (weight.bias != nullptr) dense.bias = weight.bias + n;
        for (int64_t own = 0; own < round_up(outputs, 16 * TILE_COUNT); own += 16) {
            uint8_t* codes = (uint8_t*)tile_codes(tiles, scratch, own);
            const uint8_t* tile = sparse_tile(weight, sparse, n + own);
            for (int64_t run = 0; run < tiles.runs; ++run)
                expand_sparse_run(weight.bits, tile, run, codes + run * tiles.run_bytes, int(own / 16 % TILE_COUNT));
            // Sums of codes come last.
            std::memcpy((uint8_t*)tile_record(tiles, scratch, own), tile_record(sparse, weight.tiles, n + own),
                        size_t(tiles.record_bytes));
        }
        linear_int8(dense, x, y + n, ldy, rows, 0, outputs, scratch + round_up(tiles.bytes, 64));
    }
}

}  // namespace linnet::LINNET_TIER
