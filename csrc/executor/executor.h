// SPDX-License-Identifier: Apache-2.0
// Replays a Program: values in one arena, a list of operations, one call per step. Built op by op; weights and states
// are borrowed. Every place that could be read or written out of bounds is checked when an op is added or in
// validate().
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "batch.h"
#include "kernels/kernels.h"
#include "memory.h"
#include "threads.h"

namespace linnet {

enum class ValueType : int32_t { fp32, bf16, fp16, int8, int32 };  // int8: QuantisedRows

// How many rows there are in a step: `each` for every token, output or row of logits.
struct RowSpan {
    RowCount rows = RowCount::tokens;
    int64_t each = 1;

    RowSpan(RowCount of, int64_t per = 1) : rows(of), each(per) {}
    bool operator==(const RowSpan&) const = default;
    int64_t of(const Batch& batch) const { return each * batch.count(rows); }
};

struct Value {
    int64_t offset = 0;  // in the arena
    RowCount rows = RowCount::tokens;
    int64_t max_rows = 0;
    int64_t width = 0;
    ValueType type = ValueType::fp32;
    int64_t group_size = 0;  // int8 only: columns per scale
    int64_t row_bytes = 0;   // int8 only
    int chain = -1;          // the only chain that may touch it: then `offset` is bytes per row of the chain's block
    // int8 only, see QuantisedRows
    float half_range = 127.5f;
    float static_scale = 0.0f;
    int64_t each = 1;  // rows for every token or output

    RowSpan span() const { return {rows, each}; }
};

// Bytes a value takes in the arena; quantised: codes, then scales, then sums, each 64-byte aligned.
int64_t value_bytes(const KernelTable& kernels, ValueType type, int64_t max_rows, int64_t width, int64_t group_size);

class Executor;

// What an operation sees while a step runs.
struct Step {
    Executor& executor;
    const Batch& batch;
    char* states;
    const std::vector<int64_t>& num_blocks;  // of each group
    const KernelTable& kernels;
    ThreadPool& pool;
    char* slots;

    int64_t rows(int value) const;
    float* fp32(int value) const;
    int32_t* int32(int value) const;
    uint16_t* half(int value) const;
    QuantisedRows quantised(int value) const;
    KVMemory state(int index) const;
    int64_t group(int state) const;                          // whose slots and tables are the state's
    float* carried(int slot_state, int64_t sequence) const;  // what a sequence of the batch carries
    void* scratch(int worker) const;

    // body(first row, last row, worker): runs of rows in parallel when there is enough work (`cost` in elements per
    // row). Runs of at least `neighbours` rows if there are several for each thread.
    template <typename Body>
    void over_rows(int64_t rows, int64_t cost, int64_t neighbours, const Body& body) const {
        constexpr int64_t ENOUGH = 16384;  // elements worth handing to another core
        int64_t run = cost >= ENOUGH ? 1 : (ENOUGH + cost - 1) / cost;
        if (run < neighbours && rows >= 4 * neighbours * pool.threads()) run = neighbours;
        if (rows <= run || pool.threads() == 1) {
            if (rows > 0) body(0, rows, 0);
            return;
        }
        pool.run((rows + run - 1) / run, [&](int64_t item, int worker) {
            const int64_t begin = item * run;
            body(begin, begin + run < rows ? begin + run : rows, worker);
        });
    }
};

// Consecutive rows of a step in the hands of one worker; every pointer is to the first of them.
struct Rows {
    const Step& step;
    int64_t first, count;
    char* local;    // memory of the values of the chain that runs, `block` rows of each
    int64_t block;  // at least count

    float* fp32(int value) const;
    int32_t* int32(int value) const;
    uint16_t* half(int value) const;
    QuantisedRows quantised(int value) const;
    char* at(int value, int64_t row_bytes) const;
};

class Operation {
  public:
    virtual ~Operation() = default;
    virtual void run(const Step& step) = 0;
    std::string name;
};

// An operation whose row i needs no other row of anything a neighbour in its chain writes.
class RowOperation : public Operation {
  public:
    RowOperation(RowSpan rows, int64_t cost, int64_t neighbours = 1)
        : rows_(rows), cost_(cost), neighbours_(neighbours) {}
    void run(const Step& step) final;
    virtual void run_rows(const Rows& rows) = 0;
    RowSpan rows() const { return rows_; }
    int64_t cost() const { return cost_; }              // in elements per row
    int64_t neighbours() const { return neighbours_; }  // rows that one thread had better do: they write the same lines

  private:
    RowSpan rows_;
    int64_t cost_, neighbours_;
};

// Row operations done one after the other on a few rows at a time, so that what one writes the next finds in cache.
class RowChain final : public Operation {
  public:
    void add(std::unique_ptr<RowOperation> operation);
    int64_t add_local(int64_t row_bytes);  // returns the offset per row
    int64_t scratch_bytes() const { return block() * local_bytes_; }
    bool empty() const { return operations_.empty(); }
    void run(const Step& step) override;

  private:
    int64_t block() const;  // rows at a time

    std::vector<std::unique_ptr<RowOperation>> operations_;
    int64_t local_bytes_ = 0, cost_ = 0, neighbours_ = 1;
};

// The rows of a step that have an adapter, those of one together and in their own order.
struct AdapterRows {
    struct Run {
        int32_t adapter;
        int64_t first, rows;  // of the sorted rows
    };
    std::vector<int32_t> rows;
    std::vector<Run> runs;

