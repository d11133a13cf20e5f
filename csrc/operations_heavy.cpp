// SPDX-License-Identifier: Apache-2.0
// Linear, kv_write and attention: operations that split their own work over threads.
#include <algorithm>
#include <stdexcept>

#include "operations.h"

namespace linnet {

namespace {

// Work items: at least so many per thread, so that a core that is busy elsewhere takes fewer, and none longer than
// about a tenth of a millisecond, so that nobody waits long for the last one, or for one whose core was taken away.
constexpr int64_t ITEMS_PER_THREAD = 16;
constexpr int64_t ITEM_MULTIPLIES = 32 << 20;
constexpr int64_t TASK_VECTORS = 32;  // query vectors (rows x heads of a group) of one attention task

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

InputType input_type(ValueType type) {
    switch (type) {
        case ValueType::fp32:
            return InputType::fp32;
        case ValueType::bf16:
            return InputType::bf16;
        case ValueType::int8:
            return InputType::int8;
        case ValueType::fp16:
            break;
    }
    throw std::invalid_argument("linear: no kernel reads fp16 rows");
}

// Work over the weight's rows in whole units; `cost` multiplications per row; body(first, last, worker).
template <typename Body>
void over_units(ThreadPool& pool, int64_t rows, int64_t unit, int64_t cost, const Body& body) {
    int64_t items = 1;
    if (pool.threads() > 1)
        items = std::max(pool.threads() * ITEMS_PER_THREAD, divide_up(rows * cost, ITEM_MULTIPLIES));
    const int64_t run = divide_up(divide_up(rows, items), unit) * unit;
    pool.run(divide_up(rows, run), [&](int64_t item, int worker) {
        const int64_t begin = item * run;
        body(begin, begin + run < rows ? begin + run : rows, worker);
    });
}

// One or more weights over one input. Their rows, each rounded up to whole units, form one range of work, so that a
// narrow weight (keys and values of few heads) does not leave cores without any.
class Linear final : public Operation {
  public:
    Linear(Executor& executor, int input, const std::vector<int>& outputs, const std::vector<LinearWeight>& weights)
        : input_(input), type_(input_type(executor.value(input).type)) {
        const LinearKernels& kernels = *executor.kernels().linear;
        const Value& from = executor.value(input);
        require(!weights.empty() && outputs.size() == weights.size(), "linear: one output per weight is needed");
        for (size_t i = 0; i < weights.size(); ++i) {
            const LinearWeight& weight = weights[i];
            const Value& to = expect(executor, outputs[i], ValueType::fp32, "linear writes fp32");
            require(from.rows == to.rows, "linear: input and output have the same rows");
            require(from.width == weight.columns, "linear: the input's width is not the weight's columns");
            require(to.width == weight.rows, "linear: the output's width is not the weight's rows");
            if (const char* reason = kernels.refuse(weight, type_, from.group_size))
                throw std::invalid_argument(reason);
            const int64_t unit = kernels.column_unit(weight, type_);
            unit_ = unit > unit_ ? unit : unit_;
            require(unit_ % unit == 0, "linear: the units of the weights do not divide each other");
            parts_.push_back({outputs[i], weight, 0});
        }
        for (Part& part : parts_) {
            executor.need_scratch(kernels.scratch_bytes(part.weight, type_, from.max_rows));
            part.first = total_;
            total_ += divide_up(part.weight.rows, unit_) * unit_;
        }
    }

    void run(const Step& step) override {
        const int64_t rows = step.rows(input_);
        if (rows == 0) return;
        over_units(
            step.pool, total_, unit_, rows * parts_[0].weight.columns, [&](int64_t begin, int64_t end, int worker) {
                for (const Part& part : parts_) {
                    const int64_t first = begin > part.first ? begin - part.first : 0;
                    const int64_t last = end - part.first < part.weight.rows ? end - part.first : part.weight.rows;
                    if (first < last) multiply(step, part, rows, first, last, step.scratch(worker));
                }
            });
    }

