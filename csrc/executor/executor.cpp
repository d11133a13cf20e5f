// SPDX-License-Identifier: Apache-2.0
#include "executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "low_rank.h"

namespace linnet {

namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
int64_t group_count(int64_t width, int64_t group_size) { return (width + group_size - 1) / group_size; }

}  // namespace

int64_t value_bytes(const KernelTable& kernels, ValueType type, int64_t max_rows, int64_t width, int64_t group_size) {
    switch (type) {
        case ValueType::fp32:
        case ValueType::int32:
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

int64_t Step::rows(int value) const { return executor.placed(value).span().of(batch); }
float* Step::fp32(int value) const {
    return reinterpret_cast<float*>(executor.arena() + executor.placed(value).offset);
}
int32_t* Step::int32(int value) const {
    return reinterpret_cast<int32_t*>(executor.arena() + executor.placed(value).offset);
}
uint16_t* Step::half(int value) const {
    return reinterpret_cast<uint16_t*>(executor.arena() + executor.placed(value).offset);
}

namespace {

// Codes, scales and sums of `capacity` rows one after another.
QuantisedRows quantised_rows(const Value& value, char* base, int64_t capacity) {
    QuantisedRows rows;
    rows.columns = value.width;
    rows.group_size = value.group_size;
    rows.groups = group_count(value.width, value.group_size);
    rows.row_bytes = value.row_bytes;
    rows.half_range = value.half_range;
    rows.static_scale = value.static_scale;
    rows.codes = reinterpret_cast<int8_t*>(base);
    base += aligned(capacity * value.row_bytes);
    rows.scales = reinterpret_cast<float*>(base);
    base += aligned(capacity * rows.groups * 4);
    rows.sums = reinterpret_cast<int32_t*>(base);
    return rows;
}

}  // namespace

QuantisedRows Step::quantised(int index) const {
    const Value& value = executor.placed(index);
    return quantised_rows(value, executor.arena() + value.offset, value.max_rows);
}

char* Rows::at(int index, int64_t row_bytes) const {
    const Value& value = step.executor.placed(index);
    return value.chain < 0 ? step.executor.arena() + value.offset + first * row_bytes : local + value.offset * block;
}
float* Rows::fp32(int value) const {
    return reinterpret_cast<float*>(at(value, step.executor.placed(value).width * 4));
}
int32_t* Rows::int32(int value) const {
    return reinterpret_cast<int32_t*>(at(value, step.executor.placed(value).width * 4));
}
uint16_t* Rows::half(int value) const {
    return reinterpret_cast<uint16_t*>(at(value, step.executor.placed(value).width * 2));
}
QuantisedRows Rows::quantised(int index) const {
    const Value& value = step.executor.placed(index);
    if (value.chain >= 0) return quantised_rows(value, local + value.offset * block, block);
    QuantisedRows rows = step.quantised(index);
    rows.codes += first * rows.row_bytes;
    rows.scales += first * rows.groups;
    rows.sums += first * rows.groups;
    return rows;
}

void RowOperation::run(const Step& step) {
    const int64_t rows = rows_.of(step.batch);
    step.over_rows(rows, cost_, neighbours_, [&](int64_t begin, int64_t end, int) {
        run_rows(Rows{step, begin, end - begin, nullptr, end - begin});
    });
}

int64_t RowChain::block() const {
    constexpr int64_t LOCAL_BYTES = 32768;  // what stays in the innermost cache
    const int64_t rows = local_bytes_ ? LOCAL_BYTES / local_bytes_ : 64;
    return rows < 1 ? 1 : rows > 64 ? 64 : rows;
}

void RowChain::add(std::unique_ptr<RowOperation> operation) {
    if (!operations_.empty() && operations_.front()->rows() != operation->rows()) {
        throw std::invalid_argument("the operations of a chain work on the same rows");
    }
    cost_ += operation->cost();
    if (operation->neighbours() > neighbours_) neighbours_ = operation->neighbours();
    operations_.push_back(std::move(operation));
}

int64_t RowChain::add_local(int64_t row_bytes) {
    const int64_t offset = local_bytes_;
    local_bytes_ += row_bytes;
    return offset;
}

void RowChain::run(const Step& step) {
    const int64_t rows = operations_.front()->rows().of(step.batch);
    const int64_t block = this->block();
    step.over_rows(rows, cost_, neighbours_, [&](int64_t begin, int64_t end, int worker) {
        char* local = static_cast<char*>(step.scratch(worker));
        for (int64_t first = begin; first < end; first += block) {
            const Rows some{step, first, first + block < end ? block : end - first, local, block};
            for (auto& operation : operations_) operation->run_rows(some);
        }
    });
}
KVMemory Step::state(int index) const {
    return {executor.state(index), states + executor.state_offset(index), num_blocks[size_t(group(index))]};
}
int64_t Step::group(int state) const { return batch.groups == 1 ? 0 : executor.state_group(state); }
float* Step::carried(int slot_state, int64_t sequence) const {
    const int64_t all = executor.slot_bytes_before(slot_state) * executor.limits().max_sequences;
    const int64_t own = executor.slot_bytes_before(slot_state + 1) - executor.slot_bytes_before(slot_state);
    return reinterpret_cast<float*>(slots + all + own * batch.state_slots[sequence]);
}
void* Step::scratch(int worker) const { return executor.scratch(worker); }

Executor::Executor(const KernelTable& kernels, std::shared_ptr<ThreadPool> pool, const Limits& limits,
                   int64_t arena_bytes)
    : kernels_(kernels), pool_(std::move(pool)), limits_(limits), arena_(arena_bytes) {}

void Executor::bound_positions(int64_t most) {
    limits_.longest = limits_.longest > 0 ? std::min(limits_.longest, most) : most;
}

int Executor::add_value(const Value& value) {
    Value placed = value;
    if (placed.type == ValueType::int8) {
        placed.row_bytes = kernels_.linear->quantised_row_bytes(placed.width, placed.group_size);
    }
    if (placed.each < 1) throw std::invalid_argument("a value has at least one row for every token or output");
    placed.max_rows = placed.each * (placed.rows == RowCount::tokens ? limits_.max_tokens : limits_.max_outputs);
    const int64_t bytes = value_bytes(kernels_, placed.type, placed.max_rows, placed.width, placed.group_size);
    if (placed.offset < 0 || placed.offset % 64 != 0 || placed.offset + bytes > arena_.bytes()) {
        throw std::invalid_argument("a value of " + std::to_string(bytes) + " bytes at offset " +
                                    std::to_string(placed.offset) + " does not lie in the arena of " +
                                    std::to_string(arena_.bytes()) + " bytes at a multiple of 64");
    }
    values_.push_back(placed);
    return int(values_.size()) - 1;
}

int Executor::add_state(const KVLayout& layout, int64_t group) {
    const bool small_power = layout.block_size < TILE_KEYS && (layout.block_size & (layout.block_size - 1)) == 0;
    if (layout.block_size < 1 || !(small_power || layout.block_size % TILE_KEYS == 0)) {
        throw std::invalid_argument("block_size " + std::to_string(layout.block_size) +
                                    " is not supported; accepted are 1, 2, 4, 8 and multiples of 16");
    }
    if (group < 0) throw std::invalid_argument("groups of states are counted from 0");
    states_.push_back(layout);
    state_groups_.push_back(group);
    groups_ = std::max(groups_, group + 1);
    return int(states_.size()) - 1;
}

int Executor::add_slot_state(int64_t numbers) {
    if (numbers < 1) throw std::invalid_argument("a slot state holds at least one number");
    slot_states_.push_back(numbers);
    return int(slot_states_.size()) - 1;
}

int Executor::add_rope_table(std::vector<double> inverse_frequencies, double factor) {
    rope_tables_.push_back(std::make_unique<RopeTable>(std::move(inverse_frequencies), factor, limits_.positions()));
    return int(rope_tables_.size()) - 1;
}

void Executor::add(std::string name, std::unique_ptr<Operation> operation) {
    if (chain_) {
        auto* rows = dynamic_cast<RowOperation*>(operation.get());
        if (!rows)
            throw std::invalid_argument("operation " + name + " does not work row by row; a chain cannot hold it");
        operation.release();
        chain_->add(std::unique_ptr<RowOperation>(rows));
        return;
    }
    operation->name = std::move(name);
    operations_.push_back(std::move(operation));
}

int Executor::add_low_rank(std::string name, int x, const std::vector<int>& inputs, const std::vector<int>& outputs) {
    auto operation = std::make_unique<LowRankAdds>(*this, x, inputs, outputs);
    low_ranks_.push_back(operation.get());
    add(std::move(name), std::move(operation));
    return int(low_ranks_.size()) - 1;
}

void Executor::set_adapter(int low_rank, int64_t site, int64_t adapter, const LowRankTerm* term) {
    low_ranks_.at(size_t(low_rank))->set(site, adapter, term ? std::optional<LowRankTerm>(*term) : std::nullopt);
    limits_.adapters = std::max(limits_.adapters, adapter + 1);
}

void Executor::begin_chain(std::string name) {
    if (chain_) throw std::invalid_argument("chain " + chain_->name + " has not ended yet");
    chain_ = std::make_unique<RowChain>();
    chain_->name = std::move(name);
}

int Executor::add_local(const Value& value) {
    if (!chain_) throw std::invalid_argument("a local value needs a chain");
    Value local = value;
    if (local.type == ValueType::int8) {
        local.row_bytes = kernels_.linear->quantised_row_bytes(local.width, local.group_size);
    }
    local.max_rows = 1;
    local.chain = chains_;
    local.offset = chain_->add_local(value_bytes(kernels_, local.type, 1, local.width, local.group_size));
    values_.push_back(local);
    return int(values_.size()) - 1;
}

void Executor::end_chain() {
    if (!chain_ || chain_->empty()) throw std::invalid_argument("a chain without operations ends");
    need_scratch(chain_->scratch_bytes());
    ++chains_;
    operations_.push_back(std::move(chain_));
}

const Value& Executor::value(int index) const {
    const Value& found = values_.at(size_t(index));
    if (found.chain >= 0 && (!chain_ || found.chain != chains_)) {
        throw std::invalid_argument("value " + std::to_string(index) + " lives in another chain");
    }
    return found;
}

int64_t Executor::kv_bytes(const std::vector<int64_t>& num_blocks) const {
    const int64_t given = int64_t(num_blocks.size());
    if (given != 1 && given != groups_) {
        throw std::invalid_argument("blocks of " + std::to_string(given) +
                                    " groups of states are given; accepted: 1 or " + std::to_string(groups_));
    }
    int64_t bytes = 0;
    for (size_t i = 0; i < states_.size(); ++i) {
        bytes += states_[i].block_bytes() * num_blocks[given == 1 ? 0 : size_t(state_groups_[i])];
    }
    return bytes;
}

int64_t Executor::slot_bytes_before(int index) const {
    int64_t bytes = 0;
    for (int i = 0; i < index; ++i) bytes += aligned(slot_states_[size_t(i)] * 4);
    return bytes;
}

int64_t Executor::slot_bytes() const { return slot_bytes_before(int(slot_states_.size())); }

void Executor::execute(const Batch& batch, char* states, const std::vector<int64_t>& num_blocks, char* slots) {
    if (chain_) throw std::invalid_argument("chain " + chain_->name + " has not ended yet");
    kv_bytes(num_blocks);  // refuses groups that the states are not of
    validate(batch, limits_, num_blocks);
    state_offsets_.clear();
    int64_t offset = 0;
    for (size_t i = 0; i < states_.size(); ++i) {
        state_offsets_.push_back(offset);
        offset += states_[i].block_bytes() * num_blocks[batch.groups == 1 ? 0 : size_t(state_groups_[i])];
    }
    if (!slot_states_.empty() && !(slots && batch.state_slots)) {
        throw std::invalid_argument("batch: this program has slot states; state_slots and their memory are needed");
    }
    FloatingPointGuard guard;
    while (scratch_.size() < size_t(pool_->threads())) scratch_.emplace_back();
    for (Buffer& buffer : scratch_) buffer.reserve(scratch_bytes_);
    int64_t positions = 0;
    for (int64_t s = 0; s < batch.sequences; ++s) {
        positions = batch.context_lengths[s] > positions ? batch.context_lengths[s] : positions;
    }
    for (auto& table : rope_tables_) table->extend(positions);
    last_ = batch;
    for (const RowCount kind : {RowCount::tokens, RowCount::outputs}) {
        AdapterRows& sorted = adapter_rows_[size_t(kind)];
        if (batch.adapters)
            sorted.sort(batch, kind);
        else
            sorted.rows.clear(), sorted.runs.clear();
    }
    const Step step{*this, batch, states, num_blocks, kernels_, *pool_, slots};
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

int64_t Executor::rows_of_last_step(int index) const { return value(index).span().of(last_); }

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
        case ValueType::int32: {
            const int32_t* values = reinterpret_cast<const int32_t*>(data);
            for (int64_t i = 0; i < n; ++i) out[i] = float(values[i]);
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
    const std::vector<int64_t> no_blocks;
    const Step step{const_cast<Executor&>(*this), none, nullptr, no_blocks, kernels_, *pool_, nullptr};
    kernels_.linear->dequantise_rows(step.quantised(index), out, from.width, 0, rows);
}

}  // namespace linnet
