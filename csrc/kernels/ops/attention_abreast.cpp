// SPDX-License-Identifier: Apache-2.0
// Attention of few query rows (decoding), bound by memory. The kv heads of a task go side by side through each block,
// and of a partition all keys come first and then all values: so memory is read in the order in which it lies, which is
// what the hardware's prefetchers follow. Sums are the same chains, in the same order, as with many rows.
#include "attention_task.h"
#include "ops.h"

namespace linnet::LINNET_TIER {

namespace {

constexpr int FIRST_CACHE = 3;             // what is prefetched is used soon
constexpr int64_t AHEAD_BYTES = 16 << 10;  // prefetched, from where keys or values are computed with

struct AbreastScratch {
    float* queries;  // [heads][pairs][BLOCK_VECTORS][2] elements
    float* scores;   // [heads][vectors][SCORE_STRIDE]
    float* weights;  // the same, elements
    float* key_scales;
    float* value_scales;  // [heads][SCORE_STRIDE]
    float* partial;       // [heads][vectors][stride + 2]
    float* values;        // [heads][vectors][stride]: running sums, with
    float* maximum;
    float* sum;
    char* wide;  // one tile of keys, or its rows of values
};

// Returns the bytes; memory may be null.
int64_t place(const AttentionCall& call, const Shape& shape, int64_t heads, AbreastScratch& s, void* memory) {
    int64_t bytes = 0;
    const auto floats = [&](int64_t n) {
        float* start = memory ? (float*)((char*)memory + bytes) : nullptr;
        bytes += divide_up(n * 4, 64) * 64;
        return start;
    };
    const int64_t vectors = heads * shape.vectors, scales = call.kv.quantised() ? heads * SCORE_STRIDE : 0;
    s.queries = floats(heads * shape.pairs * BLOCK_VECTORS * 2);
    s.scores = floats(vectors * SCORE_STRIDE);
    s.weights = floats(vectors * SCORE_STRIDE);
    s.key_scales = floats(scales);
    s.value_scales = floats(scales);
    s.partial = floats(vectors * (shape.stride + 2));
    s.values = floats(vectors * shape.stride);
    s.maximum = floats(vectors);
    s.sum = floats(vectors);
    s.wide = (char*)floats(larger(shape.pairs, TILE_KEYS / 2 * shape.chunks) * Planar::BYTES / 4);
    return bytes;
}

template <typename Form>
class Abreast {
    using Element = typename Form::Element;

  public:
    Abreast(const AttentionCall& call, const AttentionTask& task, void* memory)
        : call_(call),
          task_(task),
          kv_(call.kv),
          shape_(shape_of(call, task.rows)),
          reading_(read_in_place<Form>(call)),
          heads_(task.kv_heads),
          ld_(shape_.stride + 2),
          key_head_bytes_(kv_.key_tiles() * kv_.tile_bytes()),
          value_head_bytes_(kv_.value_rows() * kv_.value_row_bytes()),
          tiles_of_block_(kv_.key_tiles()) {
        place(call, shape_, heads_, scratch_, memory);
    }

    void run() {
        const int64_t vectors = heads_ * shape_.vectors, partitions_end = divide_up(keys_end(), PARTITION_KEYS);
        for (int64_t head = 0; head < heads_; ++head) {
            pack_queries<Form>(call_, task_, task_.kv_head + head, shape_, (float*)queries(head));
        }
        for (int64_t v = 0; v < vectors; ++v) scratch_.sum[v] = 0.0f;
        find(call_, task_, shape_.step, task_.first_partition, places_[0]);
        for (int64_t partition = task_.first_partition; partition < task_.last_partition; ++partition) {
            const int64_t turn = (partition - task_.first_partition) % 2;
            const Places& here = places_[turn];
            Places& next = places_[1 - turn];
            next.tiles = 0;
            if (partition + 1 < partitions_end) find(call_, task_, shape_.step, partition + 1, next);
            follow(here, next);
            if (task_.partials) {
                attend(here, task_.partials + (partition - task_.first_partition) * task_.ld_partials);
                continue;
            }
            attend(here, scratch_.partial);
            for (int64_t v = 0; v < vectors; ++v) {
                const float* added = scratch_.partial + v * ld_;
                merge(scratch_.values + v * shape_.stride, scratch_.maximum[v], scratch_.sum[v], added,
                      added[shape_.stride], added[shape_.stride + 1], shape_.stride);
            }
        }
        if (task_.partials) return;
        for (int64_t v = 0; v < vectors; ++v) {
            finish(call_, task_, task_.kv_head + v / shape_.vectors, v % shape_.vectors,
                   scratch_.values + v * shape_.stride, scratch_.maximum[v], scratch_.sum[v]);
        }
    }

