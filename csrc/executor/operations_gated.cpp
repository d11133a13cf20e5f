// SPDX-License-Identifier: Apache-2.0
// The first half of a feed-forward: gate and up projections, activation and rounding, a range of outputs at a time, so
// that the projections' results never leave the cache of the core that made them, nor take a place in the arena.
#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "items.h"

namespace linnet {

namespace {

constexpr int64_t ROWS = 512;               // of an item at most: enough to pay for the expansion of the weights
constexpr int64_t LOCAL_BYTES = 512 << 10;  // of results: half of a second-level cache

int64_t aligned(int64_t bytes) { return divide_up(bytes, 64) * 64; }

class GatedLinear final : public Operation {
  public:
    GatedLinear(Executor& executor, int input, int output, const std::vector<LinearWeight>& weights,
                const Gating& gating)
        : input_(input),
          output_(output),
          gating_(gating),
          type_(input_type(executor.value(input).type)),
          group_size_(executor.value(input).group_size),
          weights_(weights) {
        const LinearKernels& kernels = *executor.kernels().linear;
        const Value &from = executor.value(input), &to = executor.value(output);
        require(weights.size() == 1 || weights.size() == 2, "gated linear: one or two weights");
        require(from.span() == to.span(), "gated linear: input and output have the same rows");
        // Whole units of every weight and whole groups of the output: nobody shares a sum, a scale or a code.
        if (to.type == ValueType::int8) unit_ = to.group_size;
        for (const LinearWeight& weight : weights) {
            require(from.width == weight.columns, "gated linear: the input's width is not the weight's columns");
            require(to.width == weight.rows, "gated linear: the output's width is not the weight's rows");
            if (const char* reason = kernels.refuse(weight, type_, from.group_size))
                throw std::invalid_argument(reason);
            unit_ = std::lcm(unit_, kernels.column_unit(weight, type_));
            const int64_t bytes = aligned(kernels.scratch_bytes(weight, type_, from.max_rows));
            own_offset_ = bytes > own_offset_ ? bytes : own_offset_;
        }
        const int64_t block = from.max_rows < ROWS ? from.max_rows : ROWS;
        const int64_t least = int64_t(weights.size()) * aligned(block * unit_ * 4);
        executor.need_scratch(own_offset_ + (least > LOCAL_BYTES ? least : LOCAL_BYTES));
    }

    void run(const Step& step) override {
        const int64_t rows = step.rows(input_), outputs = weights_.front().rows;
        if (rows == 0) return;
        const LinearWeight& first_weight = weights_.front();
        ItemShape liked = step.kernels.linear->item_shape(first_weight, type_, group_size_, rows);
        liked.rows = std::min({liked.rows, rows, ROWS});
        const int64_t parts = int64_t(weights_.size()), room = (LOCAL_BYTES / parts - 64) / (liked.rows * 4);
        const Items items = deal_out(step.pool, rows, outputs, unit_, parts * first_weight.columns, liked, room);
        step.pool.run(items.count, [&](int64_t item, int worker) {
            work(step, items.row(item), items.row_count(item), items.begin(item), items.end(item), worker);
        });
    }

  private:
    void work(const Step& step, int64_t row, int64_t rows, int64_t begin, int64_t end, int worker) const {
        char* scratch = static_cast<char*>(step.scratch(worker));
        const int64_t width = end - begin, size = aligned(rows * width * 4);
        float* results[2] = {};
        for (size_t i = 0; i < weights_.size(); ++i) {
            results[i] = reinterpret_cast<float*>(scratch + own_offset_ + int64_t(i) * size);
            // Column n of the weight is column n - begin of the results.
            multiply(step, type_, weights_[i], input_, row, rows, results[i] - begin, width, begin, end, scratch);
        }
        const KernelTable& kernels = step.kernels;
        const Value& to = step.executor.placed(output_);
        const int64_t first = row * to.width + begin;
        if (to.type == ValueType::fp32) {
            for (int64_t r = 0; r < rows; ++r) {
                kernels.gate(results[0] + r * width, results[1] ? results[1] + r * width : nullptr,
                             step.fp32(output_) + first + r * to.width, width, gating_);
            }
            return;
        }
        kernels.gate(results[0], results[1], results[0], rows * width, gating_);
        if (to.type == ValueType::int8) {
            QuantisedRows rounded = step.quantised(output_);
            rounded.codes += row * rounded.row_bytes;
            rounded.scales += row * rounded.groups;
            rounded.sums += row * rounded.groups;
            kernels.linear->quantise_groups(results[0], width, rounded, rows, begin / rounded.group_size,
                                            divide_up(end, rounded.group_size));
            return;
        }
        const auto cast = to.type == ValueType::bf16 ? kernels.linear->cast_bf16 : kernels.linear->cast_fp16;
        for (int64_t r = 0; r < rows; ++r)
            cast(results[0] + r * width, step.half(output_) + first + r * to.width, width);
    }

    int input_, output_;
    Gating gating_;
    InputType type_;
    int64_t group_size_;  // of the input's codes
    std::vector<LinearWeight> weights_;
    int64_t unit_ = 1, own_offset_ = 0;
};

}  // namespace

Made make_gated_linear(Executor& executor, int input, int output, const std::vector<LinearWeight>& weights,
                       const Gating& gating) {
    return std::make_unique<GatedLinear>(executor, input, output, weights, gating);
}

}  // namespace linnet
