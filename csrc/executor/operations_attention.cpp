// SPDX-License-Identifier: Apache-2.0
// KVWrite and Attention. Attention's unit of work is a run of query rows of one sequence and one kv head, or few rows
// and several kv heads, against a run of partitions; bits do not depend on the split, only on partitions.
#include <algorithm>
#include <stdexcept>

#include "operations.h"

namespace linnet {

namespace {

constexpr int64_t ITEMS_PER_THREAD = 8;  // so that a core that is busy elsewhere can take fewer
constexpr int64_t TASK_VECTORS = 64;     // query vectors (rows x heads of a group) of one attention task
constexpr int64_t MAX_HEAD_SIZE = 4096;  // of kv_write's buffer

class KVWrite final : public RowOperation {
  public:
    KVWrite(Executor& executor, int key, int value, int state)
        : RowOperation(RowCount::tokens, 4 * executor.value(key).width, TILE_KEYS),
          key_(key),
          value_(value),
          state_(state) {
        const KVLayout& layout = executor.state(state);
        const Value& k = expect(executor, key, ValueType::fp32, "kv_write reads fp32");
        const Value& v = expect(executor, value, ValueType::fp32, "kv_write reads fp32");
        require(k.rows == RowCount::tokens && v.rows == RowCount::tokens, "kv_write: rows are tokens");
        require(k.width == layout.kv_heads * layout.head_size, "kv_write: the key's width is not kv_heads * head_size");
        require(v.width == layout.kv_heads * layout.value_head_size,
                "kv_write: the value's width is not kv_heads * value_head_size");
        require(layout.head_size <= MAX_HEAD_SIZE && layout.value_head_size <= MAX_HEAD_SIZE,
                "kv_write: a head has at most 4096 elements");
    }

    void run_rows(const Rows& rows) override {
        const Step& step = rows.step;
        step.kernels.kv_write(step.executor.state(state_), step.state(state_), rows.fp32(key_), rows.fp32(value_),
                              step.batch.slots_of(step.group(state_)) + rows.first, rows.count);
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
        call_.rounded = attributes.rounded;
        call_.scale = attributes.scale;
        call_.window = attributes.window;
        call_.softcap = attributes.softcap;
        call_.alibi_slopes = attributes.alibi_slopes;
        call_.sinks = attributes.sinks;
        call_.full = attributes.full;
        const Value& q = expect(executor, query, ValueType::fp32, "attention reads fp32");
        const Value& o = expect(executor, output, ValueType::fp32, "attention writes fp32");
        require(q.rows == RowCount::tokens && o.rows == RowCount::tokens, "attention: rows are tokens");
        require(call_.heads > 0 && call_.heads % call_.kv.kv_heads == 0, "attention: kv_heads must divide heads");
        require(q.width == call_.heads * call_.kv.head_size, "attention: the query's width is not heads * head_size");
        require(o.width == call_.heads * call_.kv.value_head_size,
                "attention: the output's width is not heads * value_head_size");
        require(!call_.rounded || call_.kv.storage != KVStorage::fp32, "attention: fp32 storage is not rounded");
        require(call_.window >= 0 && call_.softcap >= 0.0f, "attention: window and softcap must be positive");
        const int64_t group = call_.heads / call_.kv.kv_heads;
        task_rows_ = TASK_VECTORS > group ? TASK_VECTORS / group : 1;
        executor.need_scratch(executor.kernels().attention_scratch_bytes(call_, task_rows_));
    }

    void run(const Step& step) override {
        plan(step);
        step.pool.run(int64_t(tasks_.size()), [&](int64_t item, int worker) {
            step.kernels.attention(call_, tasks_[size_t(item)], step.scratch(worker));
        });
        step.pool.run(int64_t(merges_.size()),
                      [&](int64_t item, int) { step.kernels.attention_merge(call_, merges_[size_t(item)]); });
    }

  private:
    static int64_t partitions(const AttentionTask& task) { return task.last_partition - task.first_partition; }
    static int64_t cost(const AttentionTask& task) { return partitions(task) * task.rows * task.kv_heads; }

    // kv heads of a task. Few rows take them side by side if there is work enough for all threads even so.
    int64_t heads_of(int64_t rows, int64_t partitions, int64_t tasks, int threads) const {
        int64_t heads = call_.heads_abreast(rows);
        const auto items = [&] { return tasks * partitions * divide_up(call_.kv.kv_heads, heads); };
        while (heads > 1 && threads > 1 && items() < threads * ITEMS_PER_THREAD) heads = divide_up(heads, 2);
        return heads;
    }

