// SPDX-License-Identifier: Apache-2.0
// The functions of one instruction-set tier, as the executor sees them. Plain data only; rows are [rows, width] fp32
// unless said otherwise, ld is the distance between rows in elements. No function depends on how rows are split.
#pragma once

#include "linear.h"

namespace linnet {

enum class Activation : int32_t { silu, gelu, gelu_tanh, gelu_sigmoid, relu, relu_squared };
enum class RopeStyle : int32_t { half, interleaved };

// Keys of a softmax partial: partitions start at absolute multiples of this, whatever the chunking.
constexpr int64_t PARTITION_KEYS = 256;
// Query vectors (rows x heads of a group) of one kv head up to which a task reads several kv heads side by side.
constexpr int64_t FEW_VECTORS = 8;
// Keys lie in tiles of this many, one lane each.
constexpr int64_t TILE_KEYS = 16;

enum class KVStorage : int32_t { fp32, bf16, int8, fp8, int4 };

// One layer's paged KV. Its unit is a pair vector: 16 lanes of two elements. Keys: a lane is one of 16 keys and the two
// elements are neighbouring dimensions; values: a lane is one of 16 dimensions and the two elements are the keys 2i and
// 2i + 1. So scores of 16 keys, and 16 dimensions of the output, are chains of (pair) dot products without a horizontal
// sum. The keys of all blocks come first, then the values of all blocks, then the scales, so that neighbouring blocks
// are read in one go. Of one block
//   keys     [kv_heads][key tiles][key_pairs] pair vectors
//   values   [kv_heads][pairs of keys][value_chunks] pair vectors
//   scales   [kv_heads][key tiles][key, value][16] fp32, of quantised storage: value = code * scale, per token and head
// and each starts at a multiple of 64 bytes. A pair vector of
//   fp32     128 bytes: the 16 first elements, then the 16 second ones
//   bf16     64 bytes: (first, second) per lane
//   int8     32 bytes: (first, second) per lane; fp8 (e4m3) too
//   int4     two of them in 32 bytes: (first, second) per lane, the low nibbles are the even pair vector's
// so that no two tokens share a byte.
struct KVLayout {
    KVStorage storage = KVStorage::fp32;
    int64_t kv_heads = 0;
    int64_t head_size = 0;  // of keys
    int64_t value_head_size = 0;
    int64_t block_size = 0;  // tokens; a multiple of 16, or a power of two below it

    bool quantised() const { return storage != KVStorage::fp32 && storage != KVStorage::bf16; }
    int64_t pair_bytes() const {
        constexpr int64_t bytes[] = {128, 64, 32, 32, 16};
        return bytes[int32_t(storage)];
    }
    int64_t even(int64_t pair_vectors) const {
        return storage == KVStorage::int4 ? (pair_vectors + 1) / 2 * 2 : pair_vectors;
    }
    int64_t key_tiles() const { return (block_size + TILE_KEYS - 1) / TILE_KEYS; }
    int64_t key_pairs() const { return even((head_size + 1) / 2); }
    int64_t tile_bytes() const { return key_pairs() * pair_bytes(); }
    int64_t value_rows() const { return (block_size + 1) / 2; }
    int64_t value_chunks() const { return even((value_head_size + 15) / 16); }
    int64_t value_row_bytes() const { return value_chunks() * pair_bytes(); }
    int64_t value_stride() const { return value_chunks() * 16; }  // of an output row, in floats
    int64_t key_block_bytes() const { return aligned(kv_heads * key_tiles() * tile_bytes()); }
    int64_t value_block_bytes() const { return aligned(kv_heads * value_rows() * value_row_bytes()); }
    int64_t scale_block_bytes() const { return quantised() ? kv_heads * key_tiles() * (2 * TILE_KEYS * 4) : 0; }
    int64_t block_bytes() const { return key_block_bytes() + value_block_bytes() + scale_block_bytes(); }

    // Bytes from the start of a block's part.
    int64_t key_tile_at(int64_t head, int64_t offset) const {
        return (head * key_tiles() + offset / TILE_KEYS) * tile_bytes();
    }
    int64_t value_row_at(int64_t head, int64_t offset) const {
        return (head * value_rows() + offset / 2) * value_row_bytes();
    }
    int64_t scales_at(int64_t head, int64_t offset) const {
        return (head * key_tiles() + offset / TILE_KEYS) * (2 * TILE_KEYS * 4);
    }

  private:
    static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
};

// One layer's pool of `blocks` blocks.
struct KVMemory {
    char *keys = nullptr, *values = nullptr, *scales = nullptr;

