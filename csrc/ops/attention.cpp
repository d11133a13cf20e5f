// SPDX-License-Identifier: Apache-2.0
// Paged attention in absolute partitions of 256 keys. Within a partition: scores, maximum, exp, weighted values, each
// in key order and depending on (position, key) alone; partials are merged left to right. So prefill, decode, any
// chunking and any split over threads give the same bits. Keys a row may not see are never multiplied, not even by
// zero.
#include "ops/attention_tiles.h"
#include "ops/ops.h"
#include "vector_math.h"

namespace linnet::LINNET_TIER {

namespace {

constexpr int64_t SCORE_STRIDE = PARTITION_KEYS + TILE_KEYS;  // a short tile's store may run past the partition
constexpr float MINUS_INFINITY = -__builtin_inff();

struct Scratch {
    float* scores;   // [vectors, SCORE_STRIDE]
    float* values;   // [vectors, value_stride]: running sums of the vectors
    float* maximum;  // [vectors]
    float* sum;      // [vectors]
    float* partial;  // [MAX_HEADS, value_stride]
    float* widened;  // [PARTITION_KEYS, value_stride]
};

struct Shape {
    int64_t group, vectors, stride;
};

Shape shape_of(const AttentionCall& call, int64_t rows) {
    const int64_t group = call.heads / call.kv.kv_heads;
    return {group, group * rows, call.kv.value_stride()};
}

int64_t scratch_floats(const Shape& shape) {
    const int64_t vectors = divide_up(shape.vectors, LANES) * LANES;
    return vectors * (SCORE_STRIDE + shape.stride + 2) + (MAX_HEADS + PARTITION_KEYS) * shape.stride;
}

Scratch place(const Shape& shape, void* memory) {
    const int64_t vectors = divide_up(shape.vectors, LANES) * LANES;
    Scratch s;
    s.scores = (float*)memory;
    s.values = s.scores + vectors * SCORE_STRIDE;
    s.maximum = s.values + vectors * shape.stride;
    s.sum = s.maximum + vectors;
    s.partial = s.sum + vectors;
    s.widened = s.partial + MAX_HEADS * shape.stride;
    return s;
}

// The half-open range of keys a row at `position` sees.
LINNET_INLINE int64_t first_key(const AttentionCall& call, int64_t position) {
    return call.window > 0 ? larger(0, position - call.window + 1) : 0;
}

// scores [begin, end) (relative to the partition) become exp(score - maximum); returns maximum and sum.
void soft_maximum(const AttentionCall& call, float* scores, int64_t partition_start, int64_t begin, int64_t end,
                  float slope, float& maximum, float& sum) {
    const Ints lanes = lane_numbers();
    const int64_t from = begin / LANES * LANES;
    const Floats scale = splat(call.scale), cap = splat(call.softcap);
    Floats best = splat(MINUS_INFINITY);
    for (int64_t k = from; k < end; k += LANES) {
        Floats s = load(scores + k) * scale;
        if (call.softcap > 0.0f) s = cap * hyperbolic_tangent(s / cap);
        if (call.alibi_slopes) s = fma(splat(slope), to_floats(lanes + splat_int(int32_t(partition_start + k))), s);
        if (k < begin || k + LANES > end) {
            const Ints at = lanes + splat_int(int32_t(k));
            s = select(less(at, splat_int(int32_t(begin))), splat(MINUS_INFINITY), s);
            s = select(less(at, splat_int(int32_t(end))), s, splat(MINUS_INFINITY));
        }
        best = greatest(best, s);
        store(scores + k, s);
    }
    maximum = top(best);
    Floats total_lanes = splat(0.0f);
    for (int64_t k = from; k < end; k += LANES) {
        const Floats p = exponential(load(scores + k) - splat(maximum));
        total_lanes = total_lanes + p;
        store(scores + k, p);
    }
    sum = total(total_lanes);
}

// (values, maximum, sum) of the keys so far, with those of the next partition. An empty side has sum 0.
void merge(float* values, float& maximum, float& sum, const float* next, float next_maximum, float next_sum,
           int64_t n) {
    if (next_sum == 0.0f) return;
    if (sum == 0.0f) {
        for (int64_t i = 0; i < n; i += LANES) store(values + i, load(next + i));
        maximum = next_maximum;
        sum = next_sum;
        return;
    }
    const Floats both = greatest(splat(maximum), splat(next_maximum));
    const Floats keep = exponential(splat(maximum) - both), bring = exponential(splat(next_maximum) - both);
    for (int64_t i = 0; i < n; i += LANES) store(values + i, fma(load(next + i), bring, load(values + i) * keep));
    sum = total(select(first_lanes(1), fma(splat(next_sum), bring, splat(sum) * keep), splat(0.0f)));
    maximum = top(both);
}

void finish(const AttentionCall& call, const AttentionTask& task, int64_t vector, const float* values, float sum) {
    const int64_t group = call.heads / call.kv.kv_heads, size = call.kv.value_head_size;
    float* to = task.output + vector / group * task.ld_output + (task.kv_head * group + vector % group) * size;
    for (int64_t i = 0; i < size; i += LANES) store_first(to + i, size - i, load(values + i) / splat(sum));
}

// Scores of every vector against the key tiles of [from, to) (absolute; from is a tile's first key).
void score_partition(const AttentionCall& call, const AttentionTask& task, const Shape& shape, int64_t start,
                     int64_t from, int64_t to, float* scores) {
    const KVLayout& kv = call.kv;
    const int64_t step = smaller(TILE_KEYS, kv.block_size);
    const void* tiles[PARTITION_KEYS];
    int64_t count = 0;
    for (int64_t key = from; key < to; key += step, ++count) {
        const char* block = (const char*)task.state + task.block_table[key / kv.block_size] * kv.block_bytes();
        const int64_t tile = task.kv_head * kv.key_tiles() + key % kv.block_size / TILE_KEYS;
        tiles[count] = block + tile * kv.tile_elements() * kv.element_bytes();
    }
    for (int64_t vector = 0; vector < shape.vectors; vector += MAX_VECTORS) {
        const int64_t n = smaller(MAX_VECTORS, shape.vectors - vector);
        const float* queries[MAX_VECTORS];
        for (int64_t i = 0; i < n; ++i) {
            const int64_t row = (vector + i) / shape.group,
                          head = task.kv_head * shape.group + (vector + i) % shape.group;
            queries[i] = task.query + row * task.ld_query + head * kv.head_size;
        }
        score_tiles(kv.bf16, queries, n, kv.head_size, tiles, count, step,
                    scores + vector * SCORE_STRIDE + (from - start), SCORE_STRIDE);
    }
}

// Pointers to the value rows of keys [from, to), at index key - start; bf16 rows that many vectors read are widened
// once.
bool value_rows_of(const AttentionCall& call, const AttentionTask& task, const Shape& shape, int64_t start,
                   int64_t from, int64_t to, float* widened, const void** rows) {
    const KVLayout& kv = call.kv;
    const bool widen = kv.bf16 && shape.vectors > MAX_HEADS;
    for (int64_t key = from; key < to; ++key) {
        const char* block = (const char*)task.state + task.block_table[key / kv.block_size] * kv.block_bytes();
        const int64_t row = task.kv_head * kv.block_size + key % kv.block_size;
        const void* stored = block + (kv.value_offset() + row * shape.stride) * kv.element_bytes();
        rows[key - start] = stored;
        if (widen) {
            float* wide = widened + (key - start) * shape.stride;
            for (int64_t i = 0; i < shape.stride; i += LANES) store(wide + i, load_bf16((const uint16_t*)stored + i));
            rows[key - start] = wide;
        }
    }
    return kv.bf16 && !widen;
}

}  // namespace

int64_t attention_scratch_bytes(const AttentionCall& call, int64_t rows) {
    return scratch_floats(shape_of(call, rows)) * int64_t(sizeof(float));
}

void attention(const AttentionCall& call, const AttentionTask& task, void* memory) {
    const Shape shape = shape_of(call, task.rows);
    const Scratch scratch = place(shape, memory);
    const int64_t step = smaller(TILE_KEYS, call.kv.block_size);
    const void* value_rows[PARTITION_KEYS];
    for (int64_t v = 0; v < shape.vectors; ++v) scratch.sum[v] = 0.0f;

    for (int64_t partition = task.first_partition; partition < task.last_partition; ++partition) {
        const int64_t start = partition * PARTITION_KEYS;
        const int64_t from = larger(start, first_key(call, task.first_position) / step * step);
        const int64_t to = smaller(start + PARTITION_KEYS, task.first_position + task.rows);
        const int64_t partial_at = (partition - task.first_partition) * shape.vectors * (shape.stride + 2);
        bool values_narrow = false;
        if (from < to) {
            score_partition(call, task, shape, start, from, to, scratch.scores);
            values_narrow = value_rows_of(call, task, shape, start, from, to, scratch.widened, value_rows);
        }
        for (int64_t row = 0; row < task.rows; ++row) {
            const int64_t position = task.first_position + row;
            const int64_t begin = larger(0, first_key(call, position) - start);
            const int64_t end = smaller(PARTITION_KEYS, position + 1 - start);
            for (int64_t head = 0; head < shape.group; head += MAX_HEADS) {
                const int64_t heads = smaller(MAX_HEADS, shape.group - head), vector = row * shape.group + head;
                float* scores = scratch.scores + vector * SCORE_STRIDE;
                float maximum[MAX_HEADS], sum[MAX_HEADS];
                for (int64_t h = 0; h < heads; ++h) {
                    maximum[h] = sum[h] = 0.0f;
                    const float slope =
                        call.alibi_slopes ? call.alibi_slopes[task.kv_head * shape.group + head + h] : 0.0f;
                    if (begin < end)
                        soft_maximum(call, scores + h * SCORE_STRIDE, start, begin, end, slope, maximum[h], sum[h]);
                }
                float* values =
                    task.partials ? task.partials + partial_at + vector * (shape.stride + 2) : scratch.partial;
                const int64_t ld = task.partials ? shape.stride + 2 : shape.stride;
                if (begin < end) {
                    weigh_values(values_narrow, value_rows, scores, SCORE_STRIDE, begin, end, heads, shape.stride,
                                 values, ld);
                }
                for (int64_t h = 0; h < heads; ++h) {
                    if (task.partials) {
                        values[h * ld + shape.stride] = maximum[h];
                        values[h * ld + shape.stride + 1] = sum[h];
                    } else {
                        merge(scratch.values + (vector + h) * shape.stride, scratch.maximum[vector + h],
                              scratch.sum[vector + h], values + h * ld, maximum[h], sum[h], shape.stride);
                    }
                }
            }
        }
    }
    if (task.partials) return;
    for (int64_t v = 0; v < shape.vectors; ++v)
        finish(call, task, v, scratch.values + v * shape.stride, scratch.sum[v]);
}

void attention_merge(const AttentionCall& call, const AttentionTask& task) {
    const Shape shape = shape_of(call, task.rows);
    const int64_t ld = shape.stride + 2;
    for (int64_t vector = 0; vector < shape.vectors; ++vector) {
        // The first partition's partial is the running state: it is not read again.
        float* values = task.partials + vector * ld;
        float maximum = values[shape.stride], sum = values[shape.stride + 1];
        for (int64_t p = 1; p < task.last_partition - task.first_partition; ++p) {
            const float* next = task.partials + (p * shape.vectors + vector) * ld;
            merge(values, maximum, sum, next, next[shape.stride], next[shape.stride + 1], shape.stride);
        }
        finish(call, task, vector, values, sum);
    }
}

}  // namespace linnet::LINNET_TIER
