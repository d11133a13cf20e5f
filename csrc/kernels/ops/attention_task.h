// SPDX-License-Identifier: Apache-2.0
// What a task of attention starts from and ends with, whichever order it goes in: where keys and values lie, packed
// queries, one partition's softmax, the division by the sum.
#pragma once

#include "attention_softmax.h"

namespace linnet::LINNET_TIER {

namespace {

struct Shape {  // of the work for one kv head
    int64_t group, vectors, blocks, stride, pairs, chunks;
    int64_t step;  // keys of a tile
};

Shape shape_of(const AttentionCall& call, int64_t rows) {
    const KVLayout& kv = call.kv;
    const int64_t group = call.heads / kv.kv_heads, vectors = group * rows;
    return {group,          vectors,           divide_up(vectors, BLOCK_VECTORS), kv.value_stride(),
            kv.key_pairs(), kv.value_chunks(), smaller(TILE_KEYS, kv.block_size)};
}

// Calls run with the form in which the call's operands are multiplied.
template <typename Run>
void with_form(const AttentionCall& call, Run run) {
    if (!call.rounded) {
        run(Planar{});
    } else if (call.kv.storage == KVStorage::bf16) {
        run(Packed{});
    } else {
        run(Widened{});
    }
}

// Which stored pair vectors are operands as they lie; the others are widened into scratch, once per task and partition.
struct Reading {
    bool keys, values;
};
template <typename Form>
Reading read_in_place(const AttentionCall& call) {
    constexpr KVStorage same = Form::BYTES == Packed::BYTES ? KVStorage::bf16 : KVStorage::fp32;
    return {call.kv.storage == same, call.kv.storage == same && call.kv.block_size > 1};
}

// The half-open range of keys a row at `position` sees starts here.
LINNET_INLINE int64_t first_key(const AttentionCall& call, int64_t position) {
    return call.window > 0 ? larger(0, position - call.window + 1) : 0;
}

// Which keys of the partition that starts at `start` a row of the task sees: [begin, end); none if begin >= end.
LINNET_INLINE void see(const AttentionCall& call, const AttentionTask& task, int64_t row, int64_t start, int64_t& begin,
                       int64_t& end) {
    begin = larger(0, first_key(call, task.first_position + row) - start);
    end = smaller(PARTITION_KEYS, task.keys_of(call, row) - start);
}

// The same for vectors [first, first + count) of a kv head. Those that see any key, from the active_from-th to before
// the active_to-th, are neighbours.
void look(const AttentionCall& call, const AttentionTask& task, const Shape& shape, int64_t start, int64_t first,
          int64_t count, int64_t* begin, int64_t* end, int64_t& active_from, int64_t& active_to) {
    active_from = active_to = 0;
    for (int64_t v = 0; v < count; ++v) {
        see(call, task, (first + v) / shape.group, start, begin[v], end[v]);
        if (begin[v] >= end[v]) continue;
        if (active_to == 0) active_from = v;
        active_to = v + 1;
    }
}

// Where the keys [from, to) of a partition that starts at `start` are stored for the task's first kv head, by tile.
struct Places {
    int64_t start, from, to, tiles;
    const char* keys[PARTITION_KEYS];
    const char* values[PARTITION_KEYS];  // the row of the tile's first pair; the others follow
    const float* scales[PARTITION_KEYS];
};

void find(const AttentionCall& call, const AttentionTask& task, int64_t step, int64_t partition, Places& places) {
    const KVLayout& kv = call.kv;
    places.start = partition * PARTITION_KEYS;
    places.from = larger(places.start, first_key(call, task.first_position) / step * step);
    places.to = smaller(places.start + PARTITION_KEYS, task.keys_of(call, task.rows - 1));
    places.tiles = 0;
    const int64_t tile_bytes = kv.tile_bytes(), row_bytes = kv.value_row_bytes();
    const int64_t key_block = kv.key_block_bytes(), value_block = kv.value_block_bytes(),
                  scale_block = kv.scale_block_bytes();
    const char* keys = task.memory.keys + kv.key_tile_at(task.kv_head, 0);
    const char* values = task.memory.values + kv.value_row_at(task.kv_head, 0);
    const char* scales = task.memory.scales + kv.scales_at(task.kv_head, 0);
    const int32_t* entry = task.block_table + places.from / kv.block_size;
    int64_t offset = places.from % kv.block_size;
    for (int64_t key = places.from; key < places.to; key += step, ++places.tiles) {
        places.keys[places.tiles] = keys + *entry * key_block + offset / TILE_KEYS * tile_bytes;
        places.values[places.tiles] = values + *entry * value_block + offset / 2 * row_bytes;
        places.scales[places.tiles] =
            (const float*)(scales + *entry * scale_block) + offset / TILE_KEYS * (2 * TILE_KEYS);
        offset += step;
        if (offset == kv.block_size) {
            offset = 0;
            ++entry;
        }
    }
}

// Weights, maximum and sum of one vector's scores (see soft_maximum).
template <typename Form, typename Ahead>
void soften(const AttentionCall& call, const Scored& scored, typename Form::Element* weights, float& maximum,
            float& sum, Ahead ahead) {
    const bool plain = call.softcap == 0.0f && !call.alibi_slopes && !call.kv.quantised() && call.scale > 0.0f;
    if (plain) {
        soft_maximum<Form, true>(call, scored, weights, maximum, sum, ahead);
    } else {
        soft_maximum<Form, false>(call, scored, weights, maximum, sum, ahead);
    }
}

// queries[block][pair][vector][2] of one kv head; vectors are rows x heads of the group.
template <typename Form>
void pack_queries(const AttentionCall& call, const AttentionTask& task, int64_t kv_head, const Shape& shape,
                  float* to) {
    using Element = typename Form::Element;
    const int64_t size = call.kv.head_size;
    alignas(64) Element sixteen[LANES];
    if (2 * shape.pairs != size) std::memset(to, 0, size_t(shape.blocks * shape.pairs * BLOCK_VECTORS * 2) * 4);
    for (int64_t vector = 0; vector < shape.vectors; ++vector) {
        const int64_t head = kv_head * shape.group + vector % shape.group;
        const float* query = task.query + vector / shape.group * task.ld_query + head * size;
        Element* out =
            (Element*)to + vector / BLOCK_VECTORS * shape.pairs * BLOCK_VECTORS * 2 + vector % BLOCK_VECTORS * 2;
        for (int64_t d = 0; d < size; d += LANES, out += LANES * BLOCK_VECTORS) {
            Form::store_elements(sixteen, load_first(query + d, size - d), call.rounded);
            if (d + LANES <= size) {
#pragma GCC unroll 8
                for (int i = 0; i < LANES; i += 2)
                    std::memcpy(out + i * BLOCK_VECTORS, sixteen + i, 2 * sizeof(Element));
            } else {
                for (int64_t i = 0; d + i < size; i += 2) {
                    std::memcpy(out + i * BLOCK_VECTORS, sixteen + i, 2 * sizeof(Element));
                }
            }
        }
    }
}

// The weighted values over the sum of the weights, powers of two behind the greatest score, `maximum`.
void finish(const AttentionCall& call, const AttentionTask& task, int64_t kv_head, int64_t vector, const float* values,
            float maximum, float sum) {
    const int64_t group = call.heads / call.kv.kv_heads, size = call.kv.value_head_size;
    Floats whole = splat(sum);
    if (call.sinks) {
        constexpr float MOST = 126.0f;  // of an exponent: beyond it nothing is left of the values anyway
        const Floats sink = splat(call.sinks[kv_head * group + vector % group] * LOG2_E - maximum);
        whole = whole + power_of_two(smallest(splat(MOST), sink));
    }
    float* to = task.output + vector / group * task.ld_output + (kv_head * group + vector % group) * size;
    const Floats inverse = splat(1.0f) / whole;
    for (int64_t i = 0; i < size; i += LANES) store_first(to + i, size - i, load(values + i) * inverse);
}

}  // namespace

}  // namespace linnet::LINNET_TIER
