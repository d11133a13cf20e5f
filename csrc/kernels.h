// SPDX-License-Identifier: Apache-2.0
// The functions of one instruction-set tier, as the executor sees them. Plain data only; rows are [rows, width] fp32
// unless said otherwise, ld is the distance between rows in elements. No function depends on how rows are split.
#pragma once

#include "linear.h"

namespace linnet {

enum class Activation : int32_t { silu, gelu, gelu_tanh, relu };
enum class RopeStyle : int32_t { half, interleaved };

// Keys of a softmax partial: partitions start at absolute multiples of this, whatever the chunking.
constexpr int64_t PARTITION_KEYS = 256;
// Keys lie in tiles of this many, one lane each.
constexpr int64_t TILE_KEYS = 16;

// One layer's paged KV. A block is [kv_heads][key tiles][head_size][16 keys] followed by
// [kv_heads][block_size][value_stride]: scores of 16 keys are one chain of FMAs over the dimensions, without a
// horizontal sum. bf16 keys lie as [pairs of dimensions][16 keys][2], a dot product's operand and cheap to widen.
struct KVLayout {
    bool bf16 = false;  // else fp32
    int64_t kv_heads = 0;
    int64_t head_size = 0;  // of keys
    int64_t value_head_size = 0;
    int64_t block_size = 0;  // tokens; a multiple of 16, or a power of two below it

    int64_t element_bytes() const { return bf16 ? 2 : 4; }
    int64_t key_tiles() const { return (block_size + TILE_KEYS - 1) / TILE_KEYS; }
    int64_t padded_head() const { return (head_size + 1) / 2 * 2; }
    int64_t tile_elements() const { return padded_head() * TILE_KEYS; }
    int64_t key_index(int64_t lane, int64_t dimension) const {  // elements from a tile's start
        return bf16 ? dimension / 2 * (2 * TILE_KEYS) + lane * 2 + dimension % 2 : dimension * TILE_KEYS + lane;
    }
    int64_t value_stride() const { return (value_head_size + 15) / 16 * 16; }
    int64_t value_offset() const { return kv_heads * key_tiles() * tile_elements(); }  // elements from a block's start
    int64_t block_elements() const { return value_offset() + kv_heads * block_size * value_stride(); }
    int64_t block_bytes() const { return (block_elements() * element_bytes() + 63) / 64 * 64; }
};

struct AttentionCall {
    KVLayout kv;
    int64_t heads = 0;
    float scale = 1.0f;
    int64_t window = 0;                   // 0: none
    float softcap = 0.0f;                 // 0: none
    const float* alibi_slopes = nullptr;  // [heads] or null
};

// Query rows of one sequence and one kv head against the partitions [first_partition, last_partition).
struct AttentionTask {
    const void* state = nullptr;
    const int32_t* block_table = nullptr;
    const float* query = nullptr;  // row 0 of the task, all heads
    int64_t ld_query = 0;
    int64_t rows = 0;
    int64_t first_position = 0;  // of row 0
    int64_t kv_head = 0;
    int64_t first_partition = 0, last_partition = 0;
    float* output = nullptr;  // row 0, all heads; written when partials is null
    int64_t ld_output = 0;
    // Else unmerged partials: [partition - first_partition][rows * group][value_stride + 2]: values, maximum, sum.
    float* partials = nullptr;
};

struct KernelTable {
    const char* isa;
    const LinearKernels* linear;

    // size divides width; gain [size]; bias [size] or null.
    void (*rms_norm)(const float* x, float* y, int64_t rows, int64_t width, int64_t size, const float* gain,
                     float offset, float epsilon);
    void (*layer_norm)(const float* x, float* y, int64_t rows, int64_t width, int64_t size, const float* gain,
                       const float* bias, float offset, float epsilon);
    void (*add)(const float* a, const float* b, float* y, int64_t n);
    void (*scale)(const float* x, float* y, int64_t n, float factor);
    void (*softcap)(const float* x, float* y, int64_t n, float limit);
    // up is null for one input.
    void (*gate)(const float* x, const float* up, float* y, int64_t n, Activation activation);
    // tables: cosine and sine [positions, rotary_size / 2]. Elements from rotary_size on are copied.
    void (*rope)(const float* x, float* y, int64_t rows, int64_t width, int64_t head_size, int64_t rotary_size,
                 RopeStyle style, const int32_t* positions, const float* cosine, const float* sine);
    // key, value: rows of all kv heads; slots [rows] = block * block_size + offset.
    void (*kv_write)(const KVLayout& kv, void* state, const float* key, const float* value, const int32_t* slots,
                     int64_t rows);
    // Scratch for a task of `rows` query rows (64-byte aligned).
    int64_t (*attention_scratch_bytes)(const AttentionCall& call, int64_t rows);
    void (*attention)(const AttentionCall& call, const AttentionTask& task, void* scratch);
    // Merges a task's partials, left to right, into task.output (task.partials is read).
    void (*attention_merge)(const AttentionCall& call, const AttentionTask& task);
};

namespace portable {
const KernelTable& kernel_table();
}
namespace avx2 {
const KernelTable& kernel_table();
}
namespace avx512 {
const KernelTable& kernel_table();
}
namespace avx512_vnni {
const KernelTable& kernel_table();
}

}  // namespace linnet