  private:
    int64_t keys_end() const { return task_.keys_of(call_, task_.rows - 1); }
    Element* queries(int64_t head) const {
        return (Element*)scratch_.queries + head * shape_.pairs * BLOCK_VECTORS * 2;
    }
    Element* weights(int64_t head, int64_t v) const {
        return (Element*)scratch_.weights + (head * shape_.vectors + v) * SCORE_STRIDE;
    }
    float* values(float* partial, int64_t head, int64_t v) const { return partial + (head * shape_.vectors + v) * ld_; }

    // Prefetching goes on where the partition before left it: AHEAD_BYTES into the keys of this one.
    // In one step one head's keys or values of the tiles that share a block.
    void follow(const Places& here, const Places& next) {
        ahead_ = &here;
        after_ = &next;
        ahead_tile_ = ahead_head_ = ahead_part_ = 0;
        for (int64_t bytes = 0; bytes < AHEAD_BYTES; bytes += key_head_bytes_) step_ahead();
    }

    const char* step_ahead() {
        if (ahead_part_ == 2) {
            if (ahead_ == after_ || after_->tiles == 0) return (const char*)scratch_.queries;  // costs nothing
            ahead_ = after_;
            ahead_part_ = 0;
        }
        const char* at = ahead_part_ == 0 ? ahead_->keys[ahead_tile_] + ahead_head_ * key_head_bytes_
                                          : ahead_->values[ahead_tile_] + ahead_head_ * value_head_bytes_;
        if (++ahead_head_ == heads_) {
            ahead_head_ = 0;
            ahead_tile_ += tiles_of_block(*ahead_, ahead_tile_);
            if (ahead_tile_ >= ahead_->tiles) {
                ahead_tile_ = 0;
                ++ahead_part_;
            }
        }
        return at;
    }

    // Tiles from `tile` on that lie in its block.
    int64_t tiles_of_block(const Places& places, int64_t tile) const {
        const int64_t in_block = (places.from + tile * shape_.step) % kv_.block_size / TILE_KEYS;
        return smaller(tiles_of_block_ - in_block, places.tiles - tile);
    }

    // One partition; its partials (values, maximum, sum of each head's vectors) at `partial`.
    void attend(const Places& here, float* partial) {
        look(call_, task_, shape_, here.start, 0, shape_.vectors, begin_, end_, active_from_, active_to_);
        const int64_t size = heads_ * shape_.vectors * ld_;
        for (int64_t i = 0; i < size; ++i) partial[i] = 0.0f;
        if (active_from_ == active_to_) return;
        score(here);
        extra_ = 0;
        for (int64_t head = 0; head < heads_; ++head) {
            for (int64_t v = active_from_; v < active_to_; ++v, ++extra_) {
                soften_one(here, head, v, values(partial, head, v));
            }
        }
        weigh(here, partial);
    }