    // Tasks, the longest first. One that is more than its share of the step is split over its partitions.
    void plan(const Step& step) {
        const Batch& batch = step.batch;
        const int64_t heads_width = call_.heads * call_.kv.head_size,
                      out_width = call_.heads * call_.kv.value_head_size;
        tasks_.clear();
        merges_.clear();
        for (int64_t s = 0; s < batch.sequences; ++s) {
            const int64_t begin = batch.query_start[s], end = batch.query_start[s + 1];
            for (int64_t row = begin + (end - begin - 1) / task_rows_ * task_rows_; row >= begin; row -= task_rows_) {
                AttentionTask task;
                task.memory = step.state(state_);
                task.block_table = batch.table_of(step.group(state_), s);
                task.query = step.fp32(query_) + row * heads_width;
                task.ld_query = heads_width;
                task.rows = row + task_rows_ < end ? task_rows_ : end - row;
                task.first_position = batch.positions[row];
                task.context = batch.context_lengths[s];
                task.output = step.fp32(output_) + row * out_width;
                task.ld_output = out_width;
                const int64_t first = call_.window > 0 && task.first_position >= call_.window
                                          ? task.first_position - call_.window + 1
                                          : 0;
                task.first_partition = first / PARTITION_KEYS;
                task.last_partition = divide_up(task.keys_of(call_, task.rows - 1), PARTITION_KEYS);
                const int64_t heads = heads_of(task.rows, partitions(task), batch.sequences, step.pool.threads());
                for (task.kv_head = 0; task.kv_head < call_.kv.kv_heads; task.kv_head += heads) {
                    task.kv_heads = std::min(heads, call_.kv.kv_heads - task.kv_head);
                    tasks_.push_back(task);
                }
            }
        }
        if (step.pool.threads() == 1) return;
        split(step.pool.threads() * ITEMS_PER_THREAD, step.executor.shared_memory());
        if (batch.sequences == 1 && merges_.empty()) return;  // already in order
        std::stable_sort(tasks_.begin(), tasks_.end(),
                         [](const AttentionTask& a, const AttentionTask& b) { return cost(a) > cost(b); });
    }

    void split(int64_t wanted, Buffer& memory) {
        const int64_t group = call_.heads / call_.kv.kv_heads, ld = call_.kv.value_stride() + 2;
        int64_t total = 0, floats = 0;
        for (const AttentionTask& task : tasks_) total += cost(task);
        const auto run_of = [&](const AttentionTask& task) {  // partitions of a piece
            const int64_t width = task.rows * task.kv_heads;
            if (task.kv_heads > 1 && partitions(task) * width * wanted > total) {
                return std::max<int64_t>(1, total / (2 * wanted * width));
            }
            const int64_t most = divide_up(divide_up(total, wanted), width);
            return divide_up(partitions(task), divide_up(partitions(task), most));
        };
        for (const AttentionTask& task : tasks_) {
            if (run_of(task) < partitions(task)) floats += cost(task) * group * ld;
        }
        if (floats == 0) return;
        memory.reserve(floats * 4);
        float* partials = reinterpret_cast<float*>(memory.data());
        std::swap(whole_, tasks_);
        tasks_.clear();
        for (AttentionTask task : whole_) {
            const int64_t run = run_of(task), last = task.last_partition;
            if (run == partitions(task)) {
                tasks_.push_back(task);
                continue;
            }
            task.partials = partials;
            task.ld_partials = task.kv_heads * task.rows * group * ld;
            partials += cost(task) * group * ld;
            for (int64_t head = 0; head < task.kv_heads; ++head) {
                AttentionTask merge = task;
                merge.kv_head += head;
                merge.kv_heads = 1;
                merge.partials += head * task.rows * group * ld;
                merges_.push_back(merge);
            }
            for (int64_t p = task.first_partition; p < last; p += run) {
                AttentionTask piece = task;
                piece.first_partition = p;
                piece.last_partition = p + run < last ? p + run : last;
                piece.partials = task.partials + (p - task.first_partition) * task.ld_partials;
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

Made make_kv_write(Executor& executor, int key, int value, int state) {
    return std::make_unique<KVWrite>(executor, key, value, state);
}

Made make_attention(Executor& executor, int query, int output, int state, const AttentionAttributes& attributes) {
    return std::make_unique<Attention>(executor, query, output, state, attributes);
}

}  // namespace linnet
