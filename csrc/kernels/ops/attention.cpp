// SPDX-License-Identifier: Apache-2.0
// Paged attention in absolute partitions of 256 keys. Within a partition: scores, maximum, powers, weighted values,
// each in key order and depending on (position, key) alone; partials are merged left to right. So prefill, decode, any
// chunking and any split over threads give the same bits. Keys a row may not see are never multiplied, not even by
// zero.
#include "attention_task.h"
#include "ops.h"

namespace linnet::LINNET_TIER {

namespace {

struct Scratch {
    float* queries;  // [blocks][pairs][BLOCK_VECTORS][2] elements
    float* scores;   // [BLOCK_VECTORS][SCORE_STRIDE]
    float* weights;  // the same, elements
    float* partial;  // [BLOCK_VECTORS][stride]
    float* key_scales;
    float* value_scales;  // [SCORE_STRIDE]
    float* values;        // [vectors][stride]: running sums, with
    float* maximum;
    float* sum;
    char* wide_keys;    // [tiles][pairs] pair vectors
    char* wide_values;  // [PARTITION_KEYS / 2][chunks] pair vectors
};

// Returns the bytes; memory may be null.
int64_t place(const AttentionCall& call, const Shape& shape, Scratch& s, void* memory) {
    int64_t bytes = 0;
    const auto take = [&](int64_t n) {
        char* start = memory ? (char*)memory + bytes : nullptr;
        bytes += divide_up(n, 64) * 64;
        return start;
    };
    const auto floats = [&](int64_t n) { return (float*)take(n * 4); };
    s.queries = floats(shape.blocks * shape.pairs * BLOCK_VECTORS * 2);
    s.scores = floats(BLOCK_VECTORS * SCORE_STRIDE);
    s.weights = floats(BLOCK_VECTORS * SCORE_STRIDE);
    s.partial = floats(BLOCK_VECTORS * shape.stride);
    s.key_scales = floats(SCORE_STRIDE);
    s.value_scales = floats(SCORE_STRIDE);
    s.values = floats(shape.vectors * shape.stride);
    s.maximum = floats(shape.vectors);
    s.sum = floats(shape.vectors);
    const bool in_place = call.kv.storage == (call.rounded ? KVStorage::bf16 : KVStorage::fp32);
    s.wide_keys = take(in_place ? 0 : PARTITION_KEYS / shape.step * shape.pairs * Planar::BYTES);
    const bool values_in_place = in_place && call.kv.block_size > 1;
    s.wide_values = take(values_in_place ? 0 : PARTITION_KEYS / 2 * shape.chunks * Planar::BYTES);
    return bytes;
}

// Scales of keys and values by key of the partition. Tiles are stored left to right, as scores are.
void load_scales(const Places& places, int64_t step, const Scratch& scratch) {
    int64_t at = places.from - places.start;
    for (int64_t i = 0; i < places.tiles; ++i, at += step) {
        store(scratch.key_scales + at, load(places.scales[i]));
        store(scratch.value_scales + at, load(places.scales[i] + TILE_KEYS));
    }
}

template <typename Form, KVStorage storage>
void widen_keys(const Places& places, int64_t pairs, char* to) {
    for (int64_t i = 0; i < places.tiles; ++i) {
        widen_run<Form, storage>(places.keys[i], pairs, to + i * pairs * Form::BYTES);
    }
}

// Rows of pairs from that of the first key on. Blocks of one token hold half a row each: two make one, and a half that
// was not looked up is not multiplied either, so that anything will do in its place.
template <typename Form, KVStorage storage>
void widen_values(const Places& places, int64_t step, int64_t chunks, int64_t row_bytes, char* to) {
    if (step == 1) {
        for (int64_t i = -(places.from % 2); i < places.tiles; i += 2) {
            const char* first = places.values[larger(0, i)];
            const char* second = places.values[smaller(i + 1, places.tiles - 1)];
            for (int64_t chunk = 0; chunk < chunks; ++chunk, to += Form::BYTES) {
                Form::store_pair(to, widen<storage>(first, chunk).first, widen<storage>(second, chunk).first);
            }
        }
        return;
    }
    for (int64_t i = 0; i < places.tiles; ++i) {
        for (int64_t row = 0; row < step / 2; ++row, to += chunks * Form::BYTES) {
            widen_run<Form, storage>(places.values[i] + row * row_bytes, chunks, to);
        }
    }
}

template <typename Form>
class Worker {
    using Element = typename Form::Element;

  public:
    Worker(const AttentionCall& call, const AttentionTask& task, void* memory)
        : call_(call), task_(task), shape_(shape_of(call, task.rows)), reading_(read_in_place<Form>(call)) {
        place(call, shape_, scratch_, memory);
    }