  private:
    struct Part {
        int output;
        LinearWeight weight;
        int64_t first;  // where its rows begin in the range of work, a multiple of the unit
    };

    void multiply(const Step& step, const Part& part, int64_t rows, int64_t begin, int64_t end, void* scratch) const {
        const LinearKernels& kernels = *step.kernels.linear;
        const LinearWeight& weight = part.weight;
        float* y = step.fp32(part.output);
        switch (type_) {
            case InputType::fp32:
                return kernels.linear_fp32(weight, step.fp32(input_), weight.columns, y, weight.rows, rows, begin, end,
                                           scratch);
            case InputType::bf16:
                return kernels.linear_bf16(weight, step.half(input_), weight.columns, y, weight.rows, rows, begin, end,
                                           scratch);
            case InputType::int8:
                return kernels.linear_int8(weight, step.quantised(input_), y, weight.rows, rows, begin, end, scratch);
        }
    }

    int input_;
    InputType type_;
    std::vector<Part> parts_;
    int64_t unit_ = 1, total_ = 0;
};

class KVWrite final : public RowOperation {
  public:
    KVWrite(Executor& executor, int key, int value, int state)
        : RowOperation(RowCount::tokens, 4 * executor.value(key).width), key_(key), value_(value), state_(state) {
        const KVLayout& layout = executor.state(state);
        const Value& k = expect(executor, key, ValueType::fp32, "kv_write reads fp32");
        const Value& v = expect(executor, value, ValueType::fp32, "kv_write reads fp32");
        require(k.rows == RowCount::tokens && v.rows == RowCount::tokens, "kv_write: rows are tokens");
        require(k.width == layout.kv_heads * layout.head_size, "kv_write: the key's width is not kv_heads * head_size");
        require(v.width == layout.kv_heads * layout.value_head_size,
                "kv_write: the value's width is not kv_heads * value_head_size");
    }

    void run_rows(const Rows& rows) override {
        const Step& step = rows.step;
        step.kernels.kv_write(step.executor.state(state_), step.state(state_), rows.fp32(key_), rows.fp32(value_),
                              step.batch.kv_slots + rows.first, rows.count);
    }

  private:
    int key_, value_, state_;
};

class Attention final : public Operation {
  public:
    Attention(Executor& executor, int query, int output, int state, const AttentionAttributes& attributes)
        : query_(query), output_(output), state_(state) {
        call_.kv = executor.state(state);
        call_.heads = attributes.heads;
        call_.scale = attributes.scale;
        call_.window = attributes.window;
        call_.softcap = attributes.softcap;
        call_.alibi_slopes = attributes.alibi_slopes;
        const Value& q = expect(executor, query, ValueType::fp32, "attention reads fp32");
        const Value& o = expect(executor, output, ValueType::fp32, "attention writes fp32");
        require(q.rows == RowCount::tokens && o.rows == RowCount::tokens, "attention: rows are tokens");
        require(call_.heads > 0 && call_.heads % call_.kv.kv_heads == 0, "attention: kv_heads must divide heads");
        require(q.width == call_.heads * call_.kv.head_size, "attention: the query's width is not heads * head_size");
        require(o.width == call_.heads * call_.kv.value_head_size,
                "attention: the output's width is not heads * value_head_size");
        require(call_.window >= 0 && call_.softcap >= 0.0f, "attention: window and softcap must be positive");
        const int64_t group = call_.heads / call_.kv.kv_heads;
        task_rows_ = TASK_VECTORS > group ? TASK_VECTORS / group : 1;
        executor.need_scratch(executor.kernels().attention_scratch_bytes(call_, task_rows_));
    }