    KVMemory() = default;
    KVMemory(const KVLayout& layout, char* start, int64_t blocks)
        : keys(start),
          values(keys + blocks * layout.key_block_bytes()),
          scales(values + blocks * layout.value_block_bytes()) {}
};

struct AttentionCall {
    KVLayout kv;
    int64_t heads = 0;
    bool rounded = false;  // queries and weights are rounded to bf16; storage is exact in bf16 then
    float scale = 1.0f;
    int64_t window = 0;                   // 0: none
    float softcap = 0.0f;                 // 0: none
    const float* alibi_slopes = nullptr;  // [heads] or null
    const float* sinks = nullptr;         // [heads] or null: of every head a score more, whose value is zero
    bool full = false;                    // rows see all keys of their sequence, not those up to their own only

    // Few query rows are bound by memory, which is fastest read in the order in which it lies: all kv heads of a block
    // before the next block. Blocks of one token store half a pair and are not worth it.
    bool few(int64_t rows) const { return rows * (heads / kv.kv_heads) <= FEW_VECTORS && kv.block_size > 1; }
    // kv heads that a task of few rows takes at most: a partition's scores stay in the second cache.
    int64_t heads_abreast(int64_t rows) const {
        constexpr int64_t PARTITION_BYTES = 512 << 10;
        if (!few(rows)) return 1;
        const int64_t head_bytes = PARTITION_KEYS / kv.block_size * kv.block_bytes() / kv.kv_heads;
        const int64_t heads_at_once = PARTITION_BYTES / (head_bytes > 0 ? head_bytes : PARTITION_BYTES);
        return heads_at_once < 1 ? 1 : heads_at_once < kv.kv_heads ? heads_at_once : kv.kv_heads;
    }
};

// Query rows of one sequence and some kv heads against the partitions [first_partition, last_partition).
struct AttentionTask {
    KVMemory memory;
    const int32_t* block_table = nullptr;
    const float* query = nullptr;  // row 0 of the task, all heads
    int64_t ld_query = 0;
    int64_t rows = 0;
    int64_t first_position = 0;         // of row 0
    int64_t context = 0;                // keys of the sequence
    int64_t kv_head = 0, kv_heads = 1;  // more than one only where few(rows)
    int64_t first_partition = 0, last_partition = 0;
    // How many keys, from the sequence's first on, a row sees at most.
    int64_t keys_of(const AttentionCall& call, int64_t row) const {
        return call.full ? context : first_position + row + 1;
    }
    float* output = nullptr;  // row 0, all heads; written when partials is null
    int64_t ld_output = 0;
    // Else unmerged partials: [kv_heads][rows * group][value_stride + 2]: values, maximum, sum; those of the next
    // partition are ld_partials further on.
    float* partials = nullptr;
    int64_t ld_partials = 0;
};

// A causal depthwise convolution: y[t][c] = bias[c] + sum over k, ascending, of weight[k][c] * x[t - taps + 1 + k][c].
struct ConvCall {
    int64_t width = 0, taps = 0;
    const float* weight = nullptr;  // [taps][width]
    const float* bias = nullptr;    // [width] or null
};

// A selective scan. Of every channel c and state n, row by row:
//   step = softplus(steps[c / head_size] + bias[c])
//   h[n][c] = exp(step * decay[n][c]) * h[n][c] + step * x[c] * in[n]
//   y[c] = sum over n, ascending, of h[n][c] * out[n], + skip[c] * x[c]
// where in and out are those of the channel's group.
struct ScanCall {
    static constexpr int64_t MOST_STATES = 256;
    int64_t width = 0, states = 0, head_size = 1, groups = 1;
    bool shared_decay = false;     // one decay for all states of a channel
    const float* decay = nullptr;  // [states or 1][width], negative
    const float* skip = nullptr;   // [width]
    const float* bias = nullptr;   // [width] or null
};

// Rows of one sequence, from the first of a step to the last, and what it carries: of a convolution the last
// [taps - 1][width] inputs, of a scan h [states][width].
struct SequenceRows {
    const float* x = nullptr;  // [rows, width]
    float* y = nullptr;
    int64_t rows = 0;
    float* state = nullptr;
    bool fresh = false;  // the sequence begins here: its state is zeros, whatever lies there
    // Of a scan.
    const float* steps = nullptr;               // [rows, width / head_size]
    const float *in = nullptr, *out = nullptr;  // [rows, groups * states]
};

// How an activation is rounded whose codes are not multiplied as integers.
struct Rounding {
    bool fp8 = false;  // e4m3; else int8
    bool symmetric = true;
    bool dynamic = true;
    int64_t group_size = 0;                 // columns that share a dynamic scale
    float scale = 1.0f, zero_point = 0.0f;  // static ones
};

// activation(x), or activation(x) * (up + up_offset); a limit above 0 holds x below it, and up within it, first.
struct Gating {
    Activation activation = Activation::silu;
    float limit = 0.0f, up_offset = 0.0f;
};

// How a token's experts are chosen: the `chosen` best of its scores' softmax or sigmoids, ties to the lowest expert; of
// the `groups_chosen` groups of neighbours that hold the best ones alone.
struct Routing {
    int64_t experts = 0, chosen = 0;
    int64_t groups = 1, groups_chosen = 1;
    bool sigmoid = false;
    bool normalise = false;             // so that a token's weights sum to 1
    float factor = 1.0f;                // of every weight, last
    int64_t group_best = 1;             // a group ranks by the sum of so many of its greatest
    const float* correction = nullptr;  // [experts] or null: added for the choice, not for the weights
};
constexpr int64_t MOST_EXPERTS = 1024;

// A matrix with one narrow side as kernels read it: [outputs / PANEL, rounded up][columns][PANEL], zeros past the last
// output; fp32 or bf16.
struct NarrowWeight {
    static constexpr int64_t PANEL = 16;
    const void* panels = nullptr;
    bool bf16 = false;
    int64_t outputs = 0, columns = 0;
};

// Some rows times such a matrix: y = factor * sum, or y + sum where it adds.
struct LowRankCall {
    NarrowWeight weight;
    const float* x = nullptr;
    int64_t ldx = 0;
    const int32_t* x_rows = nullptr;  // which rows of x; null: one after the other
    float* y = nullptr;
    int64_t ldy = 0;
    const int32_t* y_rows = nullptr;
    float factor = 1.0f;
    bool adds = false;
};

struct KernelTable {
    const char* isa;
    const LinearKernels* linear;

