// SPDX-License-Identifier: Apache-2.0
// Linear: splits its own work over threads.
#include <algorithm>
#include <stdexcept>

#include "operations.h"

namespace linnet {

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

void multiply(const Step& step, InputType type, const LinearWeight& weight, int input, int64_t row, int64_t rows,
              float* y, int64_t ldy, int64_t begin, int64_t end, void* scratch) {
    const LinearKernels& kernels = *step.kernels.linear;
    const int64_t columns = weight.columns;
    switch (type) {
        case InputType::fp32:
            return kernels.linear_fp32(weight, step.fp32(input) + row * columns, columns, y, ldy, rows, begin, end,
                                       scratch);
        case InputType::bf16:
            return kernels.linear_bf16(weight, step.half(input) + row * columns, columns, y, ldy, rows, begin, end,
                                       scratch);
        case InputType::int8: {
            QuantisedRows x = step.quantised(input);
            x.codes += row * x.row_bytes;
            x.scales += row * x.groups;
            x.sums += row * x.groups;
            return kernels.linear_int8(weight, x, y, ldy, rows, begin, end, scratch);
        }
    }
}

namespace {

// Work items: at least so many per thread, so that a core that is busy elsewhere takes fewer, and none longer than
// about a tenth of a millisecond, so that nobody waits long for the last one, or for one whose core was taken away.
constexpr int64_t ITEMS_PER_THREAD = 16;
constexpr int64_t ITEM_MULTIPLIES = 32 << 20;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

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
            require(weight.readable(), "linear: a weight that is read as tiles has none");
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
                    if (first < last)
                        multiply(step, type_, part.weight, input_, 0, rows, step.fp32(part.output), part.weight.rows,
                                 first, last, step.scratch(worker));
                }
            });
    }

  private:
    struct Part {
        int output;
        LinearWeight weight;
        int64_t first;  // where its rows begin in the range of work, a multiple of the unit
    };

    int input_;
    InputType type_;
    std::vector<Part> parts_;
    int64_t unit_ = 1, total_ = 0;
};

}  // namespace

Made make_linear(Executor& executor, int input, const std::vector<int>& outputs,
                 const std::vector<LinearWeight>& weights) {
    return std::make_unique<Linear>(executor, input, outputs, weights);
}

}  // namespace linnet
