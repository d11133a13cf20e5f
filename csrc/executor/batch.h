// SPDX-License-Identifier: Apache-2.0
// One step's integers, borrowed, and their bounds.
#pragma once

#include <cstdint>
#include <vector>

namespace linnet {

struct Limits {
    int64_t max_tokens = 0, max_sequences = 0, max_outputs = 0, block_size = 0, max_blocks_per_sequence = 0;
    int64_t vocabulary = 0;
    int64_t longest = 0;   // tokens of a sequence, where the program has a row for each; 0: whatever its blocks hold
    int64_t adapters = 0;  // that are known
    int64_t positions() const { return max_blocks_per_sequence * block_size; }
};

enum class RowCount : int32_t { tokens, outputs, logits };

struct Batch {
    const int32_t* token_ids = nullptr;        // [tokens]
    const int32_t* positions = nullptr;        // [tokens]
    const int32_t* kv_slots = nullptr;         // [groups, tokens]
    const int32_t* query_start = nullptr;      // [sequences + 1]
    const int32_t* context_lengths = nullptr;  // [sequences]
    const int32_t* block_tables = nullptr;     // [groups, sequences, blocks]
    const int32_t* output_rows = nullptr;      // [outputs]
    const int32_t* state_slots = nullptr;      // [sequences], below max_sequences, no two alike; null: none are needed
    int64_t tokens = 0, sequences = 0, outputs = 0, blocks = 0;
    int64_t logits = 0;                 // of the outputs, the first ones, whose logits are wanted
    int64_t groups = 1;                 // of states, each with slots and tables of its own; 1: all states have the same
    const int32_t* adapters = nullptr;  // [tokens], of each row, -1: none; null: none at all

    int64_t count(RowCount rows) const {
        return rows == RowCount::tokens ? tokens : rows == RowCount::outputs ? outputs : logits;
    }
    const int32_t* slots_of(int64_t group) const { return kv_slots + group * tokens; }
    const int32_t* table_of(int64_t group, int64_t sequence) const {
        return block_tables + (group * sequences + sequence) * blocks;
    }
};

// Throws std::invalid_argument naming field, place and value of the first thing that would read or write out of bounds.
// num_blocks: of each group.
void validate(const Batch& batch, const Limits& limits, const std::vector<int64_t>& num_blocks);

}  // namespace linnet