    void sort(const Batch& batch, RowCount kind);
};

class LowRankAdds;
struct LowRankTerm;

// cos and sin per position, made in double when a position is first seen, then rounded.
class RopeTable {
  public:
    RopeTable(std::vector<double> inverse_frequencies, double factor, int64_t positions);
    void extend(int64_t positions);  // makes rows [0, positions) valid
    int64_t half() const { return int64_t(frequencies_.size()); }
    const float* cosine() const { return reinterpret_cast<const float*>(cosine_.data()); }
    const float* sine() const { return reinterpret_cast<const float*>(sine_.data()); }

  private:
    std::vector<double> frequencies_;
    double factor_;
    int64_t positions_, valid_ = 0;
    Buffer cosine_, sine_;
};

class Executor {
  public:
    Executor(const KernelTable& kernels, std::shared_ptr<ThreadPool> pool, const Limits& limits, int64_t arena_bytes);

    int add_value(const Value& value);
    // group: states of one share slots and block tables.
    int add_state(const KVLayout& layout, int64_t group = 0);
    // fp32 numbers that a sequence carries from step to step.
    int add_slot_state(int64_t numbers);
    int add_rope_table(std::vector<double> inverse_frequencies, double factor);
    void add(std::string name, std::unique_ptr<Operation> operation);
    // Returns what set_adapter calls the operation. Sites: see LowRankAdds.
    int add_low_rank(std::string name, int x, const std::vector<int>& inputs, const std::vector<int>& outputs);
    // What rows of an adapter get from a site from the next step on; borrowed; null: nothing.
    void set_adapter(int low_rank, int64_t site, int64_t adapter, const LowRankTerm* term);
    const AdapterRows& adapter_rows(RowCount kind) const { return adapter_rows_[size_t(kind)]; }
    // Row operations added from here to end_chain() become one operation. A local value is written and read by them
    // only: it has rows in a worker's scratch and no place in the arena.
    void begin_chain(std::string name);
    int add_local(const Value& value);
    void end_chain();

    // Throws std::invalid_argument before anything runs. num_blocks: of each group, or of all states together; states:
    // kv_bytes(num_blocks) bytes; slots: max_sequences * slot_bytes() bytes, where there are slot states.
    void execute(const Batch& batch, char* states, const std::vector<int64_t>& num_blocks, char* slots = nullptr);

    // Of a value that anybody may touch now: local ones only while their chain is being added.
    const Value& value(int index) const;
    const Value& placed(int index) const { return values_[size_t(index)]; }  // while a step runs
    const KVLayout& state(int index) const { return states_.at(size_t(index)); }
    RopeTable& rope_table(int index) { return *rope_tables_.at(size_t(index)); }
    char* arena() const { return arena_.data(); }
    const KernelTable& kernels() const { return kernels_; }
    ThreadPool& pool() const { return *pool_; }
    const Limits& limits() const { return limits_; }
    // Sequences may not be longer than this: the program has a row for each position.
    void bound_positions(int64_t most);
    int64_t rows_of_last_step(int value) const;
    int64_t kv_bytes(const std::vector<int64_t>& num_blocks) const;
    int64_t state_group(int index) const { return state_groups_[size_t(index)]; }
    int64_t state_offset(int index) const { return state_offsets_[size_t(index)]; }  // while a step runs, in bytes
    int64_t slot_state_numbers(int index) const { return slot_states_.at(size_t(index)); }
    int64_t slot_bytes() const;  // of one sequence
    int64_t slot_bytes_before(int index) const;

    // For operations: scratch per worker.
    void need_scratch(int64_t bytes) { scratch_bytes_ = bytes > scratch_bytes_ ? bytes : scratch_bytes_; }
    void* scratch(int worker) const { return scratch_[size_t(worker)].data(); }
    Buffer& shared_memory() { return shared_memory_; }  // of the operation that runs; grows, contents undefined

    void set_profiling(bool on) { profiling_ = on; }
    // Seconds per op since the last call.
    std::vector<std::pair<std::string, double>> profile();

    // A value of the last step as fp32 [rows, width] into `out`.
    void read(int value, float* out) const;

  private:
    const KernelTable& kernels_;
    std::shared_ptr<ThreadPool> pool_;
    Limits limits_;
    Buffer arena_, shared_memory_;
    std::vector<Value> values_;
    std::vector<KVLayout> states_;
    std::vector<int64_t> state_groups_, state_offsets_;
    int64_t groups_ = 1;
    std::vector<int64_t> slot_states_;  // numbers of each
    std::vector<std::unique_ptr<RopeTable>> rope_tables_;
    std::vector<std::unique_ptr<Operation>> operations_;
    std::vector<LowRankAdds*> low_ranks_;
    AdapterRows adapter_rows_[2];      // of the step that runs, by RowCount
    std::unique_ptr<RowChain> chain_;  // being added
    int chains_ = 0;
    std::vector<Buffer> scratch_;
    int64_t scratch_bytes_ = 64;
    Batch last_;  // its counts only are still there
    bool profiling_ = false;
    std::vector<double> seconds_;
};

}  // namespace linnet
