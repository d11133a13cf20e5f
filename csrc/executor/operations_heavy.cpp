// SPDX-License-Identifier: Apache-2.0
// Linear: deals out its own work to threads.
#include <algorithm>
#include <stdexcept>

#include "items.h"

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
        case ValueType::int32:
            break;
    }
    throw std::invalid_argument("linear: no kernel reads fp16 or int32 rows");
}

InputRows input_rows(const Step& step, InputType type, int input, int64_t row) {
    const int64_t width = step.executor.placed(input).width;
    InputRows x;
    switch (type) {
        case InputType::fp32:
            x.plain = step.fp32(input) + row * width;
            break;
        case InputType::bf16:
            x.plain = step.half(input) + row * width;
            break;
        case InputType::int8:
            x.codes = step.quantised(input);
            x.codes.codes += row * x.codes.row_bytes;
            x.codes.scales += row * x.codes.groups;
            x.codes.sums += row * x.codes.groups;
            break;
    }
    return x;
}

void multiply(const LinearKernels& kernels, InputType type, const LinearWeight& weight, const InputRows& x,
              int64_t rows, float* y, int64_t ldy, int64_t begin, int64_t end, void* scratch) {
    switch (type) {
        case InputType::fp32:
            return kernels.linear_fp32(weight, static_cast<const float*>(x.plain), weight.columns, y, ldy, rows, begin,
                                       end, scratch);
        case InputType::bf16:
            return kernels.linear_bf16(weight, static_cast<const uint16_t*>(x.plain), weight.columns, y, ldy, rows,
                                       begin, end, scratch);
        case InputType::int8:
            return kernels.linear_int8(weight, x.codes, y, ldy, rows, begin, end, scratch);
    }
}

void multiply(const Step& step, InputType type, const LinearWeight& weight, int input, int64_t row, int64_t rows,
              float* y, int64_t ldy, int64_t begin, int64_t end, void* scratch) {
    multiply(*step.kernels.linear, type, weight, input_rows(step, type, input, row), rows, y, ldy, begin, end, scratch);
}

namespace {

// One or more weights over one input. Their rows, each rounded up to whole units, form one range of work, so that a
// narrow weight (keys and values of few heads) does not leave cores without any.
class Linear final : public Operation {
  public:
    Linear(Executor& executor, int input, const std::vector<int>& outputs, const std::vector<LinearWeight>& weights)
        : input_(input), type_(input_type(executor.value(input).type)), group_size_(executor.value(input).group_size) {
        const LinearKernels& kernels = *executor.kernels().linear;
        const Value& from = executor.value(input);
        require(!weights.empty() && outputs.size() == weights.size(), "linear: one output per weight is needed");
        for (size_t i = 0; i < weights.size(); ++i) {
            const LinearWeight& weight = weights[i];
            const Value& to = expect(executor, outputs[i], ValueType::fp32, "linear writes fp32");
            require(from.span() == to.span(), "linear: input and output have the same rows");
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
        const LinearWeight& first_weight = parts_[0].weight;
        const ItemShape liked = step.kernels.linear->item_shape(first_weight, type_, group_size_, rows);
        const Items items = deal_out(step.pool, rows, total_, unit_, first_weight.columns, liked, total_);
        step.pool.run(items.count, [&](int64_t item, int worker) {
            const int64_t row = items.row(item), begin = items.begin(item), end = items.end(item);
            for (const Part& part : parts_) {
                const int64_t width = part.weight.rows;
                const int64_t first = std::max<int64_t>(begin - part.first, 0),
                              last = std::min(end - part.first, width);
                if (first < last)
                    multiply(step, type_, part.weight, input_, row, items.row_count(item),
                             step.fp32(part.output) + row * width, width, first, last, step.scratch(worker));
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
    int64_t group_size_;  // of the input's codes
    std::vector<Part> parts_;
    int64_t unit_ = 1, total_ = 0;
};

}  // namespace

Made make_linear(Executor& executor, int input, const std::vector<int>& outputs,
                 const std::vector<LinearWeight>& weights) {
    return std::make_unique<Linear>(executor, input, outputs, weights);
}

}  // namespace linnet
