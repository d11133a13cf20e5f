// SPDX-License-Identifier: Apache-2.0
#include "executor.h"

#include <chrono>
#include <cmath>
#include <stdexcept>

namespace linnet {

namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
int64_t group_count(int64_t width, int64_t group_size) { return (width + group_size - 1) / group_size; }

}  // namespace

int64_t value_bytes(const KernelTable& kernels, ValueType type, int64_t max_rows, int64_t width, int64_t group_size) {
    switch (type) {
        case ValueType::fp32:
            return aligned(max_rows * width * 4);
        case ValueType::bf16:
        case ValueType::fp16:
            return aligned(max_rows * width * 2);
        case ValueType::int8:
            break;
    }
    if (group_size < 1) throw std::invalid_argument("a quantised value needs a group size of at least 1");
    return aligned(max_rows * kernels.linear->quantised_row_bytes(width, group_size)) +
           2 * aligned(max_rows * group_count(width, group_size) * 4);
}

RopeTable::RopeTable(std::vector<double> inverse_frequencies, double factor, int64_t positions)
    : frequencies_(std::move(inverse_frequencies)),
      factor_(factor),
      positions_(positions),
      cosine_(positions * half() * 4),
      sine_(positions * half() * 4) {}

void RopeTable::extend(int64_t positions) {
    constexpr int64_t STEP = 256;  // positions at a time, so that decode rarely comes here
    if (positions <= valid_) return;
    int64_t until = (positions + STEP - 1) / STEP * STEP;
    if (until > positions_) until = positions_;
    float* cosine = reinterpret_cast<float*>(cosine_.data());
    float* sine = reinterpret_cast<float*>(sine_.data());
    for (int64_t position = valid_; position < until; ++position) {
        for (int64_t i = 0; i < half(); ++i) {
            const double angle = double(position) * frequencies_[size_t(i)];
            cosine[position * half() + i] = float(std::cos(angle) * factor_);
            sine[position * half() + i] = float(std::sin(angle) * factor_);
        }
    }
    valid_ = until;
}

int64_t Step::rows(int value) const {
    return executor.value(value).rows == RowCount::tokens ? batch.tokens : batch.outputs;
}
float* Step::fp32(int value) const { return reinterpret_cast<float*>(executor.arena() + executor.value(value).offset); }
uint16_t* Step::half(int value) const {
    return reinterpret_cast<uint16_t*>(executor.arena() + executor.value(value).offset);
}
QuantisedRows Step::quantised(int index) const {
    const Value& value = executor.value(index);
    char* base = executor.arena() + value.offset;
    QuantisedRows rows;
    rows.columns = value.width;
    rows.group_size = value.group_size;
    rows.groups = group_count(value.width, value.group_size);
    rows.row_bytes = value.row_bytes;
    rows.codes = reinterpret_cast<int8_t*>(base);
    base += aligned(value.max_rows * value.row_bytes);
    rows.scales = reinterpret_cast<float*>(base);
    base += aligned(value.max_rows * rows.groups * 4);
    rows.sums = reinterpret_cast<int32_t*>(base);
    return rows;
}
char* Step::state(int index) const { return states + executor.state_bytes_before(index) * num_blocks; }
void* Step::scratch(int worker) const { return executor.scratch(worker); }

Executor::Executor(const KernelTable& kernels, std::shared_ptr<ThreadPool> pool, const Limits& limits,
                   int64_t arena_bytes)
    : kernels_(kernels), pool_(std::move(pool)), limits_(limits), arena_(arena_bytes) {}

int Executor::add_value(const Value& value) {
    Value placed = value;
    if (placed.type == ValueType::int8) {
        placed.row_bytes = kernels_.linear->quantised_row_bytes(placed.width, placed.group_size);
    }
    placed.max_rows = placed.rows == RowCount::tokens ? limits_.max_tokens : limits_.max_outputs;
    const int64_t bytes = value_bytes(kernels_, placed.type, placed.max_rows, placed.width, placed.group_size);
    if (placed.offset < 0 || placed.offset % 64 != 0 || placed.offset + bytes > arena_.bytes()) {
        throw std::invalid_argument("a value of " + std::to_string(bytes) + " bytes at offset " +
                                    std::to_string(placed.offset) + " does not lie in the arena of " +
                                    std::to_string(arena_.bytes()) + " bytes at a multiple of 64");
    }
    values_.push_back(placed);
    return int(values_.size()) - 1;
}