    void run() {
        pack_queries<Form>(call_, task_, task_.kv_head, shape_, scratch_.queries);
        for (int64_t v = 0; v < shape_.vectors; ++v) scratch_.sum[v] = 0.0f;
        find(call_, task_, shape_.step, task_.first_partition, places_[0]);
        for (int64_t partition = task_.first_partition; partition < task_.last_partition; ++partition) {
            const int64_t turn = (partition - task_.first_partition) % 2;
            const Places& here = places_[turn];
            Places& next = places_[1 - turn];
            const bool last = partition + 1 == task_.last_partition;
            if (!last) find(call_, task_, shape_.step, partition + 1, next);
            attend(here, last ? here : next, task_.partials + (partition - task_.first_partition) * task_.ld_partials);
        }
        if (task_.partials) return;
        for (int64_t v = 0; v < shape_.vectors; ++v) {
            finish(call_, task_, task_.kv_head, v, scratch_.values + v * shape_.stride, scratch_.maximum[v],
                   scratch_.sum[v]);
        }
    }

  private:
    // One partition; `partials` of it, if the task wants them.
    void attend(const Places& here, const Places& next, float* partials) {
        const KVLayout& kv = call_.kv;
        bool keys_ready = false, values_ready = false;
        for (int64_t first = 0; first < shape_.vectors; first += BLOCK_VECTORS) {
            const int64_t count = smaller(BLOCK_VECTORS, shape_.vectors - first);
            const int64_t ld = task_.partials ? shape_.stride + 2 : shape_.stride;
            float* partial = task_.partials ? partials + first * ld : scratch_.partial;
            float maximum[BLOCK_VECTORS] = {}, sum[BLOCK_VECTORS] = {};
            look(call_, task_, shape_, here.start, first, count, begin_, end_, active_from_, active_to_);
            if (active_from_ < active_to_) {
                if (!keys_ready) prepare_keys(here);
                keys_ready = true;
                score(here, first);
                if (!values_ready) prepare_values(here, next);
                values_ready = true;
                for (int64_t v = active_from_; v < active_to_; ++v) {
                    const int64_t head = task_.kv_head * shape_.group + (first + v) % shape_.group;
                    const Scored scored = {scratch_.scores + v * SCORE_STRIDE,
                                           kv.quantised() ? scratch_.key_scales : nullptr,
                                           kv.quantised() ? scratch_.value_scales : nullptr,
                                           here.start,
                                           begin_[v],
                                           end_[v],
                                           call_.alibi_slopes ? call_.alibi_slopes[head] : 0.0f};
                    soften<Form>(call_, scored, weights() + v * SCORE_STRIDE, maximum[v], sum[v], Nothing{});
                }
                weigh(partial, ld);
            }
            for (int64_t v = 0; v < count; ++v) {
                if (task_.partials) {
                    partial[v * ld + shape_.stride] = maximum[v];
                    partial[v * ld + shape_.stride + 1] = sum[v];
                } else {
                    merge(scratch_.values + (first + v) * shape_.stride, scratch_.maximum[first + v],
                          scratch_.sum[first + v], partial + v * ld, maximum[v], sum[v], shape_.stride);
                }
            }
        }
    }

    void prepare_keys(const Places& here) {
        if (call_.kv.quantised()) load_scales(here, shape_.step, scratch_);
        keys_ = here.keys;
        if (reading_.keys) return;
        with_storage(call_.kv.storage, [&](auto storage) {
            widen_keys<Form, decltype(storage)::VALUE>(here, shape_.pairs, scratch_.wide_keys);
        });
        for (int64_t i = 0; i < here.tiles; ++i) wide_[i] = scratch_.wide_keys + i * shape_.pairs * Form::BYTES;
        keys_ = wide_;
    }

    // Where the partition's rows of values are; and the next partition's keys, which come while this one's values are
    // read, an equal part of a tile with every row.
    void prepare_values(const Places& here, const Places& next) {
        const int64_t first = (here.from - here.start) / 2, count = divide_up(here.to - here.start, 2) - first;
        const int64_t in_tile = larger(1, shape_.step / 2), row_bytes = call_.kv.value_row_bytes();
        const int64_t part = call_.kv.tile_bytes() / in_tile;
        for (int64_t i = 0, row = 0; row < count; ++i) {
            const char* values = here.values[smaller(i, here.tiles - 1)];
            const char* ahead = next.keys[smaller(i, next.tiles - 1)];
            for (int64_t k = 0; k < in_tile && row < count; ++k, ++row) {
                rows_[first + row] = values + k * row_bytes;
                ahead_[first + row] = ahead + k * part;
            }
        }
        if (reading_.values) return;
        with_storage(call_.kv.storage, [&](auto storage) {
            widen_values<Form, decltype(storage)::VALUE>(here, shape_.step, shape_.chunks, row_bytes,
                                                         scratch_.wide_values);
        });
        for (int64_t i = 0; i < count; ++i) rows_[first + i] = scratch_.wide_values + i * shape_.chunks * Form::BYTES;
    }

