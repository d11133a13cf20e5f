// SPDX-License-Identifier: Apache-2.0
// Stores keys (one lane of a key tile) and values (a row) of this step into paged KV.
#include "ops/ops.h"

namespace linnet::LINNET_TIER {

void kv_write(const KVLayout& kv, void* state, const float* key, const float* value, const int32_t* slots,
              int64_t rows) {
    const int64_t head_size = kv.head_size, value_size = kv.value_head_size;
    alignas(64) uint16_t narrow[LANES];
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t block = slots[row] / kv.block_size, offset = slots[row] % kv.block_size;
        char* base = (char*)state + block * kv.block_bytes();
        for (int64_t head = 0; head < kv.kv_heads; ++head) {
            const float* k = key + (row * kv.kv_heads + head) * head_size;
            const float* v = value + (row * kv.kv_heads + head) * value_size;
            const int64_t tile = (head * kv.key_tiles() + offset / TILE_KEYS) * kv.tile_elements();
            const int64_t lane = offset % TILE_KEYS;
            const int64_t values = kv.value_offset() + (head * kv.block_size + offset) * kv.value_stride();
            if (kv.bf16) {
                uint16_t* to = (uint16_t*)base;
                for (int64_t i = 0; i < head_size; i += LANES) {
                    const int64_t n = smaller(head_size - i, LANES);
                    store_bf16(narrow, load_first(k + i, n));
                    for (int64_t d = 0; d < n; ++d) to[tile + kv.key_index(lane, i + d)] = narrow[d];
                }
                for (int64_t i = 0; i < value_size; i += LANES) {
                    store_bf16(to + values + i, load_first(v + i, value_size - i));
                }
            } else {
                float* to = (float*)base;
                for (int64_t d = 0; d < head_size; ++d) to[tile + kv.key_index(lane, d)] = k[d];
                for (int64_t i = 0; i < value_size; i += LANES) {
                    store(to + values + i, load_first(v + i, value_size - i));
                }
            }
        }
    }
}

}  // namespace linnet::LINNET_TIER