int Executor::add_state(const KVLayout& layout) {
    const bool small_power = layout.block_size < TILE_KEYS && (layout.block_size & (layout.block_size - 1)) == 0;
    if (layout.block_size < 1 || !(small_power || layout.block_size % TILE_KEYS == 0)) {
        throw std::invalid_argument("block_size " + std::to_string(layout.block_size) +
                                    " is not supported; accepted are 1, 2, 4, 8 and multiples of 16");
    }
    states_.push_back(layout);
    return int(states_.size()) - 1;
}

int Executor::add_rope_table(std::vector<double> inverse_frequencies, double factor) {
    rope_tables_.push_back(std::make_unique<RopeTable>(std::move(inverse_frequencies), factor, limits_.positions()));
    return int(rope_tables_.size()) - 1;
}

void Executor::add(std::string name, std::unique_ptr<Operation> operation) {
    operation->name = std::move(name);
    operations_.push_back(std::move(operation));
}

char* Executor::add_prepared(int64_t bytes) {
    prepared_bytes_ += bytes;
    prepared_.emplace_back(bytes);
    return prepared_.back().data();
}

int64_t Executor::state_bytes_before(int index) const {
    int64_t bytes = 0;
    for (int i = 0; i < index; ++i) bytes += states_[size_t(i)].block_bytes();
    return bytes;
}

int64_t Executor::kv_bytes_per_block() const { return state_bytes_before(int(states_.size())); }

void Executor::execute(const Batch& batch, char* states, int64_t num_blocks) {
    validate(batch, limits_, num_blocks);
    FloatingPointGuard guard;
    while (scratch_.size() < size_t(pool_->threads())) scratch_.emplace_back();
    for (Buffer& buffer : scratch_) buffer.reserve(scratch_bytes_);
    int64_t positions = 0;
    for (int64_t s = 0; s < batch.sequences; ++s) {
        positions = batch.context_lengths[s] > positions ? batch.context_lengths[s] : positions;
    }
    for (auto& table : rope_tables_) table->extend(positions);
    last_tokens_ = batch.tokens;
    last_outputs_ = batch.outputs;
    const Step step{*this, batch, states, num_blocks, kernels_, *pool_};
    if (!profiling_) {
        for (auto& operation : operations_) operation->run(step);
        return;
    }
    seconds_.resize(operations_.size());
    for (size_t i = 0; i < operations_.size(); ++i) {
        const auto start = std::chrono::steady_clock::now();
        operations_[i]->run(step);
        seconds_[i] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
}

std::vector<std::pair<std::string, double>> Executor::profile() {
    std::vector<std::pair<std::string, double>> result;
    for (size_t i = 0; i < seconds_.size(); ++i) result.emplace_back(operations_[i]->name, seconds_[i]);
    seconds_.clear();
    return result;
}

int64_t Executor::rows_of_last_step(int index) const {
    return value(index).rows == RowCount::tokens ? last_tokens_ : last_outputs_;
}

void Executor::read(int index, float* out) const {
    const Value& from = value(index);
    const int64_t rows = rows_of_last_step(index), n = rows * from.width;
    const char* data = arena_.data() + from.offset;
    switch (from.type) {
        case ValueType::fp32: {
            const float* values = reinterpret_cast<const float*>(data);
            for (int64_t i = 0; i < n; ++i) out[i] = values[i];
            return;
        }
        case ValueType::bf16:
            return kernels_.linear->widen_bf16(reinterpret_cast<const uint16_t*>(data), out, n);
        case ValueType::fp16:
            return kernels_.linear->widen_fp16(reinterpret_cast<const uint16_t*>(data), out, n);
        case ValueType::int8:
            break;
    }
    const Batch none;
    const Step step{const_cast<Executor&>(*this), none, nullptr, 0, kernels_, *pool_};
    kernels_.linear->dequantise_rows(step.quantised(index), out, from.width, 0, rows);
}

}  // namespace linnet