    void run(const Step& step) override {
        plan(step);
        step.pool.run(int64_t(tasks_.size()), [&](int64_t item, int worker) {
            // Long contexts come last in a sequence: hand them out first.
            step.kernels.attention(call_, tasks_[tasks_.size() - 1 - size_t(item)], step.scratch(worker));
        });
        step.pool.run(int64_t(merges_.size()),
                      [&](int64_t item, int) { step.kernels.attention_merge(call_, merges_[size_t(item)]); });
    }

  private:
    // Whole tasks first; if they are too few for the threads, long ones are split over their partitions.
    void plan(const Step& step) {
        const Batch& batch = step.batch;
        const int64_t heads_width = call_.heads * call_.kv.head_size,
                      out_width = call_.heads * call_.kv.value_head_size;
        tasks_.clear();
        merges_.clear();
        for (int64_t s = 0; s < batch.sequences; ++s) {
            for (int64_t row = batch.query_start[s]; row < batch.query_start[s + 1]; row += task_rows_) {
                AttentionTask task;
                task.state = step.state(state_);
                task.block_table = batch.block_tables + s * batch.blocks;
                task.query = step.fp32(query_) + row * heads_width;
                task.ld_query = heads_width;
                task.rows = row + task_rows_ < batch.query_start[s + 1] ? task_rows_ : batch.query_start[s + 1] - row;
                task.first_position = batch.positions[row];
                task.output = step.fp32(output_) + row * out_width;
                task.ld_output = out_width;
                const int64_t first = call_.window > 0 && task.first_position >= call_.window
                                          ? task.first_position - call_.window + 1
                                          : 0;
                task.first_partition = first / PARTITION_KEYS;
                task.last_partition = divide_up(task.first_position + task.rows, PARTITION_KEYS);
                for (task.kv_head = 0; task.kv_head < call_.kv.kv_heads; ++task.kv_head) tasks_.push_back(task);
            }
        }
        const int64_t wanted = step.pool.threads() * ITEMS_PER_THREAD;
        if (step.pool.threads() > 1 && !tasks_.empty() && int64_t(tasks_.size()) < wanted) {
            split(divide_up(wanted, int64_t(tasks_.size())), step.executor.shared_memory());
        }
    }

    void split(int64_t pieces, Buffer& memory) {
        const int64_t group = call_.heads / call_.kv.kv_heads, ld = call_.kv.value_stride() + 2;
        int64_t floats = 0;
        for (const AttentionTask& task : tasks_) {
            floats += (task.last_partition - task.first_partition) * task.rows * group * ld;
        }
        memory.reserve(floats * 4);
        float* partials = reinterpret_cast<float*>(memory.data());
        std::swap(whole_, tasks_);
        tasks_.clear();
        for (AttentionTask task : whole_) {
            const int64_t partitions = task.last_partition - task.first_partition;
            if (partitions == 1) {
                tasks_.push_back(task);
                continue;
            }
            task.partials = partials;
            merges_.push_back(task);
            partials += partitions * task.rows * group * ld;
            const int64_t run = divide_up(partitions, pieces), last = task.last_partition;
            for (int64_t p = task.first_partition; p < last; p += run) {
                AttentionTask piece = task;
                piece.first_partition = p;
                piece.last_partition = p + run < last ? p + run : last;
                piece.partials = task.partials + (p - task.first_partition) * task.rows * group * ld;
                tasks_.push_back(piece);
            }
        }
    }

    int query_, output_, state_;
    AttentionCall call_;
    int64_t task_rows_ = 1;
    std::vector<AttentionTask> tasks_, whole_, merges_;
};

}  // namespace

Made make_linear(Executor& executor, int input, const std::vector<int>& outputs,
                 const std::vector<LinearWeight>& weights) {
    return std::make_unique<Linear>(executor, input, outputs, weights);
}

Made make_kv_write(Executor& executor, int key, int value, int state) {
    return std::make_unique<KVWrite>(executor, key, value, state);
}

Made make_attention(Executor& executor, int query, int output, int state, const AttentionAttributes& attributes) {
    return std::make_unique<Attention>(executor, query, output, state, attributes);
}

}  // namespace linnet