    void score(const Places& here, int64_t first) {
        int64_t lowest = begin_[active_from_], highest = end_[active_from_];
        for (int64_t v = active_from_; v < active_to_; ++v) {
            lowest = smaller(lowest, begin_[v]);
            highest = larger(highest, end_[v]);
        }
        const int64_t base = here.from - here.start;
        const int64_t tile = (lowest - base) / shape_.step, tiles = divide_up(highest - base, shape_.step) - tile;
        const Element* queries = (const Element*)scratch_.queries + first * shape_.pairs * 2 + active_from_ * 2;
        score_tiles<Form>(queries, active_to_ - active_from_, shape_.pairs, keys_ + tile, here.values + tile,
                          call_.kv.pair_bytes(), tiles, shape_.step,
                          scratch_.scores + active_from_ * SCORE_STRIDE + base + tile * shape_.step);
    }

    // The pairs that all active vectors see whole together; what each sees before and after them one by one.
    void weigh(float* out, int64_t ld) {
        const int64_t chunks = shape_.chunks;
        int64_t first = 0, last = PARTITION_KEYS / 2;
        for (int64_t v = active_from_; v < active_to_; ++v) {
            first = larger(first, divide_up(begin_[v], 2));
            last = smaller(last, end_[v] / 2);
            for (int64_t i = 0; i < shape_.stride; i += LANES) store(out + v * ld + i, splat(0.0f));
        }
        const bool together = first < last;
        for (int64_t v = active_from_; v < active_to_; ++v) {
            weigh_one(v, begin_[v], together ? 2 * first : end_[v], out + v * ld);
        }
        if (!together) return;
        weigh_values<Form>(rows_, chunks, weights() + active_from_ * SCORE_STRIDE, active_to_ - active_from_, first,
                           last, ahead_, call_.kv.pair_bytes(), out + active_from_ * ld, ld);
        for (int64_t v = active_from_; v < active_to_; ++v) weigh_one(v, 2 * last, end_[v], out + v * ld);
    }

    void weigh_one(int64_t vector, int64_t begin, int64_t end, float* out) {
        const Element* weight = weights() + vector * SCORE_STRIDE;
        if (begin < end && begin % 2 == 1) {
            weigh_single<Form>(rows_[begin / 2], shape_.chunks, weight + begin - 1, true, out);
            ++begin;
        }
        if (begin / 2 < end / 2) {
            weigh_run<Form, 1, 2>(ListedRows{rows_}, shape_.chunks, weight, begin / 2, end / 2, ListedRows{ahead_}, 0,
                                  out, 0);
        }
        if (begin < end && end % 2 == 1) {
            weigh_single<Form>(rows_[end / 2], shape_.chunks, weight + end - 1, false, out);
        }
    }

    Element* weights() const { return (Element*)scratch_.weights; }

    const AttentionCall& call_;
    const AttentionTask& task_;
    const Shape shape_;
    const Reading reading_;
    Scratch scratch_;
    Places places_[2];
    const char* const* keys_ = nullptr;
    const char* wide_[PARTITION_KEYS];       // tiles of keys
    const char* rows_[PARTITION_KEYS / 2];   // of values, by pair of the partition
    const char* ahead_[PARTITION_KEYS / 2];  // what comes next, for as many rows
    int64_t begin_[BLOCK_VECTORS], end_[BLOCK_VECTORS], active_from_ = 0, active_to_ = 0;
};

}  // namespace

int64_t attention_scratch_bytes(const AttentionCall& call, int64_t rows) {
    Scratch scratch;
    const int64_t many = place(call, shape_of(call, rows), scratch, nullptr);
    return call.few(1) ? larger(many, attention_abreast_scratch_bytes(call, rows)) : many;
}

void attention(const AttentionCall& call, const AttentionTask& task, void* memory) {
    if (call.few(task.rows)) return attention_abreast(call, task, memory);
    with_form(call, [&](auto form) { Worker<decltype(form)>(call, task, memory).run(); });
}

void attention_merge(const AttentionCall& call, const AttentionTask& task) {
    const Shape shape = shape_of(call, task.rows);
    const int64_t ld = shape.stride + 2;
    for (int64_t vector = 0; vector < shape.vectors; ++vector) {
        // The first partition's partial is the running state: it is not read again.
        float* values = task.partials + vector * ld;
        float maximum = values[shape.stride], sum = values[shape.stride + 1];
        for (int64_t p = 1; p < task.last_partition - task.first_partition; ++p) {
            const float* next = values + p * task.ld_partials;
            merge(values, maximum, sum, next, next[shape.stride], next[shape.stride + 1], shape.stride);
        }
        finish(call, task, task.kv_head, vector, values, maximum, sum);
    }
}

}  // namespace linnet::LINNET_TIER