    void score(const Places& here) {
        int64_t count = 0;
        for (int64_t tile = 0; tile < here.tiles; tile += count) {
            count = tiles_of_block(here, tile);
            for (int64_t head = 0; head < heads_; ++head) {
                const char* keys = here.keys[tile] + head * key_head_bytes_;
                const char* ahead = step_ahead();
                for (int64_t i = 0; i < count; ++i, keys += kv_.tile_bytes(), ahead += kv_.tile_bytes()) {
                    const int64_t at =
                        head * shape_.vectors * SCORE_STRIDE + here.from - here.start + (tile + i) * shape_.step;
                    over_vectors(shape_.vectors, [&](auto n, int64_t v) {
                        const char* tiles[] = {widened_keys(keys)};
                        score_block<Form, decltype(n)::VALUE, 1, FIRST_CACHE>(
                            queries(head) + v * 2, shape_.pairs, tiles, &ahead, kv_.pair_bytes(), shape_.step,
                            scratch_.scores + at + v * SCORE_STRIDE);
                    });
                    if (kv_.quantised()) load_scales(here, head, tile + i);
                }
            }
        }
    }

    const char* widened_keys(const char* keys) const {
        if (reading_.keys) return keys;
        with_storage(kv_.storage, [&](auto storage) {
            widen_run<Form, decltype(storage)::VALUE>(keys, shape_.pairs, scratch_.wide);
        });
        return scratch_.wide;
    }

    // Tiles of a head are met left to right, as scores are stored: a short tile's spare lanes are overwritten.
    void load_scales(const Places& here, int64_t head, int64_t tile) const {
        const int64_t at = head * SCORE_STRIDE + here.from - here.start + tile * shape_.step;
        const float* scales = here.scales[tile] + head * tiles_of_block_ * (2 * TILE_KEYS);
        store(scratch_.key_scales + at, load(scales));
        store(scratch_.value_scales + at, load(scales + TILE_KEYS));
    }

    void soften_one(const Places& here, int64_t head, int64_t v, float* partial) {
        const int64_t query_head = (task_.kv_head + head) * shape_.group + v % shape_.group;
        const bool scaled = kv_.quantised();
        const Scored scored = {scratch_.scores + (head * shape_.vectors + v) * SCORE_STRIDE,
                               scaled ? scratch_.key_scales + head * SCORE_STRIDE : nullptr,
                               scaled ? scratch_.value_scales + head * SCORE_STRIDE : nullptr,
                               here.start,
                               begin_[v],
                               end_[v],
                               call_.alibi_slopes ? call_.alibi_slopes[query_head] : 0.0f};
        if (begin_[v] >= end_[v]) return;
        soften<Form>(call_, scored, weights(head, v), partial[shape_.stride], partial[shape_.stride + 1],
                     Trail{step_ahead(), key_head_bytes_ * LANES / (2 * PARTITION_KEYS)});
    }

    // The pairs that all active vectors see whole together; what each sees before and after them one by one.
    void weigh(const Places& here, float* partial) {
        int64_t first = 0, last = PARTITION_KEYS / 2;
        for (int64_t v = active_from_; v < active_to_; ++v) {
            first = larger(first, divide_up(begin_[v], 2));
            last = smaller(last, end_[v] / 2);
        }
        const bool together = first < last;
        const auto alone = [&](int64_t v, int64_t begin, int64_t end) {
            for (int64_t head = 0; head < heads_; ++head) weigh_one(here, head, v, begin, end, partial);
        };
        for (int64_t v = active_from_; v < active_to_; ++v) alone(v, begin_[v], together ? 2 * first : end_[v]);
        if (!together) return;
        weigh_together(here, first, last, partial);
        for (int64_t v = active_from_; v < active_to_; ++v) alone(v, 2 * last, end_[v]);
    }

