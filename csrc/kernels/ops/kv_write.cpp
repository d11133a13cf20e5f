// SPDX-License-Identifier: Apache-2.0
// Stores keys (one lane of a key tile) and values (one half of a row of pairs) of this step into paged KV. Quantised
// storage: one scale per token and head, from that head's elements alone: greatest magnitude / 127.5 (int8), / 7.5
// (int4), / 448 (fp8), as compressed-tensors defines it.
#include "kernels/simd.h"
#include "ops.h"

namespace linnet::LINNET_TIER {

namespace {

// Element `half` of lane `lane` of pair vector `index`.
LINNET_INLINE int64_t element_at(int64_t index, int64_t lane, int64_t half) { return index * 32 + lane * 2 + half; }

// Where dimension d of a head lies: keys in one lane, neighbouring dimensions as a pair; values one dimension per lane.
struct KeyPlace {
    int64_t lane;
    static int64_t index(int64_t d) { return d / 2; }
    int64_t lane_of(int64_t) const { return lane; }
    int64_t half(int64_t d) const { return d % 2; }
    static constexpr int64_t NEXT_INDEX = 2;  // dimensions from a pair vector to the next
};
struct ValuePlace {
    int64_t offset;
    static int64_t index(int64_t d) { return d / LANES; }
    int64_t lane_of(int64_t d) const { return d % LANES; }
    int64_t half(int64_t) const { return offset % 2; }
    static constexpr int64_t NEXT_INDEX = LANES;
};

template <typename Place>
void store_fp32(float* to, const float* x, int64_t size, const Place& place) {
    for (int64_t d = 0; d < size; ++d) to[Place::index(d) * 32 + place.half(d) * LANES + place.lane_of(d)] = x[d];
}

template <typename Place>
void store_bf16(uint16_t* to, const float* x, int64_t size, const Place& place) {
    alignas(64) uint16_t narrow[LANES];
    for (int64_t from = 0; from < size; from += LANES) {
        const int64_t n = smaller(size - from, LANES);
        LINNET_TIER::store_bf16(narrow, load_first(x + from, n));
        for (int64_t i = 0; i < n; ++i) {
            to[element_at(Place::index(from + i), place.lane_of(from + i), place.half(from + i))] = narrow[i];
        }
    }
}

// e4m3 bits of |x| <= 448 to nearest even; what is below 2^-6 counts in steps of 2^-9.
LINNET_INLINE Ints to_fp8(Floats x) {
    const Ints bits = as_ints(absolute(x)), odd = shift_right<20>(bits) & splat_int(1);
    const Ints normal = shift_right<20>(bits + odd + splat_int(0x7ffff)) - splat_int(120 << 3);
    const Ints small = to_ints(absolute(x) * splat(512.0f));
    const Ints sign = shift_right<24>(as_ints(x)) & splat_int(0x80);
    return select(less(absolute(x), splat(0x1p-6f)), small, normal) | sign;
}

// Codes of one head vector into codes[0 .. size rounded up to 16); returns the scale.
float quantise(KVStorage storage, const float* x, int64_t size, int32_t* codes) {
    Floats most = splat(0.0f), poison = splat(0.0f);  // poison: NaN if an element is not finite
    for (int64_t i = 0; i < size; i += LANES) {
        const Floats part = load_first(x + i, size - i);
        most = greatest(most, absolute(part));
        poison = fma(part, splat(0.0f), poison);
    }
    const float range = storage == KVStorage::int8 ? 127.5f : storage == KVStorage::int4 ? 7.5f : 448.0f;
    const Floats scale = splat(top(most)) / splat(range) + splat(total(poison));
    const Floats divisor = select(equal(scale, splat(0.0f)), splat(1.0f), scale);
    const float least = storage == KVStorage::int8 ? -128.0f : storage == KVStorage::int4 ? -8.0f : -448.0f;
    const float greatest_code = storage == KVStorage::fp8 ? 448.0f : -least - 1.0f;
    for (int64_t i = 0; i < size; i += LANES) {
        const Floats scaled = load_first(x + i, size - i) / divisor;
        const Floats code = smallest(splat(greatest_code),
                                     greatest(splat(least), storage == KVStorage::fp8 ? scaled : round_even(scaled)));
        store_ints(codes + i, storage == KVStorage::fp8 ? to_fp8(code) : to_ints(code));
    }
    alignas(64) float out[LANES];
    store(out, scale);
    return out[0];
}

template <typename Place>
void store_bytes(uint8_t* to, const int32_t* codes, int64_t size, const Place& place) {
    for (int64_t d = 0; d < size; ++d) {
        to[element_at(Place::index(d), place.lane_of(d), place.half(d))] = uint8_t(codes[d]);
    }
}

// Two neighbouring pair vectors share bytes of one token: low nibbles are the even one's.
template <typename Place>
void store_nibbles(uint8_t* to, const int32_t* codes, int64_t size, const Place& place) {
    constexpr int64_t next = Place::NEXT_INDEX;
    for (int64_t d = 0; d < size; ++d) {
        if (Place::index(d) % 2) continue;
        const int32_t high = d + next < size ? codes[d + next] : 0;
        to[element_at(Place::index(d) / 2, place.lane_of(d), place.half(d))] = uint8_t((codes[d] & 15) | high << 4);
    }
}

constexpr int64_t PIECE = 4096;  // the longest head there is

template <typename Place>
void store_head(KVStorage storage, char* to, float* scale, const float* x, int64_t size, const Place& place) {
    alignas(64) int32_t codes[PIECE];
    switch (storage) {
        case KVStorage::fp32:
            return store_fp32((float*)to, x, size, place);
        case KVStorage::bf16:
            return store_bf16((uint16_t*)to, x, size, place);
        case KVStorage::int8:
        case KVStorage::fp8:
            *scale = quantise(storage, x, size, codes);
            return store_bytes((uint8_t*)to, codes, size, place);
        case KVStorage::int4:
            *scale = quantise(storage, x, size, codes);
            return store_nibbles((uint8_t*)to, codes, size, place);
    }
}

}  // namespace

void kv_write(const KVLayout& kv, const KVMemory& memory, const float* key, const float* value, const int32_t* slots,
              int64_t rows) {
    const int64_t head_size = kv.head_size, value_size = kv.value_head_size;
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t block = slots[row] / kv.block_size, offset = slots[row] % kv.block_size;
        char* keys = memory.keys + block * kv.key_block_bytes();
        char* values = memory.values + block * kv.value_block_bytes();
        float* scales_of_block = (float*)(memory.scales + block * kv.scale_block_bytes());
        const KeyPlace key_place = {offset % TILE_KEYS};
        const ValuePlace value_place = {offset};
        for (int64_t head = 0; head < kv.kv_heads; ++head) {
            float* scales =
                kv.quantised() ? scales_of_block + kv.scales_at(head, offset) / 4 + offset % TILE_KEYS : nullptr;
            store_head(kv.storage, keys + kv.key_tile_at(head, offset), scales,
                       key + (row * kv.kv_heads + head) * head_size, head_size, key_place);
            store_head(kv.storage, values + kv.value_row_at(head, offset), scales ? scales + TILE_KEYS : nullptr,
                       value + (row * kv.kv_heads + head) * value_size, value_size, value_place);
        }
    }
}

}  // namespace linnet::LINNET_TIER
