// SPDX-License-Identifier: Apache-2.0
#include "batch.h"

#include <stdexcept>
#include <string>

namespace linnet {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument("batch: " + message); }

void check_size(const char* what, int64_t size, int64_t bound) {
    if (size <= bound) return;
    refuse(std::to_string(size) + " " + what + "; this executable was prepared for at most " + std::to_string(bound));
}

void check_range(const char* field, const int32_t* values, int64_t n, int64_t bound, int64_t least = 0) {
    for (int64_t i = 0; i < n; ++i) {
        if (values[i] >= least && values[i] < bound) continue;
        refuse(std::string(field) + "[" + std::to_string(i) + "] is " + std::to_string(values[i]) + "; accepted are " +
               std::to_string(least) + " to " + std::to_string(bound - 1));
    }
}

void check_slots(const Batch& batch, int64_t slots) {
    check_range("state_slots", batch.state_slots, batch.sequences, slots);
    std::vector<bool> taken(static_cast<size_t>(slots), false);
    for (int64_t s = 0; s < batch.sequences; ++s) {
        const size_t slot = size_t(batch.state_slots[s]);
        if (taken[slot]) refuse("state_slots names slot " + std::to_string(slot) + " twice");
        taken[slot] = true;
    }
}

}  // namespace

void validate(const Batch& batch, const Limits& limits, const std::vector<int64_t>& num_blocks) {
    check_size("tokens", batch.tokens, limits.max_tokens);
    check_size("sequences", batch.sequences, limits.max_sequences);
    check_size("outputs", batch.outputs, limits.max_outputs);
    check_size("blocks per sequence", batch.blocks, limits.max_blocks_per_sequence);
    check_range("token_ids", batch.token_ids, batch.tokens, limits.vocabulary);
    if (int64_t(num_blocks.size()) != batch.groups) {
        refuse("kv_slots and block_tables are of " + std::to_string(batch.groups) + " groups, the states of " +
               std::to_string(num_blocks.size()));
    }
    for (int64_t group = 0; group < batch.groups; ++group) {
        const int64_t blocks = num_blocks[size_t(group)];
        check_range("kv_slots", batch.slots_of(group), batch.tokens, blocks * limits.block_size);
        check_range("block_tables", batch.table_of(group, 0), batch.sequences * batch.blocks, blocks);
    }
    if (batch.logits < 0 || batch.logits > batch.outputs) {
        refuse("logit_rows is " + std::to_string(batch.logits) + "; accepted are 0 to the output rows, " +
               std::to_string(batch.outputs));
    }
    check_range("output_rows", batch.output_rows, batch.outputs, batch.tokens);
    if (batch.adapters) check_range("adapters", batch.adapters, batch.tokens, limits.adapters, -1);
    if (batch.state_slots) check_slots(batch, limits.max_sequences);
    if (batch.query_start[0] != 0 || batch.query_start[batch.sequences] != batch.tokens) {
        refuse("query_start must rise from 0 to the number of tokens, " + std::to_string(batch.tokens));
    }
    for (int64_t s = 0; s < batch.sequences; ++s) {
        const int64_t begin = batch.query_start[s], end = batch.query_start[s + 1], length = batch.context_lengths[s];
        const std::string where = "sequence " + std::to_string(s);
        if (end <= begin || end > batch.tokens) refuse(where + " has no rows, or query_start falls");
        if (limits.longest > 0 && length > limits.longest) {
            refuse(where + " has context_lengths " + std::to_string(length) + "; the model has " +
                   std::to_string(limits.longest) + " positions");
        }
        if (length < end - begin || length > batch.blocks * limits.block_size) {
            refuse(where + " has context_lengths " + std::to_string(length) + "; accepted are its " +
                   std::to_string(end - begin) + " rows to the " + std::to_string(batch.blocks * limits.block_size) +
                   " tokens its block table addresses");
        }
        for (int64_t row = begin; row < end; ++row) {
            if (batch.positions[row] == length - (end - row)) continue;
            refuse("positions[" + std::to_string(row) + "] is " + std::to_string(batch.positions[row]) + "; rows of " +
                   where + " are consecutive and end at context_lengths - 1 = " + std::to_string(length - 1));
        }
    }
}

}  // namespace linnet