    void weigh_together(const Places& here, int64_t first, int64_t last, float* partial) {
        const int64_t base = (here.from - here.start) / 2, in_tile = shape_.step / 2;
        const int64_t row_bytes = kv_.value_row_bytes(), active = active_to_ - active_from_;
        int64_t count = 0, due = 0;
        const int64_t steps = divide_up(here.tiles, tiles_of_block_) * heads_;
        for (int64_t tile = 0; tile < here.tiles; tile += count) {
            count = tiles_of_block(here, tile);
            const int64_t start = base + tile * in_tile;
            for (int64_t head = 0; head < heads_; ++head) {
                const char* rows = here.values[tile] + head * value_head_bytes_;
                due += extra_;  // softmax ran ahead: so many steps are left out, evenly
                const bool left_out = due >= steps;
                if (left_out) due -= steps;
                const char* ahead = left_out ? rows : step_ahead();
                for (int64_t i = 0; i < count; ++i, rows += in_tile * row_bytes, ahead += in_tile * row_bytes) {
                    const int64_t from = larger(first, start + i * in_tile);
                    const int64_t to = smaller(last, start + (i + 1) * in_tile);
                    if (from >= to) continue;
                    const int64_t skipped = (from - start - i * in_tile) * row_bytes;
                    const char* wide = rows + skipped;
                    int64_t wide_row_bytes = row_bytes;
                    if (!reading_.values) {
                        wide_row_bytes = shape_.chunks * Form::BYTES;
                        widen_values(wide, to - from);
                        wide = scratch_.wide;
                    }
                    over_vectors(active, [&](auto n, int64_t v) {
                        weigh_tile<decltype(n)::VALUE>(wide, wide_row_bytes, weights(head, active_from_ + v) + 2 * from,
                                                       to - from, ahead + skipped,
                                                       values(partial, head, active_from_ + v));
                    });
                }
            }
        }
    }

    template <int vectors>
    void weigh_tile(const char* rows, int64_t row_bytes, const Element* weights, int64_t count, const char* ahead,
                    float* out) const {
        weigh_run<Form, vectors, FIRST_CACHE>(EvenRows{rows, row_bytes}, shape_.chunks, weights, 0, count,
                                              EvenRows{ahead, kv_.value_row_bytes()}, kv_.pair_bytes(), out, ld_);
    }

    void widen_values(const char* rows, int64_t count) const {
        with_storage(kv_.storage, [&](auto storage) {
            widen_run<Form, decltype(storage)::VALUE>(rows, count * shape_.chunks, scratch_.wide);
        });
    }

    // Keys [begin, end) of the partition for one vector: few, at the edges of what it sees.
    void weigh_one(const Places& here, int64_t head, int64_t v, int64_t begin, int64_t end, float* partial) const {
        const int64_t base = here.from - here.start;
        for (int64_t key = begin; key < end; key = key / 2 * 2 + 2) {
            const int64_t pair = key / 2 * 2, tile = (pair - base) / shape_.step;
            const char* row =
                here.values[tile] + head * value_head_bytes_ + (pair - base) % shape_.step / 2 * kv_.value_row_bytes();
            if (!reading_.values) {
                widen_values(row, 1);
                row = scratch_.wide;
            }
            const Element* two = weights(head, v) + pair;
            float* out = values(partial, head, v);
            if (key == pair && pair + 2 <= end) {
                weigh_tile<1>(row, 0, two, 1, row, out);
            } else {
                weigh_single<Form>(row, shape_.chunks, two, key != pair, out);
            }
        }
    }

    const AttentionCall& call_;
    const AttentionTask& task_;
    const KVLayout& kv_;
    const Shape shape_;
    const Reading reading_;
    const int64_t heads_, ld_, key_head_bytes_, value_head_bytes_, tiles_of_block_;
    AbreastScratch scratch_;
    Places places_[2];
    const Places *ahead_ = nullptr, *after_ = nullptr;
    int64_t ahead_tile_ = 0, ahead_part_ = 0, ahead_head_ = 0, extra_ = 0;
    int64_t begin_[FEW_VECTORS], end_[FEW_VECTORS], active_from_ = 0, active_to_ = 0;
};

}  // namespace

int64_t attention_abreast_scratch_bytes(const AttentionCall& call, int64_t rows) {
    const int64_t few_rows = smaller(rows, FEW_VECTORS / shape_of(call, 1).group);
    AbreastScratch scratch;
    return place(call, shape_of(call, few_rows), call.heads_abreast(few_rows), scratch, nullptr);
}

void attention_abreast(const AttentionCall& call, const AttentionTask& task, void* memory) {
    with_form(call, [&](auto form) { Abreast<decltype(form)>(call, task, memory).run(); });
}

}  // namespace linnet::LINNET_TIER