    // size divides width; gain [gains] and bias [gains] or null, where gains is size (those of every run) or width.
    void (*rms_norm)(const float* x, float* y, int64_t rows, int64_t width, int64_t size, const float* gain,
                     int64_t gains, float offset, float epsilon);
    void (*layer_norm)(const float* x, float* y, int64_t rows, int64_t width, int64_t size, const float* gain,
                       const float* bias, int64_t gains, float offset, float epsilon);
    void (*add)(const float* a, const float* b, float* y, int64_t n);
    void (*scale)(const float* x, float* y, int64_t n, float factor);
    void (*softcap)(const float* x, float* y, int64_t n, float limit);
    // Runs of `size` neighbours, a power of two from 2 on that divides n, each times the normalised Walsh-Hadamard
    // matrix.
    void (*hadamard)(const float* x, float* y, int64_t n, int64_t size);
    // The numbers that the codes stand for.
    void (*round_rows)(const float* x, float* y, int64_t rows, int64_t width, const Rounding& rounding);
    // up is null for one input.
    void (*gate)(const float* x, const float* up, float* y, int64_t n, const Gating& gating);
    // scores [rows, experts]; ids and weights [rows, chosen], the best first.
    void (*route)(const float* scores, int32_t* ids, float* weights, int64_t rows, const Routing& routing);
    // x [rows, chosen, width], weights [rows, chosen]: y = weights[0] * x[0], then + weights[1] * x[1] and so on.
    void (*combine)(const float* x, const float* weights, float* y, int64_t rows, int64_t chosen, int64_t width);
    // Rows [begin, end) of the call, outputs of panels [first, last). A row's bits depend on no other row.
    void (*low_rank)(const LowRankCall& call, int64_t begin, int64_t end, int64_t first, int64_t last);
    // tables: cosine and sine [positions, rotary_size / 2]. Elements from rotary_size on are copied.
    void (*rope)(const float* x, float* y, int64_t rows, int64_t width, int64_t head_size, int64_t rotary_size,
                 RopeStyle style, const int32_t* positions, const float* cosine, const float* sine);
    // key, value: rows of all kv heads; slots [rows] = block * block_size + offset.
    void (*kv_write)(const KVLayout& kv, const KVMemory& memory, const float* key, const float* value,
                     const int32_t* slots, int64_t rows);
    // Scratch for a task of `rows` query rows (64-byte aligned).
    int64_t (*attention_scratch_bytes)(const AttentionCall& call, int64_t rows);
    void (*attention)(const AttentionCall& call, const AttentionTask& task, void* scratch);
    // Merges the partials of a task of one kv head, left to right, into task.output (task.partials is read).
    void (*attention_merge)(const AttentionCall& call, const AttentionTask& task);
    // Channels [begin, end) of rows in their order: what a channel becomes depends on no other channel, and not on
    // where a step began.
    void (*conv)(const ConvCall& call, const SequenceRows& rows, int64_t begin, int64_t end);
    void (*scan)(const ScanCall& call, const SequenceRows& rows, int64_t begin, int64_t end);
};

LINNET_TIERS(LINNET_DECLARE_TABLE, KernelTable, kernel_table)

}  // namespace linnet
